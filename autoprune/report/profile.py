"""Where a network's latency goes, which widths are free, and how well latency is predicted.

Each section reads the figures of the result, which `autoprune.workflows.profile_file` describes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.latency.layers import ShareSource
from autoprune.metrics import format_amount
from autoprune.report.chart import Chart, names_axis, short_labels, values
from autoprune.report.table import Table
from autoprune.results import Result

SHOWN_LAYERS, SHOWN_UNITS, SHOWN_WIDTHS = 15, 10, 12

_BLOCKS = 26  # rows of the picture of layers
_DRAWN_UNITS = 20
_ROW = 22  # pixels
_BAND = 0.05  # relative error that is shaded around the diagonal
_HOW = {
    ShareSource.ALONE.value: "layers measured alone, paired with the whole network",
    ShareSource.MODEL.value: "shares modelled from each layer's work; the whole is measured",
}


_ROLES = {
    "fitted": "the predictor was fitted to",
    "held_out": "held out of the fit",
    "fresh": "fresh, measured afterwards",
}
"""What a measured network was for."""


def layers_chart(result: Result, folder: Path) -> Chart | None:
    """Return the latency of every block of layers, a segment per layer, next to its share of the FLOPs.

    All segments together are the whole latency.
    """
    import altair as alt

    if "layers" not in result.figures:
        return None
    layers, flops = result.figures["layers"], _flops(result)
    rows = _segments(layers, flops)
    members: dict[str, list[Layers]] = {}
    for one in rows:
        members.setdefault(one["block"], []).append(one)
    sums = [
        {"block": block, **_total(members[block])} for block in sorted(members, key=lambda one: -_share(members[one]))
    ]
    names = [one["block"] for one in sums]
    y = alt.Y("block:N", title=None, scale=alt.Scale(domain=names, paddingInner=0.25), axis=names_axis(44))
    percent = alt.Axis(format="%", tickCount=6)
    share, work = (alt.Tooltip(f"{one}:Q", format=".1%", title=of) for one, of in _SHARES.items())
    segments = (
        alt.Chart(values(rows))
        .mark_bar(style="segment", strokeWidth=0.7)
        .encode(
            x=alt.X("share:Q", title=None, axis=percent),
            y=y,
            order=alt.Order("share:Q", sort="descending"),
            tooltip=["layer:N", "operation:N", alt.Tooltip("milliseconds:Q", format=".3f"), share, work],
        )
    )
    whole = alt.Chart(values(sums)).encode(y=y)
    marks = whole.mark_tick(style="accent", thickness=3, size=_ROW - 4).encode(
        x="flops_share:Q", tooltip=["block:N", work]
    )
    texts = whole.mark_text(align="left", dx=6).encode(x=alt.X("right:Q"), text="text:N")
    figure = alt.layer(segments, marks, texts).properties(width=560, height=_ROW * len(names))
    caption = (
        "Bars are shares of the latency, a segment per layer, and add up to the whole; orange marks are shares of the "
        f"FLOPs; {_HOW[layers['source']]}."
    )
    return Chart("layers", result.title, figure, caption)


def _segments(layers: Mapping[str, Any], flops: float) -> list[dict[str, Any]]:
    """Return the segments of the bars: every layer with its block, and each part of the latency that is no layer."""
    rows = [
        {
            "block": block,
            "layer": one["name"],
            "operation": f"{one['operation']}  {one['c_in']} → {one['c_out']}" if "operation" in one else None,
            **{name: one[name] for name in ("share", "milliseconds", "flops_share")},
        }
        for block, members in blocks(layers["rows"], _BLOCKS - len(layers["rest"])).items()
        for one in members
    ]
    return rows + [
        {"block": one["name"], "layer": one["name"], "flops_share": 0.0 if place else layers["rest_flops"] / flops}
        | {name: one[name] for name in ("share", "milliseconds")}
        for place, one in enumerate(layers["rest"])
    ]


_SHARES = {"share": "of the latency", "flops_share": "of the FLOPs"}


def _total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    share, work, time = (math.fsum(one[name] for one in rows) for name in ("share", "flops_share", "milliseconds"))
    return {"flops_share": work, "right": max(share, work), "text": f"{share:.1%}, {time:.2f} ms"}


Layers = Mapping[str, Any]
"""A layer of a profile, by its figures' names."""


def blocks(rows: Sequence[Layers], most: int) -> dict[str, Sequence[Layers]]:
    """Return layers grouped by the beginning of their names: few enough to be drawn, as fine as that allows.

    The block with most of the latency is divided first. If even the coarsest blocks are too many, those with the
    least latency are one.

    Args:
        rows: the layers, each with its name and share.
        most: blocks that there may be.
    """
    found: dict[str, Sequence[Layers]] = {"": rows} if rows else {}
    divisible = list(found)
    while divisible:
        block = max(divisible, key=lambda name: _share(found[name]))
        divisible.remove(block)
        parts = _parts(block, found[block])
        if len(parts) > 1 and (not block or len(found) - 1 + len(parts) <= most):
            del found[block]
            found |= parts
            divisible += parts
    ranked = sorted(found, key=lambda block: -_share(found[block]))
    shown = ranked if len(ranked) <= most else ranked[: most - 1]
    others = [one for block in ranked[len(shown) :] for one in found[block]]
    named = {_named(block, found[block]): found[block] for block in shown}
    if others:
        name = f"{len(others)} other layers"
        sums = {field: math.fsum(one[field] for one in others) for field in ("share", "milliseconds", "flops_share")}
        named[name] = [{"name": name, **sums}]
    return named


