"""How fast strategies get to their best score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from autoprune.arrays import Array
from autoprune.report.chart import Chart, values
from autoprune.results import Result

_COLOURS = 7  # of the theme; the strategies after them have dashes
_DASHES: Sequence[list[int]] = ([], [6, 3], [2, 2])
_FOCUS = 0.05  # share of the evaluations whose bad first scores may fall out of the picture


def progress_chart(result: Result, folder: Path) -> Chart | None:
    """Return the best score against the candidates scored, of every strategy."""
    histories = result.figures.get("histories")
    return search_progress(histories, title=result.title) if histories else None


def search_progress(histories: Mapping[str, Sequence[Sequence[float | None]]], *, title: str) -> Chart:
    """Return the best score so far against evaluations: a line at the mean of the seeds, a band from worst to best.

    A line starts when all of its seeds have a score; a seed that never has one is counted in the legend instead.
    A seed that ended before the others keeps its best.

    Args:
        histories: by strategy, for every seed the score of each evaluation in order; None or NaN for one that has
            none, e.g. because it does not hold the budget.
        title: stands above the plot.

    Raises:
        ValueError: there are no strategies.
    """
    import altair as alt

    if not histories:
        raise ValueError("a picture of progress needs at least one strategy, got none")
    bests = {name: _best_so_far(seeds) for name, seeds in histories.items()}
    ranked = sorted(bests, key=lambda name: _final(bests[name]), reverse=True)
    names = [_legend(name, bests[name], len(histories[name])) for name in ranked]
    ends = _focus(bests.values())
    lowest = -math.inf if ends is None else ends[0]
    rows = [row for name, label in zip(ranked, names, strict=True) for row in _steps(label, bests[name], lowest)]
    dashes = [_DASHES[place // _COLOURS % len(_DASHES)] for place in range(len(names))]
    legend = alt.Legend(title=None, symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=3, symbolSize=300)
    chosen = alt.selection_point(fields=["strategy"], bind="legend")
    base = alt.Chart(values(rows)).encode(
        x=alt.X("evaluations:Q", scale=alt.Scale(domainMin=0, nice=False), axis=alt.Axis(grid=False, tickMinStep=1)),
        color=alt.Color("strategy:N", scale=alt.Scale(domain=names), legend=legend),
    )
    scale = alt.Scale(zero=False, nice=True) if ends is None else alt.Scale(domain=list(ends), nice=False)
    y, worst = (alt.Y(f"{one}:Q", title="best score so far", scale=scale) for one in ("best", "worst_seed"))
    line = base.mark_line(interpolate="step-after", strokeWidth=2).encode(
        y=y,
        strokeDash=alt.StrokeDash("strategy:N", scale=alt.Scale(domain=names, range=dashes), legend=legend),
        strokeOpacity=alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.12)),
    )
    band = base.mark_area(interpolate="step-after", opacity=1).encode(
        y=worst, y2="best_seed:Q", fillOpacity=alt.when(chosen).then(alt.value(0.12)).otherwise(alt.value(0.02))
    )
    dots = base.mark_point().encode(
        y=y,
        size=alt.value(80),
        fillOpacity=alt.when(alt.datum.last).then(alt.value(1)).otherwise(alt.value(0)),
        tooltip=["strategy:N", "evaluations:Q", *(alt.Tooltip(f"{one}:Q", format="+.4f") for one in _FIELDS)],
    )
    figure = alt.layer(line, band, dots).add_params(chosen).properties(width=640, height=340)
    cut = "" if ends is None else ", worse beginnings cut off"
    caption = (
        f"Best score so far (0 is the dense network{cut}): mean of the seeds, the band from the worst to the best."
    )
    return Chart("progress", title, figure, caption)


_FIELDS = ("best", "worst_seed", "best_seed")


def _best_so_far(seeds: Sequence[Sequence[float | None]]) -> Array:
    """Return best scores so far, seeds × evaluations; without the seeds that never have a score."""
    table = np.full((len(seeds), max(map(len, seeds), default=0)), np.nan)
    for row, seed in zip(table, seeds, strict=True):
        row[: len(seed)] = np.array(seed, dtype=np.float64)  # None becomes NaN
    table[~np.isfinite(table)] = np.nan
    table = table[np.isfinite(table).any(axis=1)]
    return np.asarray(np.fmax.accumulate(table, axis=1)) if table.size else np.empty((0, 0))


def _final(best: Array) -> float:
    return float(best[:, -1].mean()) if best.size else -math.inf


def _legend(name: str, best: Array, seeds: int) -> str:
    if len(best) == seeds:
        return name
    return f"{name} ({len(best)} of {seeds} seeds)" if len(best) else f"{name} (no score)"


def _steps(label: str, best: Array, lowest: float) -> list[Mapping[str, object]]:
    """Return the evaluations at which anything changes, and the last one, as rows; without what lies below an end.

    Cut here, for a clipped mark takes vl-convert half a second.
    """
    if not best.size:
        return []
    found = np.stack([best.mean(axis=0), best.min(axis=0), best.max(axis=0)])  # NaN until every seed has a score
    found[1] = np.fmax(found[1], lowest)
    changes = np.append(True, (found[:, 1:] != found[:, :-1]).any(axis=0))
    changes[-1] = True
    kept = np.flatnonzero(changes & (found[0] >= lowest) & np.isfinite(found[0]))
    return [
        {"strategy": label, "evaluations": place + 1, "last": place == best.shape[1] - 1}
        | dict(zip(_FIELDS, found[:, place].tolist(), strict=True))
        for place in kept.tolist()
    ]


def _focus(bests: Iterable[Array]) -> tuple[float, float] | None:
    """Return ends of the y axis that cut off bad first scores if these would press the rest flat."""
    tables = [best for best in bests if best.size]
    if not tables:
        return None
    top = max(float(np.nanmax(best)) for best in tables)
    lowest = min(float(np.nanmin(best)) for best in tables)
    settled = min(float(np.nanmin(best[:, int(_FOCUS * best.shape[1]) :].mean(axis=0))) for best in tables)
    if lowest >= top - 1.5 * (top - settled):
        return None
    pad = 0.05 * (top - settled)
    return settled - pad, top + pad
