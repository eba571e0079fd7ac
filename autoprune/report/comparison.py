"""Strategies next to each other: what they found and how it fine-tunes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.report._base import BLUE, FAINT, INK, MUTED, finite, picture, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.36  # inches
_SPREAD = 0.34  # rows over which the seeds of one row are spread, so that equal ones stay countable
_NAME = 38  # characters of a row's name
_DENSE_LINE: dict[str, Any] = {"color": INK, "linewidth": 1.0, "linestyle": (0, (4, 3))}
_COLUMNS = (60.0, 108.0)  # points from the panel to the right ends of the columns of text


class RowKind(Enum):
    """What a row of a comparison is."""

    STRATEGY = "strategy"
    REFERENCE = "reference"
    DENSE = "dense"
    """A reference whose accuracy is drawn through the whole panel."""


@dataclass(frozen=True)
class ComparisonRow:
    """A strategy or a reference, over its seeds.

    Attributes:
        name: as it is printed.
        kind: strategies stand above the line, best first; references below it, as given.
        scores: proxy score per seed (0 is the dense network, negative is worse); may be empty.
        before: accuracy before fine-tuning per seed; may be empty.
        after: accuracy after fine-tuning per seed; may be empty.
        costs: cost as a ratio to the dense network's, per seed; may be empty.
        seconds: wall time of one search, the mean over the seeds; NaN where there was none.

    A number that is not finite counts as not measured.
    """

    name: str
    kind: RowKind
    scores: tuple[float, ...] = ()
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    costs: tuple[float, ...] = ()
    seconds: float = math.nan


def comparison_plot(
    rows: Sequence[ComparisonRow], path: Path, *, title: str, cost_label: str, accuracy: str = "accuracy"
) -> Path:
    """Draw proxy score (left) and accuracy before and after fine-tuning (right), a dot per seed and a bar at the mean.

    Args:
        rows: at least one, in any order; strategies are sorted by their mean score.
        path: the PNG to write; its folder must exist.
        title: stands above both panels.
        cost_label: heads the column of cost ratios, e.g. ``"latency"``; "of dense" is added.
        accuracy: names the figure, e.g. ``"mAP50-95"``.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a comparison needs at least one row, got none")
    placed = _placed(rows)
    bottom = max(placed) + 0.6
    with picture(path, title, width=11.0, height=1.5 + _ROW * (bottom + 0.6)) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.0, 1.25])
        for place, row in placed.items():
            colour = BLUE if row.kind is RowKind.STRATEGY else INK
            _dots(left, place, row.scores, colour=colour, filled=True)
            _dots(right, place, row.before, colour=colour, filled=False)
            _dots(right, place, row.after, colour=colour, filled=True)
            _write_columns(right, place, row)
        left.set_ylim(bottom, -0.6)
        left.set_yticks(list(placed), [shortened(row.name, _NAME) for row in placed.values()], fontsize=9)
        left.set_xlabel("proxy score (0 is the dense network)")
        right.set_xlabel(f"{accuracy}: hollow before, filled after fine-tuning (right is better)")
        for axes in (left, right):
            _guide(axes, placed)
        _head_columns(right, cost_label)
        levels = _dense_levels(rows)
        for level in levels:
            right.axvline(level, zorder=1, **_DENSE_LINE)
        _explain(figure, with_dense=bool(levels))
    return path


def _placed(rows: Sequence[ComparisonRow]) -> dict[float, ComparisonRow]:
    """Return the rows by their place from the top: strategies by falling score, a gap, references as given."""
    strategies = [row for row in rows if row.kind is RowKind.STRATEGY]
    strategies.sort(key=lambda row: (math.isnan(_mean(row.scores)), -_mean(row.scores)))  # those without one last
    references = [row for row in rows if row.kind is not RowKind.STRATEGY]
    start = len(strategies) + 0.3 if strategies else 0.0
    return {float(place): row for place, row in enumerate(strategies)} | {
        start + index: row for index, row in enumerate(references)
    }


def _mean(values: Sequence[float]) -> float:
    """Return the mean of what was measured, NaN where nothing was."""
    known = finite(values)
    return float(known.mean()) if len(known) else math.nan