def _parts(block: str, layers: Sequence[Layers]) -> dict[str, Sequence[Layers]]:
    """Return a block's layers by the next words of their names that differ; one part if none do."""
    found: dict[str, list[Layers]] = {}
    known = block.count(".") + 1 if block else 0
    longest = max(one["name"].count(".") for one in layers) + 1
    while len(found) < 2 and known < longest:
        known, found = known + 1, {}
        for one in layers:
            found.setdefault(".".join(one["name"].split(".")[:known]), []).append(one)
    return dict(found)


def _named(block: str, layers: Sequence[Layers]) -> str:
    name = block if len({one["name"] for one in layers}) > 1 else layers[0]["name"]
    return name if len(layers) == 1 else f"{name}  ({len(layers)} layers)"


def _share(layers: Sequence[Layers]) -> float:
    return math.fsum(one["share"] for one in layers)


def staircase_chart(result: Result, folder: Path) -> Chart | None:
    """Return latency by the width of the units that matter most, a panel each, all on one y axis."""
    import altair as alt

    found = result.figures.get("staircases")
    if not found:
        return None
    drawn = found[:_DRAWN_UNITS]
    rows = [
        {"unit": one["unit"], "channels": width, "predicted": predicted, "measured": measured}
        | {"worth": width in one["worth"]}
        for one in drawn
        for width, predicted, measured in zip(
            one["widths"], one["predicted"], one["measured"] or one["predicted"], strict=True
        )
    ]
    measured = any(one["measured"] for one in drawn)
    base = alt.Chart().encode(
        x=alt.X(
            "channels:Q", title=None, scale=alt.Scale(zero=True, nice=False), axis=alt.Axis(tickCount=3, grid=False)
        )
    )
    scale = alt.Scale(zero=False)
    y, predicted = (alt.Y(f"{one}:Q", title="ms", scale=scale, axis=alt.Axis(tickCount=4)) for one in _TIMES)
    layers = [base.mark_line(style="muted", strokeDash=[4, 2], strokeWidth=1).encode(y=predicted)] if measured else []
    # A width costs what is drawn at its dot; the line before it is level, as a device that computes in blocks is.
    layers.append(base.mark_line(interpolate="step-before").encode(y=y))
    times = [alt.Tooltip(f"{one}:Q", format=".3f", title=f"{one}, ms") for one in (_TIMES if measured else _TIMES[1:])]
    worth = alt.Tooltip("worth:N", title="worth choosing")
    dots = base.encode(y=y, tooltip=["unit:N", "channels:Q", *times, worth])
    layers.append(dots.mark_point(size=18))
    layers.append(dots.transform_filter("datum.worth").mark_point(style="accent", size=40))
    names = [one["unit"] for one in drawn]
    header = alt.Header(title=None, labelExpr=short_labels(25), labelPadding=3)
    panels = (
        alt.layer(*layers, data=values(rows))
        .properties(width=150, height=100)
        .facet(facet=alt.Facet("unit:N", sort=names, header=header), columns=5, spacing={"row": 12, "column": 14})
        .resolve_scale(x="independent")
    )
    how = "layers measured alone, dashed as predicted" if measured else "predicted"
    caption = (
        f"Latency in ms by the channels of one unit, all others dense ({how}), of the {len(drawn)} of {len(found)} "
        "units that matter most; orange widths are worth choosing: the widest of a step."
    )
    return Chart("staircase", result.title, panels, caption)


_TIMES = ("measured", "predicted")


