"""The sections that a result is shown in, tables and pictures, in order: the terminal's, and a notebook's.

A section is a function of a result and the folder of its run; it returns a `Table`, a `Picture` that it has drawn
there, or None if it does not apply. A new one is such a function and its line in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from autoprune.listener import Listener
from autoprune.report.chart import Chart
from autoprune.report.comparison import ComparisonRow, RowKind, comparison_plot, correlation_plot
from autoprune.report.detections import Gallery, detections_gallery
from autoprune.report.profile_sections import (
    layers_picture,
    layers_table,
    prediction_picture,
    staircase_picture,
    staircase_table,
)
from autoprune.report.progress import search_progress
from autoprune.report.search_charts import epochs_chart, fronts_chart, kept_chart, scores_chart
from autoprune.report.sensitivity_sections import curves_picture, heatmap_picture, sensitivity_table
from autoprune.report.sparsity import slimmed_channels
from autoprune.report.table import Picture, Table
from autoprune.report.tables import class_table, compared_rows, comparison_table, primaries, stage_table
from autoprune.results import Compared, Result

Section = Callable[[Result, Path], "Table | Picture | None"]
"""Maps (result, folder of the run) to what is shown, or to None if there is nothing of that kind."""

LEAST_POINTS = 3
"""Networks from which on a rank correlation says something."""


def comparison_picture(result: Result, folder: Path) -> Picture | None:
    """Draw scores and metrics of everything that was compared; ``comparison.png``."""
    searched, references = compared_rows(result)
    if not searched:
        return None
    metric, dense = next(iter(searched[0].costs)), result.stages["dense"].metrics
    rows = [
        *(_drawn(row, RowKind.STRATEGY, metric) for row in searched),
        ComparisonRow("dense", RowKind.DENSE, after=(dense.primary,) if dense is not None else (), costs=(1.0,)),
        *(_drawn(row, RowKind.REFERENCE, metric) for row in references),
    ]
    path, name = folder / "comparison.png", result.metric_names[0]
    return Picture(comparison_plot(rows, path, title=result.title, cost_label=metric, accuracy=name))


def progress_picture(result: Result, folder: Path) -> Picture | None:
    """Draw the best score against the candidates scored, of every strategy; ``progress.png``."""
    if "histories" not in result.figures:
        return None
    histories = {
        name: [[np.nan if score is None else score for score in one] for one in seeds]
        for name, seeds in result.figures["histories"].items()
    }
    return Picture(search_progress(histories, folder / "progress.png", title=result.title))


def correlation_picture(result: Result, folder: Path) -> Picture | None:
    """Draw fine-tuned networks by their score and their primary metric; ``correlation.png``."""
    found = result.figures.get("correlation")
    if found is None or found["networks"] < LEAST_POINTS:
        return None
    points, spearman = [(score, metric) for score, metric in found["points"]], found["spearman"]
    path, name = folder / "correlation.png", result.metric_names[0]
    return Picture(correlation_plot(points, path, spearman=spearman, title=result.title, accuracy=name))


def channels_picture(result: Result, folder: Path) -> Picture | None:
    """Draw how many channels each unit has and keeps after slimming; ``channels.png``."""
    found = result.figures.get("channels")
    if found is None:
        return None
    return Picture(slimmed_channels(found["before"], found["after"], folder / "channels.png", title=result.title))


SECTIONS: Sequence[Section] = (
    comparison_picture,
    progress_picture,
    correlation_picture,
    channels_picture,
    layers_picture,
    staircase_picture,
    prediction_picture,
    curves_picture,
    heatmap_picture,
    stage_table,
    class_table,
    comparison_table,
    layers_table,
    staircase_table,
    sensitivity_table,
)
"""What a result is shown as, in order; pictures are drawn before anything is said."""


PAGE_SECTIONS = (
    stage_table,
    comparison_table,
    detections_gallery,
    class_table,
    kept_chart,
    scores_chart,
    fronts_chart,
    epochs_chart,
    layers_table,
    staircase_table,
    sensitivity_table,
)
"""The order of a page."""


def sections(result: Result, folder: Path) -> list[Table | Picture]:
    """Return the sections that apply to a result; pictures are drawn into the folder.

    Raises:
        RunError: a picture cannot be written.
    """
    return [shown for section in SECTIONS if (shown := section(result, folder)) is not None]


def shown_in_page(result: Result, folder: Path) -> list[Table | Chart | Gallery]:
    """Return the sections of a page that apply to a result, in order."""
    found = (section(result, folder) for section in PAGE_SECTIONS)
    return [one for one in found if one is not None and not isinstance(one, Picture)]


def publish(result: Result, path: Path, listener: Listener) -> None:
    """Write a result's JSON, draw its pictures next to it, and show its tables, but for those of details.

    Raises:
        RunError: a file cannot be written.
    """
    result.save(path)
    for shown in sections(result, path.parent):
        if isinstance(shown, Table) and not shown.detail:
            listener.table(shown.title, shown.header, shown.rows)


def _drawn(row: Compared, kind: RowKind, metric: str) -> ComparisonRow:
    return ComparisonRow(
        row.name,
        kind,
        scores=tuple(row.scores),
        before=tuple(primaries(row.before)),
        after=tuple(primaries(row.after)),
        costs=tuple(row.costs[metric]),
        seconds=float(np.mean(row.seconds)) if row.seconds else float("nan"),
    )
