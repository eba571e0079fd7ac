"""How channels become small in sparsity training, and what is left of them after pruning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.choices import PenaltyName
from autoprune.io.files import read_bytes
from autoprune.report.chart import Chart, names_axis, values
from autoprune.results import Result

if TYPE_CHECKING:
    import altair as alt
    from altair.typing import ChartType

_QUINTILES = ("20%", "40%", "60%", "80%", "largest")
_SIZE = {"width": 600, "height": 300}
_MOST_ROWS = 60  # units in one panel of bars
_ROW = 18  # pixels per unit
_MOMENTS = 120  # iterations that are drawn
_LINES = 64  # channels that are drawn one by one


_SYMBOLS = {PenaltyName.L1.value: "|γ|", PenaltyName.GROUP_LASSO.value: "‖w‖₂ / √n"}
"""How the scale of a channel is written, by the penalty that makes it small."""


def _record(folder: Path) -> Mapping[str, Any] | None:
    """Return what `autoprune.training.extensions.sparsity_record` has written in a folder, or None."""
    try:
        found = json.loads(read_bytes(folder / "sparsity.json"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("epochs") and found.get("penalty") in _SYMBOLS else None


def quintiles_chart(result: Result, folder: Path) -> Chart | None:
    """Return what 20, 40, 60, 80 and 100% of the scales do not exceed, a line each over a training's epochs."""
    import altair as alt

    if (record := _record(folder)) is None:
        return None
    symbol = _SYMBOLS[record["penalty"]]
    rows = [
        {"epoch": one["epoch"], "channels": name, "scale": value}
        for one in record["epochs"]
        for name, value in zip(_QUINTILES, one["quintiles"], strict=True)
    ]
    order = list(reversed(_QUINTILES))
    legend = alt.Legend(title="of the channels", symbolType="stroke", symbolStrokeWidth=3)
    figure = (
        alt.Chart(values(rows))
        .mark_line(point=True)
        .encode(
            x=_epochs([one["epoch"] for one in record["epochs"]]),
            y=alt.Y("scale:Q", title=symbol, scale=alt.Scale(domainMin=0)),
            color=alt.Color("channels:N", scale=alt.Scale(domain=order), legend=legend),
            tooltip=["channels:N", "epoch:Q", alt.Tooltip("scale:Q", title=symbol, format=".4g")],
        )
    )
    caption = f"A line is the {symbol} that this share of all channels does not exceed."
    return Chart("quintiles", result.title, figure.properties(**_SIZE), caption)


def watched_chart(result: Result, folder: Path) -> Chart | None:
    """Return every channel's scale in one layer over a training's iterations, a thin line each, and their median.

    Of more than 64 channels those are drawn that are evenly spread between the smallest and the largest at the end,
    and of more than 120 iterations as many, evenly spread.
    """
    import altair as alt

    record = _record(folder)
    if record is None or not record["iterations"]:
        return None
    noted, symbol = record["iterations"], _SYMBOLS[record["penalty"]]
    seen = np.unique(np.linspace(0, len(noted) - 1, _MOMENTS).round().astype(int))
    moments = [noted[place]["iteration"] for place in seen]
    table = np.array([noted[place]["scales"] for place in seen], dtype=np.float64)
    ranked, number = np.argsort(table[-1], kind="stable"), table.shape[1]
    drawn = ranked[np.linspace(0, number - 1, min(number, _LINES)).round().astype(int)].tolist()
    rows = [
        {"iteration": iteration, "median": median, **{str(one): found[one] for one in drawn}}
        for iteration, found, median in zip(moments, table.tolist(), np.median(table, axis=1).tolist(), strict=True)
    ]
    base = alt.Chart(values(rows)).encode(
        x=alt.X("iteration:Q", axis=alt.Axis(grid=False), scale=alt.Scale(nice=False))
    )
    lines = base.transform_fold([str(one) for one in drawn], as_=["channel", "scale"]).mark_line(
        strokeWidth=0.8, strokeOpacity=0.5
    )
    y, tooltip = alt.Scale(domainMin=0), [alt.Tooltip("channel:N"), alt.Tooltip("iteration:Q"), alt.Tooltip("scale:Q")]
    figure = alt.layer(
        lines.encode(y=alt.Y("scale:Q", title=symbol, scale=y), detail="channel:N", tooltip=tooltip),
        base.mark_line(style="accent", strokeWidth=2.5).encode(y=alt.Y("median:Q", title=symbol, scale=y)),
    )
    which = f"each of {number} channels" if number <= _LINES else f"{_LINES} of {number} channels"
    return Chart(
        "watched",
        f"{result.title}: {record['watched']}",
        figure.properties(**_SIZE),
        f"A thin line is one channel ({which}), orange is the median of all.",
    )


