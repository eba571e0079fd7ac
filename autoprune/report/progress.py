"""How fast strategies get to their best score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoprune.report._base import BLUE, GOLD, GREEN, INK, ORANGE, PURPLE, SKY, Floats, finite, picture, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GOLD, SKY, INK)
_ROUNDS = (("-", "o"), ("--", "s"), (":", "^"))  # dashes and end marks when the colours are used up
_NAME = 30  # characters of a strategy's name
_FOCUS = 0.05  # share of the evaluations whose bad first scores may fall out of the picture


def search_progress(histories: Mapping[str, Sequence[Sequence[float]]], path: Path, *, title: str) -> Path:
    """Draw the best score so far against evaluations: a line at the mean of the seeds, a band from worst to best.

    A line starts where all of its seeds have a score; a seed that never has one is counted in the legend instead.
    A seed that ended before the others keeps its best.

    Args:
        histories: by strategy, for every seed the score of each evaluation in order, or the best so far; NaN where
            an evaluation has none, e.g. a probe that does not hold the budget.
        path: the PNG to write; its folder must exist.
        title: stands above the plot.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no strategies.
    """
    from matplotlib.ticker import MaxNLocator

    if not histories:
        raise ValueError("a picture of progress needs at least one strategy, got none")
    bests = {name: _best_so_far(seeds) for name, seeds in histories.items()}
    looks = {name: _look(index) for index, name in enumerate(histories)}
    with picture(path, title, width=8.6, height=4.6) as figure:
        axes = figure.subplots()
        for name in sorted(bests, key=lambda name: _final(bests[name]), reverse=True):  # the legend's order
            _line(axes, bests[name], label=_legend(name, bests[name], len(histories[name])), look=looks[name])
        axes.set_xlabel("evaluations")
        axes.set_ylabel("best score so far (0 is the dense network)" + _focus(axes, bests.values()))
        axes.set_xlim(left=0)
        axes.grid(True, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
        if not any(best.size for best in bests.values()):
            axes.set_yticks([])
    return path


def _best_so_far(seeds: Sequence[Sequence[float]]) -> Floats:
    """Return best scores so far, seeds × evaluations; without the seeds that never have a score."""
    known = [seed for seed in seeds if len(finite(seed))]
    length = max(map(len, known), default=0)
    table = np.full((len(known), length), np.nan)
    for row, seed in zip(table, known, strict=True):
        row[: len(seed)] = seed
    table[~np.isfinite(table)] = np.nan
    return np.asarray(np.fmax.accumulate(table, axis=1) if table.size else table)


def _final(best: Floats) -> float:
    return float(best[:, -1].mean()) if best.size else -math.inf


def _look(index: int) -> tuple[str, str, str]:
    """Return colour, dashes and end mark of the strategy at a place of the input."""
    further, place = divmod(index, len(_COLOURS))
    return _COLOURS[place], *_ROUNDS[further % len(_ROUNDS)]


def _legend(name: str, best: Floats, seeds: int) -> str:
    shown = shortened(name, _NAME)
    if len(best) == seeds:
        return shown
    return f"{shown} ({len(best)} of {seeds} seeds)" if len(best) else f"{shown} (no score)"


def _line(axes: Axes, best: Floats, *, label: str, look: tuple[str, str, str]) -> None:
    colour, dashes, mark = look
    mean = best.mean(axis=0) if len(best) else np.empty(0)  # NaN until every seed has a score
    evaluations = np.arange(1, len(mean) + 1)
    axes.plot(
        evaluations,
        mean,
        color=colour,
        linestyle=dashes,
        linewidth=1.6,
        drawstyle="steps-post",
        marker=mark,
        markersize=4.5,
        markevery=[len(mean) - 1] if len(mean) else None,
        label=label,
        zorder=3,
    )
    if len(best) > 1:
        where = np.isfinite(mean)
        low, high = best.min(axis=0), best.max(axis=0)
        axes.fill_between(evaluations, low, high, where=where, step="post", color=colour, alpha=0.14, linewidth=0)


def _focus(axes: Axes, bests: Iterable[Floats]) -> str:
    """Cut the bad first scores off the y axis where they would press the rest flat; return the words that say so."""
    tables = [best for best in bests if best.size]
    if not tables:
        return ""
    top = max(float(np.nanmax(best)) for best in tables)
    lowest = min(float(np.nanmin(best)) for best in tables)
    settled = min(float(np.nanmin(best[:, int(_FOCUS * best.shape[1]) :].mean(axis=0))) for best in tables)
    if lowest >= top - 1.5 * (top - settled):
        return ""
    pad = 0.05 * (top - settled)
    axes.set_ylim(settled - pad, top + pad)
    return ",\nworse beginnings cut off"
