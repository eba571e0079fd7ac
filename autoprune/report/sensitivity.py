"""How the score falls when one unit alone is pruned: a panel per unit, a heat map of all, and a table of the worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.arrays import Array
from autoprune.report.chart import SKY, Chart, names_axis, short_labels, values
from autoprune.report.table import Table
from autoprune.results import Result

if TYPE_CHECKING:
    import altair as alt


SHOWN = 10
"""How many units the table shows: those whose pruning costs most."""

_MOST_COLUMNS = 8
_PANELS = {4: (240, 170), 12: (190, 130)}  # most units: width and height in pixels
_PANEL = (140, 76)  # for more units
_ROW = 17  # pixels of the heat map
_EIGHTHS = tuple(eighth / 8 for eighth in range(1, 8))
_MOST_RATIOS = 8  # columns of the heat map
_SKEWED = 6.0  # the worst unit this many times worse than the middle one: the middle one would look flat
_LEAST = 1e-3  # score drop that an axis spans at least: what is smaller is noise, or nothing at all
_COLOURS = ("#F7F4EF", "#F6C37B", "#D55E00", "#5E1A00")  # from no drop to the worst one


def curves_chart(result: Result, folder: Path) -> Chart | None:
    """Return the score against the keep ratio, a panel per unit, all on one y axis.

    If few units are far worse than the others, the axis is symmetric-logarithmic, and its title says so.
    """
    import altair as alt

    curves = result.figures.get("curves")
    if not curves:
        return None
    measured = [_measured(one) for one in curves]
    scale, axis, title = _score_axis([scores for _, scores in measured])
    names = [_name(one) for one in curves]
    rows = [
        {"unit": name, "kept": kept, "channels": round(kept * one["channels"]), "score": score}
        for name, one, points in zip(names, curves, measured, strict=True)
        for kept, score in zip(*(numbers.tolist() for numbers in points), strict=True)
    ]
    columns = len(curves) if len(curves) <= 4 else min(_MOST_COLUMNS, math.ceil(math.sqrt(1.3 * len(curves))))
    width, height = next((size for most, size in _PANELS.items() if len(curves) <= most), _PANEL)
    base = alt.Chart().properties(width=width, height=height)
    zero = base.mark_rule(style="faint").encode(y=alt.datum(0))
    line = base.mark_line(point=alt.OverlayMarkDef(size=22), clip=False).encode(
        x=alt.X("kept:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(values=[0, 0.5, 1], grid=False)),
        y=alt.Y("score:Q", title=None, scale=scale, axis=axis),
        tooltip=["unit:N", "channels:Q", alt.Tooltip("kept:Q", format=".3f"), alt.Tooltip("score:Q", format="+.4f")],
    )
    header = alt.Header(title=None, labelExpr=short_labels(width // 6), labelPadding=3)
    panels = alt.layer(zero, line, data=values(rows)).facet(
        facet=alt.Facet("unit:N", sort=names, header=header), columns=columns, spacing={"row": 12, "column": 14}
    )
    caption = (
        f"Score ({title}; 0 is the dense network, negative is worse) by the share of channels that one unit alone "
        "keeps, all others dense; its channels in brackets."
    )
    return Chart("curves", result.title, panels, caption)


def heatmap_chart(result: Result, folder: Path) -> Chart | None:
    """Return the score drop of every unit, a row, at common keep ratios, the columns.

    A cell between two measured ratios is interpolated on the line between them, the dense network being one; outside
    of what was measured there is none.
    """
    import altair as alt

    curves = result.figures.get("curves")
    if not curves:
        return None
    measured = [_measured(one) for one in curves]
    grid = _grid([ratios for ratios, _ in measured])
    drops = [_drops_at(grid, *points) for points in measured]
    rows = [
        {"unit": _name(one), "keep": f"{ratio:.3g}", "drop": drop, "text": _number(drop)}
        for one, found in zip(curves, drops, strict=True)
        for ratio, drop in zip(grid, found.tolist(), strict=True)
        if math.isfinite(drop)
    ]
    names = [_name(one) for one in curves]
    ratios = alt.Axis(labelAngle=0, orient="top", ticks=False, domain=False, grid=False)
    base = alt.Chart(values(rows)).encode(
        x=alt.X("keep:N", title="keep ratio", scale=alt.Scale(domain=[f"{ratio:.3g}" for ratio in grid]), axis=ratios),
        y=alt.Y("unit:N", title=None, scale=alt.Scale(domain=names), axis=names_axis(40)),
        tooltip=["unit:N", "keep:N", alt.Tooltip("drop:Q", format=".4f", title="score drop")],
    )
    scale, legend, dark = _colour_scale([scores for _, scores in measured], np.concatenate([*drops, np.zeros(1)]))
    cells = base.mark_rect(style="segment").encode(color=alt.Color("drop:Q", scale=scale, legend=legend))
    ink = alt.when(alt.datum.drop > dark).then(alt.value("#FFFFFF")).otherwise(alt.value("#222222"))
    texts = base.mark_text().encode(text="text:N", color=ink)
    figure = alt.layer(cells, texts).properties(width=64 * len(grid), height=_ROW * len(curves))
    caption = (
        "Score drop of each unit (its channels in brackets, input first) pruned alone to a keep ratio, all others "
        "dense; interpolated between measured ratios, empty outside of them, blue where the score rises."
    )
    return Chart("heatmap", result.title, figure, caption)


def sensitivity_table(result: Result, folder: Path) -> Table | None:
    """Return the units whose pruning costs most at their narrowest, with their score at each keep ratio."""
    if "curves" not in result.figures:
        return None
    measured = [(one, dict(one["scores"])) for one in result.figures["curves"]]
    rows = []
    for one, scores in sorted(measured, key=lambda pair: min(pair[1].values()))[:SHOWN]:
        found = (scores.get(count) for count in one["kept"].values())
        cells = ("" if score is None else f"{score:+.3f}" for score in found)
        rows.append([one["unit"], str(one["channels"]), *cells])
    header = ["unit", "channels", *(f"keep {ratio}" for ratio in measured[0][0]["kept"])]
    return Table(f"The most sensitive of {len(measured)} units: score when it alone is pruned", header, rows)


def _name(curve: Mapping[str, Any]) -> str:
    return f"{curve['unit']} ({curve['channels']})"


def _measured(curve: Mapping[str, Any]) -> tuple[Array, Array]:
    """Return keep ratios, ascending and with the dense network's 1, and their scores; what failed is left out."""
    known = {kept / curve["channels"]: score for kept, score in curve["scores"] if _finite(score)}
    ratios, scores = zip(*sorted({1.0: 0.0, **known}.items()), strict=True)
    return np.asarray(ratios, dtype=np.float64), np.asarray(scores, dtype=np.float64)