def histogram_chart(result: Result, folder: Path) -> Chart | None:
    """Return the histogram of all scales as a column of colours per epoch, on a logarithmic colour scale."""
    import altair as alt

    if (record := _record(folder)) is None:
        return None
    epochs, edges, symbol = [one["epoch"] for one in record["epochs"]], record["edges"], _SYMBOLS[record["penalty"]]
    counts = [one["counts"] for one in record["epochs"]]
    rows = [
        {"left": left, "right": right, "epoch": epoch, "low": low, "high": high, "share": count / max(sum(found), 1)}
        for epoch, left, right, found in zip(epochs, *_columns(epochs), counts, strict=True)
        for low, high, count in zip(edges[:-1], edges[1:], found, strict=True)
        if count
    ]
    least = min((float(str(row["share"])) for row in rows), default=1.0)
    scale = alt.Scale(type="log", domain=[min(least, 0.5), 1], scheme="viridis", reverse=True)
    legend = alt.Legend(title="of the channels", format="~%", gradientLength=200)
    x = _epochs(epochs, "left")
    figure = (
        alt.Chart(values(rows))
        .mark_rect()
        .encode(
            x=x,
            x2="right:Q",
            y=alt.Y("low:Q", title=symbol, scale=alt.Scale(domain=[edges[0], edges[-1]], nice=False)),
            y2="high:Q",
            color=alt.Color("share:Q", scale=scale, legend=legend),
            tooltip=[
                "epoch:Q",
                *(alt.Tooltip(f"{one}:Q", format=".3g") for one in ("low", "high")),
                alt.Tooltip("share:Q", format=".2%"),
            ],
        )
    )
    caption = "A column is the histogram over all channels after an epoch; empty: none."
    return Chart("histogram", result.title, figure.properties(**_SIZE), caption)


def channels_chart(result: Result, folder: Path) -> Chart | None:
    """Return how many channels each unit has and keeps after slimming, in panels of up to 60 units side by side."""
    import altair as alt

    found = result.figures.get("channels")
    if not found:
        return None
    before, after = found["before"], found["after"]
    rows = [
        {"unit": name, "dense": dense, "kept": kept, "text": f"{kept} of {dense}" if kept < dense else str(dense)}
        for name, dense in before.items()
        for kept in [after.get(name, dense)]
    ]
    panels = math.ceil(len(rows) / _MOST_ROWS)
    size = math.ceil(len(rows) / panels)
    width = {1: 560, 2: 340}.get(panels, 220)
    drawn = [_bars(rows[start : start + size], max(before.values()), width) for start in range(0, len(rows), size)]
    figure = drawn[0] if panels == 1 else alt.hconcat(*drawn, spacing=24)
    return Chart(
        "channels", result.title, figure, "Channels of each unit, input first: grey in the dense network, blue kept."
    )


def _bars(rows: Sequence[Mapping[str, Any]], most: int, width: int) -> ChartType:
    import altair as alt

    x = alt.Scale(domain=[0, most], nice=False)
    base = alt.Chart(values(rows)).encode(
        y=alt.Y("unit:N", title=None, scale=alt.Scale(domain=[row["unit"] for row in rows]), axis=names_axis(28)),
        tooltip=["unit:N", "kept:Q", "dense:Q"],
    )
    dense, kept = (alt.X(f"{one}:Q", title="channels", scale=x) for one in ("dense", "kept"))
    texts = base.mark_text(align="left", dx=4).encode(x=dense, text="text:N")
    bars = base.mark_bar(style="faint").encode(x=dense), base.mark_bar().encode(x=kept)
    return alt.layer(*bars, texts).properties(width=width, height=_ROW * len(rows))


def _epochs(epochs: Sequence[int], field: str = "epoch") -> alt.X:
    import altair as alt

    axis = alt.Axis(grid=False, values=list(epochs[:: max(1, round(len(epochs) / 10))]), format="d")
    return alt.X(f"{field}:Q", title="epoch (0 is the dense network)", scale=alt.Scale(nice=False), axis=axis)


def _columns(epochs: Sequence[int]) -> tuple[Sequence[float], Sequence[float]]:
    """Return the left and right ends of each epoch's column: half way to its neighbours."""
    middles = [(first + second) / 2 for first, second in pairwise(epochs)]
    first = 2 * epochs[0] - middles[0] if middles else epochs[0] - 0.5
    last = 2 * epochs[-1] - middles[-1] if middles else epochs[0] + 0.5
    return [first, *middles], [*middles, last]