def prediction_chart(result: Result, folder: Path) -> Chart | None:
    """Return predicted against measured latency, a mark per network, with the diagonal and ±5% around it."""
    import altair as alt

    found = result.figures.get("predictor", {}).get("networks", ())
    known = [one for one in found if all(map(math.isfinite, (one["predicted"], one["measured"])))]
    if not known:
        return None
    roles = {one: _ROLES[one] for one in dict.fromkeys(one["role"] for one in known)}
    legend = {role: f"{words} ({sum(one['role'] == role for one in known)})" for role, words in roles.items()}
    rows = [
        {"network": legend[one["role"]], "measured": one["measured"], "predicted": one["predicted"]}
        | {"off": one["predicted"] / one["measured"] - 1 if one["measured"] else None}
        for one in known
    ]
    times = [one[name] for one in known for name in _TIMES]
    margin = 0.05 * (max(times) - min(times)) or 0.05 * max(times)
    low, high = max(min(times) - margin, 0.0), max(times) + margin
    ends = [
        {"measured": t, "predicted": t, "low": max(t * (1 - _BAND), low), "high": min(t * (1 + _BAND), high)}
        for t in np.linspace(low, high, 101).tolist()
    ]
    scale = alt.Scale(domain=[low, high], nice=False)
    x, y = (
        alt.X("measured:Q", title="measured, ms", scale=scale),
        alt.Y("predicted:Q", title="predicted, ms", scale=scale),
    )
    line = alt.Chart(values(ends)).encode(x=x)
    band = line.mark_area(style="faint", fillOpacity=0.6, opacity=1).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    names, tooltip = (
        list(legend.values()),
        [alt.Tooltip(f"{one}:Q", format=".3f", title=f"{one}, ms") for one in _TIMES],
    )
    key = alt.Legend(title=None, orient="bottom", direction="vertical")
    marks = (
        alt.Chart(values(rows))
        .mark_point(size=60, fillOpacity=0.9)
        .encode(
            x=x,
            y=y,
            color=alt.Color("network:N", scale=alt.Scale(domain=names), legend=key),
            shape=alt.Shape("network:N", scale=alt.Scale(domain=names), legend=key),
            tooltip=["network:N", *tooltip, alt.Tooltip("off:Q", format="+.1%")],
        )
    )
    figure = alt.layer(band, line.mark_line(style="muted", strokeWidth=1).encode(y=y), marks)
    caption = "; ".join(
        ["A mark is one network, on the line both times are equal, ±5% is shaded", *error_lines(result)]
    )
    return Chart("predicted", result.title, figure.properties(width=480, height=440), f"{caption}.")


def layers_table(result: Result, folder: Path) -> Table | None:
    """Return the layers that take most of the latency, the others summed, and what is no layer."""
    if "layers" not in result.figures:
        return None
    layers, flops = result.figures["layers"], _flops(result)
    shown, others = layers["rows"][:SHOWN_LAYERS], layers["rows"][SHOWN_LAYERS:]
    rows = [
        [
            one["name"],
            one["operation"],
            f"{one['c_in']} → {one['c_out']}",
            f"{one['height']}×{one['width']}",
            *_amounts(one, flops),
        ]
        for one in shown
    ]
    if others:
        total = {name: sum(one[name] for one in others) for name in ("flops", "bytes", "share", "milliseconds")}
        rows.append([f"{len(others)} more layers", "", "", "", *_amounts(total, flops)])
    for index, one in enumerate(layers["rest"]):
        fixed = 0.0 if index else layers["rest_flops"]
        rows.append([one["name"], "", "", "", *_amounts({**one, "flops": fixed}, flops)])
    header = ["layer", "operation", "channels", "output", "FLOPs", "of all", "moved", "latency", "share"]
    return Table(f"Where the latency goes: {_HOW[layers['source']]}", header, rows)


def staircase_table(result: Result, folder: Path) -> Table | None:
    """Return the units whose width matters most, with the widths worth choosing."""
    if "staircases" not in result.figures:
        return None
    found = result.figures["staircases"]
    rows = [
        [
            one["unit"],
            str(one["widths"][-1]),
            f"{one['range']:.3f} ms",
            str(len(one["free"])),
            listed_widths(one["worth"]) if one["free"] else "all",
        ]
        for one in found[:SHOWN_UNITS]
    ]
    modelled = result.figures["layers"]["source"] == ShareSource.MODEL.value
    how = "predicted" if modelled else "its layers measured alone"
    title = f"Latency by the width of one unit, {how}: the {len(rows)} of {len(found)} units that matter most"
    return Table(title, ["unit", "channels", "range", "free widths", "widths worth choosing"], rows)


def error_lines(result: Result) -> list[str]:
    """Return how far predictions are off: of networks held out, and of fresh ones if there are any."""
    named = {"held_out": "networks held out", "check": "fresh networks"}
    found = {which: result.figures["predictor"][name] for name, which in named.items()}
    return [
        f"off by {one['median_abs_rel']:.1%} (median; p90 {one['p90_abs_rel']:.1%}, Spearman {one['spearman']:.3f}, "
        f"{one['n']} {which})"
        for which, one in found.items()
        if one is not None
    ]


def listed_widths(widths: Sequence[int]) -> str:
    """Return widths as a column of a table has room for: the first and the last ones, if they are many."""
    words = list(map(str, widths))
    if len(words) > SHOWN_WIDTHS:
        half = SHOWN_WIDTHS // 2
        words[half:-half] = ["…"]
    return " ".join(words)


def _flops(result: Result) -> float:
    """Return the FLOPs of one run."""
    layers = result.figures["layers"]
    return float(sum(one["flops"] for one in layers["rows"]) + layers["rest_flops"])


def _amounts(row: Mapping[str, Any], flops: float) -> list[str]:
    return [
        format_amount("flops", row["flops"]) if row["flops"] else "",
        f"{row['flops'] / flops:.1%}" if row["flops"] else "",
        format_amount("size", row["bytes"]) if "bytes" in row else "",
        f"{row['milliseconds']:.3f} ms",
        f"{row['share']:.1%}",
    ]
