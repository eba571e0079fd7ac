"""The sections that a result is shown in, tables and charts, in order: a page's, the terminal's, and a notebook's.

A section is a function of a result and the folder of its run; it returns a `Table`, a `Chart`, a `Gallery`, or None if
it does not apply. A new one is such a function and its line in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autoprune.listener import Listener
from autoprune.report.chart import Chart
from autoprune.report.comparison import comparison_chart, correlation_chart
from autoprune.report.detections import Gallery, detections_gallery
from autoprune.report.profile import layers_chart, layers_table, prediction_chart, staircase_chart, staircase_table
from autoprune.report.progress import progress_chart
from autoprune.report.search_charts import epochs_chart, fronts_chart, kept_chart, layer_latency_chart, scores_chart
from autoprune.report.sensitivity import curves_chart, heatmap_chart, sensitivity_table
from autoprune.report.sparsity import channels_chart, histogram_chart, quintiles_chart, watched_chart
from autoprune.report.table import Table
from autoprune.report.tables import class_table, comparison_table, stage_table, workers_table
from autoprune.results import Result

Shown = Table | Chart | Gallery
"""What a section may be."""

Section = Callable[[Result, Path], Shown | None]
"""Maps (result, folder of the run) to what is shown, or to None if there is nothing of that kind."""

SECTIONS: Sequence[Section] = (
    stage_table,
    comparison_table,
    comparison_chart,
    detections_gallery,
    class_table,
    kept_chart,
    channels_chart,
    scores_chart,
    progress_chart,
    correlation_chart,
    fronts_chart,
    prediction_chart,
    layer_latency_chart,
    layers_table,
    layers_chart,
    staircase_table,
    staircase_chart,
    epochs_chart,
    quintiles_chart,
    histogram_chart,
    watched_chart,
    sensitivity_table,
    curves_chart,
    heatmap_chart,
    workers_table,
)
"""What a result is shown as, in the order of a page."""


DETAILS = frozenset(
    {
        detections_gallery,
        class_table,
        kept_chart,
        scores_chart,
        fronts_chart,
        layer_latency_chart,
        epochs_chart,
        workers_table,
    }
)
"""Sections that only pages have: a command does not end with them, and writes no file of them."""


def sections(result: Result, folder: Path, *, details: bool = True) -> list[Shown]:
    """Return the sections that apply to a result, with or without `DETAILS`."""
    made = (section for section in SECTIONS if details or section not in DETAILS)
    return [shown for section in made if (shown := section(result, folder)) is not None]


def publish(result: Result, path: Path, listener: Listener) -> None:
    """Write a result's JSON, draw its charts next to it as PNG files, and show its tables, but for details.

    A fine-tune that lost accuracy is told.

    Raises:
        RunError: a file cannot be written.
    """
    result.save(path)
    shown = sections(result, path.parent, details=False)
    for chart in shown:  # before anything is said
        if isinstance(chart, Chart):
            chart.png(path.parent)
    for table in shown:
        if isinstance(table, Table):
            listener.table(table.title, table.header, table.rows)
    pruned, tuned = (getattr(result.stages.get(name), "metrics", None) for name in ("pruned", "finetuned"))
    if pruned is not None and tuned is not None and tuned.primary < pruned.primary:
        listener.warn(
            f"Fine-tuning lowered {result.metric_names[0]} from {pruned.primary:.3f} to {tuned.primary:.3f}: the "
            "network before it is the better one. More training images or more epochs may help."
        )