def _finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _grid(ratios: Sequence[Array]) -> tuple[float, ...]:
    """Return the measured ratios if they are few, else those eighths that lie within what was measured."""
    known = [ratio for one in ratios for ratio in one.tolist() if ratio < 1]
    found = tuple(sorted({round(ratio, 3) for ratio in known}))
    if 0 < len(found) <= _MOST_RATIOS:
        return found
    return tuple(eighth for eighth in _EIGHTHS if eighth >= min(known, default=0.0) - 1e-9) or _EIGHTHS[-1:]


def _drops_at(grid: Sequence[float], ratios: Array, scores: Array) -> Array:
    """Return the score drop at every ratio of the grid; NaN below the lowest measured one."""
    tolerance = 1e-3  # the grid is rounded
    found = np.interp(grid, ratios, -scores)
    return np.where(np.asarray(grid) >= ratios[0] - tolerance, found, np.nan) if len(ratios) > 1 else found * np.nan


def _score_axis(scores: Sequence[Array]) -> tuple[alt.Scale, alt.Axis, str]:
    """Return scale and axis of all units' scores, and what the scale is in words."""
    import altair as alt

    linear = linear_until(scores)
    lowest = min(-_LEAST, *(float(one.min()) for one in scores))
    highest = max(0.0, *(float(one.max()) for one in scores))
    if linear is None:
        return alt.Scale(domain=[lowest, highest], nice=True), alt.Axis(tickCount=4), "linear"
    below, above = log_ticks(linear, -lowest), log_ticks(linear, highest)[1:]
    ticks = [0.0, *(-tick for tick in below[1 if len(below) < 5 else 2 :]), *above]  # the labels stay apart
    scale = alt.Scale(
        type="symlog", constant=linear, domain=[1.2 * lowest, max(1.5 * highest, 0.5 * linear)], nice=False
    )
    return scale, alt.Axis(values=ticks, format="~r", tickCount=len(ticks)), f"logarithmic beyond ±{linear:g}"