def _dots(axes: Axes, place: float, values: Sequence[float], *, colour: str, filled: bool) -> None:
    """Draw a dot per seed and a bar at their mean."""
    known = finite(values)
    if not len(known):
        return
    offsets = np.linspace(-0.5, 0.5, len(known)) * _SPREAD if len(known) > 1 else np.zeros(1)
    face = colour if filled else "white"
    axes.scatter(
        known,
        place + offsets,
        s=26,
        color=face,
        edgecolors=colour,
        linewidths=1.0,
        alpha=0.85 if filled else 1,
        zorder=3,
    )
    if len(known) > 1:
        axes.vlines(known.mean(), place - 0.33, place + 0.33, color=colour, linewidth=2.0, alpha=0.9, zorder=2)


def _write_columns(axes: Axes, place: float, row: ComparisonRow) -> None:
    """Write cost and time of a row to the right of a panel."""
    cost = _mean(row.costs)
    texts = ("–" if math.isnan(cost) else f"{100 * cost:.1f} %", duration(row.seconds))
    for offset, text in zip(_COLUMNS, texts, strict=True):
        axes.annotate(
            text,
            (1, place),
            xycoords=axes.get_yaxis_transform(),
            xytext=(offset, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
        )


def _head_columns(axes: Axes, cost_label: str) -> None:
    for offset, text in zip(_COLUMNS, (f"{cost_label}\nof dense", "search\ntime"), strict=True):
        axes.annotate(
            text,
            (1, 1),
            xycoords="axes fraction",
            xytext=(offset, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8.5,
            color=MUTED,
            annotation_clip=False,
        )


def duration(seconds: float) -> str:
    """Return a wall time as a user says it: ``45 s``, ``12 min``, ``3.4 h``; a dash where there is none."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def _guide(axes: Axes, placed: Mapping[float, ComparisonRow]) -> None:
    """Draw the lines that lead the eye: one per row, and one between strategies and references."""
    from matplotlib.ticker import MaxNLocator

    for place in placed:
        axes.axhline(place, color=FAINT, linewidth=0.6, zorder=0)
    references = [place for place, row in placed.items() if row.kind is not RowKind.STRATEGY]
    if references and min(references) > 0:
        axes.axhline(min(references) - 0.65, color=MUTED, linewidth=0.8, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.margins(x=0.06)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _dense_levels(rows: Sequence[ComparisonRow]) -> list[float]:
    """Return the dense network's accuracy, fine-tuned where it was; nothing where no row tells it."""
    known = [row.after if len(finite(row.after)) else row.before for row in rows if row.kind is RowKind.DENSE]
    return [_mean(values) for values in known if len(finite(values))]


def _explain(figure: Figure, *, with_dense: bool) -> None:
    """Put the key below the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=BLUE, marker="o", markersize=5, linestyle="", label="one seed"),
        Line2D(
            [], [], color=BLUE, marker="|", markersize=11, markeredgewidth=2, linestyle="", label="mean of the seeds"
        ),
    ]
    if with_dense:
        handles.append(Line2D([], [], label="dense network", **_DENSE_LINE))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def correlation_plot(
    points: Sequence[tuple[float, float]], path: Path, *, spearman: float, title: str, accuracy: str = "accuracy"
) -> Path:
    """Draw fine-tuned accuracy against proxy score, a dot per candidate.

    Args:
        points: (proxy score, accuracy after fine-tuning); a pair with a number that is not finite is left out.
        path: the PNG to write; its folder must exist.
        spearman: rank correlation of the points, for the title; NaN where it is undefined.
        title: stands above the plot, before the correlation.
        accuracy: names the figure, e.g. ``"mAP50-95"``.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
    """
    known = [pair for pair in points if all(map(math.isfinite, pair))]
    rank = "undefined" if math.isnan(spearman) else f"{spearman:.2f}".replace("-", "−")
    with picture(path, title, width=5.6, height=5.0) as figure:
        axes = figure.subplots()
        axes.scatter(*_columns_of(known), s=32, color=BLUE, edgecolors="white", linewidths=0.6, alpha=0.85, zorder=3)
        axes.set_title(f"Spearman rank correlation {rank}, {len(known)} candidates")
        axes.set_xlabel("proxy score (0 is the dense network, right is better)")
        axes.set_ylabel(f"{accuracy} after fine-tuning")
        axes.grid(True)
        axes.margins(0.06)
    return path


def _columns_of(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [first for first, _ in pairs], [second for _, second in pairs]
