"""The sections that a result is shown in, tables and charts, in order: the terminal's, a notebook's, a page's.

A section is a function of a result and the folder of its run; it returns a `Table`, a `Chart`, or None if it does not
apply. A new one is such a function and its line in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autoprune.listener import Listener
from autoprune.report.chart import Chart
from autoprune.report.comparison import comparison_chart, correlation_chart
from autoprune.report.profile import layers_chart, layers_table, prediction_chart, staircase_chart, staircase_table
from autoprune.report.progress import progress_chart
from autoprune.report.sensitivity import curves_chart, heatmap_chart, sensitivity_table
from autoprune.report.sparsity import channels_chart
from autoprune.report.table import Table
from autoprune.report.tables import class_table, comparison_table, stage_table
from autoprune.results import Result

Section = Callable[[Result, Path], Table | Chart | None]
"""Maps (result, folder of the run) to what is shown, or to None if there is nothing of that kind."""

SECTIONS: Sequence[Section] = (
    comparison_chart,
    progress_chart,
    correlation_chart,
    channels_chart,
    layers_chart,
    staircase_chart,
    prediction_chart,
    curves_chart,
    heatmap_chart,
    stage_table,
    class_table,
    comparison_table,
    layers_table,
    staircase_table,
    sensitivity_table,
)
"""What a result is shown as, in order; pictures are drawn before anything is said."""


def sections(result: Result, folder: Path) -> list[Table | Chart]:
    """Return the sections that apply to a result."""
    return [shown for section in SECTIONS if (shown := section(result, folder)) is not None]


def publish(result: Result, path: Path, listener: Listener) -> None:
    """Write a result's JSON, draw its charts next to it as PNG files, and show its tables, but for details.

    Raises:
        RunError: a file cannot be written.
    """
    result.save(path)
    for shown in sections(result, path.parent):
        if isinstance(shown, Chart):
            shown.png(path.parent)
        elif not shown.detail:
            listener.table(shown.title, shown.header, shown.rows)