def linear_until(scores: Sequence[Array]) -> float | None:
    """Return the score drop up to which an axis of several units' scores is linear; None if all of it can be.

    All of it cannot if a few units would press the curves of the others flat.
    """
    drops = np.array([max(0.0, -float(values.min())) for values in scores])
    middle = float(np.median(drops))
    if middle <= 0 or drops.max() <= max(_LEAST, _SKEWED * middle):
        return None
    exponent = math.floor(math.log10(middle))
    return float(f"{max(step for step in (1, 2, 5) if step * 10**exponent <= middle * 1.001)}e{exponent}")


def log_ticks(linear: float, worst: float) -> list[float]:
    """Return ticks from 0 to ``worst``: powers of ten times ``linear``, with halves of a decade if these are few."""
    if worst < linear:
        return [0.0]
    decades = int(math.log10(worst / linear) + 1e-9)
    factors = [10.0**power for power in range(decades + 1)]
    if decades < 2:
        factors = [factor for factor in (1.0, 3.0, 10.0, 30.0) if factor * linear <= worst]
    elif decades > 4:
        factors = factors[:: math.ceil(decades / 4)]
    return [0.0, *(float(f"{linear * factor:.3g}") for factor in factors)]


def _colour_scale(scores: Sequence[Array], drops: Array) -> tuple[alt.Scale, alt.Legend, float]:
    """Return the mapping of drops to colours, its key, and the drop above which a colour is dark."""
    import altair as alt

    known = drops[np.isfinite(drops)]
    worst, best, linear = max(float(known.max()), _LEAST), min(float(known.min()), 0.0), linear_until(scores)
    if linear is not None and worst <= linear:
        linear = None
    # The colours are even steps of what the scale makes of the drops: log(1 + drop / linear), or the drop itself.
    span = worst if linear is None else math.log1p(worst / linear)
    stops = [share * span if linear is None else linear * math.expm1(share * span) for share in (0, 1 / 3, 2 / 3, 1)]
    better = [min(best, -stops[1])] if best < 0 else []
    scale = alt.Scale(
        type="linear" if linear is None else "symlog",
        constant=1 if linear is None else linear,
        domain=[*better, *stops],
        range=[*([SKY] if better else []), *_COLOURS],
        interpolate="rgb",
    )
    legend = alt.Legend(title="score drop", gradientLength=160)
    if linear is not None:
        ticks = [-tick for tick in reversed(log_ticks(linear, -best)) if tick] + log_ticks(linear, worst)
        legend = alt.Legend(title="score drop", gradientLength=160, values=ticks, format="~r")
    return scale, legend, stops[2] * 0.85


def _number(drop: float) -> str:
    """Return a drop in at most five characters or so, as many decimals as tell rows apart."""
    if abs(drop) < 0.0005:
        return "0"
    text = f"{drop:.3f}" if abs(drop) < 0.1 else f"{drop:.2f}" if abs(drop) < 10 else f"{drop:.3g}"
    return text.replace("-", "−", 1)
