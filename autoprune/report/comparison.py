"""Strategies next to each other: what they found, how it fine-tunes, and whether scores foretell that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.report.chart import Chart, names_axis, shortened, values
from autoprune.report.tables import NOTHING, compared_rows, primaries
from autoprune.results import Compared, Result

if TYPE_CHECKING:
    import altair as alt
    from altair.typing import ChartType

LEAST_POINTS = 3
"""Networks from which on a rank correlation says something."""

_ROW = 30  # pixels
_SPREAD = 24  # pixels over which the seeds of a row are spread
_GAP = " "  # the row between strategies and references
_LONGEST = 38  # characters of a row's name
_LABEL = 24  # characters of a network's name
_SIZE = (680, 440)  # of the correlation's plot, in pixels
_CHARACTER, _LINE, _DOT = 6.2, 13.0, 5.0  # pixels: a label's character and height, half a dot
_PLACES = ((9.0, 0.0), (-9.0, 0.0), (0.0, -13.0), (0.0, 13.0), (9.0, -11.0), (9.0, 11.0), (-9.0, -11.0), (-9.0, 11.0))
"""Places of a label next to its dot: pixels to the right (its left end; its right end if negative; its middle if 0)
and down (its middle)."""


def comparison_chart(result: Result, folder: Path) -> Chart | None:
    """Return scores and metrics of everything that was compared: a dot per seed, a bar at the mean.

    Strategies stand above, the best mean score first; the dense network and the references stand below.
    """
    import altair as alt

    searched, references = compared_rows(result)
    if not searched:
        return None
    metric, name, dense = next(iter(searched[0].costs)), result.metric_names[0], result.stages["dense"].metrics
    shown = [*searched, Compared("dense", [dense] if dense is not None else [], [], {metric: [1.0]}), *references]
    domain = [one.name for one in shown]
    domain.insert(len(searched), _GAP)
    rows = [row for one in shown for row in _seeds(one)]
    level = {"row": "dense", "level": dense.primary if dense is not None else None}
    columns = [
        {"row": one.name, f"{metric} of dense": _share(one.costs[metric]), "search time": duration(one.seconds)}
        for one in shown
    ]
    figure = alt.hconcat(
        _strip(rows, ["score"], domain, title="score (0 is the dense network)"),
        _strip([*rows, level], ["before", "after"], domain, title=f"{name} (right is better)"),
        *(_texts(columns, heading, domain) for heading in list(columns[0])[1:]),
        spacing=12,
    )
    caption = (
        "A dot is one seed (hollow before, filled after fine-tuning), a bar the mean of the seeds, the dashed line the "
        "dense network."
    )
    return Chart("comparison", result.title, figure, caption)


def _strip(
    rows: Sequence[Mapping[str, object]], measures: Sequence[str], domain: Sequence[str], *, title: str
) -> ChartType:
    """Return a panel with the dots and means of some measures, and with the names of the rows if it is the first."""
    import altair as alt

    first = "score" in measures
    axis = names_axis(_LONGEST)
    axis.labels, axis.grid, axis.values = first, True, [name for name in domain if name != _GAP]
    scale = alt.Scale(type="band", domain=domain, padding=0)
    base = alt.Chart(values(rows)).encode(y=alt.Y("row:N", title=None, scale=scale, axis=axis))
    layers: list[alt.Chart] = []
    for measure in measures:
        field: dict[str, Any] = {
            "title": title,
            "scale": alt.Scale(zero=False),
            "axis": alt.Axis(grid=False, tickCount=6),
        }
        tooltip = ["row:N", "seed:N", alt.Tooltip(f"{measure}:Q", format="+.4f" if first else ".4f")]
        dots = (
            base.mark_point(size=44, filled=False, style="hollow")
            if measure == "before"
            else base.mark_point(size=44, fillOpacity=0.85)
        )
        layers.append(base.mark_tick(thickness=2.5, size=20).encode(x=alt.X(f"mean({measure}):Q", **field)))
        layers.append(
            dots.encode(x=alt.X(f"{measure}:Q", **field), yOffset=alt.YOffset("offset:Q", scale=None), tooltip=tooltip)
        )
    if not first:
        dense = alt.Tooltip("level:Q", title="dense network", format=".4f")
        line = alt.Chart(values(rows)).mark_rule(style="ink", strokeDash=[4, 3]).encode(x="level:Q", tooltip=dense)
        layers.insert(0, line)
    return alt.layer(*layers).properties(width=300, height=_ROW * len(domain))


def _texts(rows: Sequence[Mapping[str, object]], heading: str, domain: Sequence[str]) -> ChartType:
    """Return a column of texts next to the panels."""
    import altair as alt

    y = alt.Y("row:N", scale=alt.Scale(type="band", domain=domain, padding=0), axis=None)
    title = alt.TitleParams(
        heading.split(" ", 1), anchor="end", frame="group", fontSize=11, fontWeight="normal", offset=4
    )
    # Under a name of ours: Altair takes a colon, as in latency@cuda:0, for the mark before a type.
    shown = [{"row": row["row"], "text": row[heading]} for row in rows]
    column: alt.Chart = alt.Chart(values(shown)).properties(width=56, height=_ROW * len(domain), title=title)
    texts: ChartType = column.mark_text(align="right").encode(y=y, x=alt.value(56), text="text:N")
    return texts


def _seeds(row: Compared) -> Iterator[Mapping[str, object]]:
    """Return what was measured of a strategy or reference, by seed."""
    measured = {"score": row.scores, "before": primaries(row.before), "after": primaries(row.after)}
    number = max(map(len, measured.values()))
    for place in range(number):
        seed = row.seeds[place] if place < len(row.seeds) else place
        offset = _ROW / 2 + _SPREAD * (place - (number - 1) / 2) / number  # equal ones stay countable
        yield {"row": row.name, "seed": seed, "offset": offset} | {
            name: found[place] for name, found in measured.items() if place < len(found)
        }


def _share(costs: Sequence[float]) -> str:
    known = [cost for cost in costs if math.isfinite(cost)]
    return f"{100 * np.mean(known):.1f} %" if known else NOTHING


def duration(seconds: Sequence[float]) -> str:
    """Return the mean of wall times as a user says it: ``45 s``, ``12 min``, ``3.4 h``; a dash if there is none."""
    mean = float(np.mean(seconds)) if len(seconds) else math.nan
    if not math.isfinite(mean):
        return NOTHING
    if mean < 99.5:
        return f"{mean:.0f} s"
    return f"{mean / 60:.0f} min" if mean < 99.5 * 60 else f"{mean / 3600:.1f} h"


def correlation_chart(result: Result, folder: Path) -> Chart | None:
    """Return fine-tuned networks by their score and their primary metric, each with its name."""
    import altair as alt

    found = result.figures.get("correlation")
    if found is None or found["networks"] < LEAST_POINTS:
        return None
    named = zip(found["names"], found["points"], strict=True)
    known = [(name, *point) for name, point in named if all(map(math.isfinite, point))]
    if not known:
        return None
    labels = [shortened(name, _LABEL) for name, *_ in known]
    places = label_places(labels, np.array([point for _, *point in known]))
    rows = [
        {"network": name, "score": score, "metric": metric, "label": label, "dx": dx, "dy": dy, "align": align}
        for (name, score, metric), label, (dx, dy, align) in zip(known, labels, places, strict=True)
    ]
    metric = result.metric_names[0]
    axis, scale = alt.Axis(tickCount=6), alt.Scale(zero=False, nice=False, padding=24)
    base = alt.Chart(values(rows)).encode(
        x=alt.X("score:Q", title="score (0 is the dense network, right is better)", scale=scale, axis=axis),
        y=alt.Y("metric:Q", title=f"{metric} after fine-tuning", scale=scale, axis=axis),
        tooltip=[
            "network:N",
            alt.Tooltip("score:Q", format="+.4f"),
            alt.Tooltip("metric:Q", title=metric, format=".4f"),
        ],
    )
    texts = [
        base.transform_filter(f"datum.align == '{align}'")
        .mark_text(align=align, baseline="middle", dx=alt.expr("datum.dx"), dy=alt.expr("datum.dy"))
        .encode(text="label:N")
        for align in ("center", "left", "right")
        if align in {one for *_, one in places}  # an empty layer is a warning of the browser
    ]
    figure = alt.layer(base.mark_point(size=60, fillOpacity=0.85), *texts).properties(width=_SIZE[0], height=_SIZE[1])
    rank = "undefined" if math.isnan(found["spearman"]) else f"{found['spearman']:.2f}".replace("-", "−")
    caption = f"A dot is one fine-tuned network: Spearman rank correlation {rank}, {len(known)} networks."
    return Chart("correlation", result.title, figure, caption)


def label_places(names: Sequence[str], points: np.ndarray) -> list[tuple[float, float, str]]:
    """Return where each dot's label stands so that few labels cover other labels or dots.

    Args:
        names: the labels.
        points: the dots, shape (names, 2), in any unit.

    Returns:
        pixels to the right of the dot, pixels below it, and which end of the label is there.
    """
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    shares = (points - low) / np.where(span > 0, span, 1.0)
    dots = np.stack([shares[:, 0] * _SIZE[0], (1 - shares[:, 1]) * _SIZE[1]], axis=1)
    boxes = [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in dots.tolist()]
    found = []
    for name, (x, y) in zip(names, dots.tolist(), strict=True):
        width = _CHARACTER * len(name)
        tried = []
        for dx, dy in _PLACES:
            left = x + dx - (0 if dx > 0 else width if dx < 0 else width / 2)
            box = (left, y + dy - _LINE / 2, left + width, y + dy + _LINE / 2)
            outside = max(0.0, -left - 20) + max(0.0, left + width - _SIZE[0] - 20)
            tried.append((outside * _LINE + sum(_overlap(box, other) for other in boxes), box, dx, dy))
        _, box, dx, dy = min(tried, key=lambda one: one[0])  # the first of equals
        boxes.append(box)
        found.append((dx, dy, "left" if dx > 0 else "right" if dx < 0 else "center"))
    return found


_Box = tuple[float, float, float, float]


def _overlap(one: _Box, other: _Box) -> float:
    """Return the area that two boxes (left, top, right, bottom) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
