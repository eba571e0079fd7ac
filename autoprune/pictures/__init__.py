"""Pictures of what was measured, as PNG files: sensitivity of units, comparison of strategies.

Every function takes small frozen values, draws one picture and returns its path. Nothing here knows how the
numbers came about, and matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

from autoprune.pictures.comparison import ComparisonRow, RowKind, comparison_plot, correlation_plot
from autoprune.pictures.progress import search_progress
from autoprune.pictures.sensitivity import UnitCurve, sensitivity_curves, sensitivity_heatmap

__all__ = [
    "ComparisonRow",
    "RowKind",
    "UnitCurve",
    "comparison_plot",
    "correlation_plot",
    "search_progress",
    "sensitivity_curves",
    "sensitivity_heatmap",
]
