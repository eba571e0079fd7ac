"""Pictures of what was measured, as PNG files: sensitivity of units, comparison of strategies, profile of a network.

Every function takes small frozen values, draws one picture and returns its path. Nothing here knows how the
numbers came about, and matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

from autoprune.report.comparison import ComparisonRow, RowKind, comparison_plot, correlation_plot
from autoprune.report.profile import BarKind, LayerBar, NetworkRole, PredictedNetwork, layer_bars, prediction_plot
from autoprune.report.progress import search_progress
from autoprune.report.sensitivity import UnitCurve, sensitivity_curves, sensitivity_heatmap
from autoprune.report.sparsity import scale_histogram, scale_quintiles, slimmed_channels, watched_scales
from autoprune.report.staircase import UnitSteps, staircases
from autoprune.report.table import Picture, Table

__all__ = [
    "BarKind",
    "ComparisonRow",
    "LayerBar",
    "NetworkRole",
    "Picture",
    "PredictedNetwork",
    "RowKind",
    "Table",
    "UnitCurve",
    "UnitSteps",
    "comparison_plot",
    "correlation_plot",
    "layer_bars",
    "prediction_plot",
    "scale_histogram",
    "scale_quintiles",
    "search_progress",
    "sensitivity_curves",
    "sensitivity_heatmap",
    "slimmed_channels",
    "staircases",
    "watched_scales",
]
