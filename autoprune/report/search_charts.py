"""The charts of a search and of a fine-tune: channels kept, scores, the front of score and cost, accuracy by epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt
from typing_extensions import TypedDict

from autoprune.errors import PolicyError
from autoprune.io.files import read_bytes
from autoprune.io.records import fits
from autoprune.metrics import format_amount, is_measured, spec_of
from autoprune.policy import Policy, PolicyUnit
from autoprune.report.chart import Chart, values
from autoprune.results import Result

if TYPE_CHECKING:
    import altair as alt
    from altair.typing import ChartType

_WIDTH, _HEIGHT, _ROW = 720, 260, 15  # pixels
_LABEL = 180  # pixels of a unit's name
_LAYERS = 24  # that the latency is shown of, each
_PANEL = 330  # pixels of one front
_NARROWEST = 0.1  # share of a cost that its axis spans at least: a projected search puts all candidates on the budget
_WORST = 0.05  # share of the scores, the worst, that may fall out of the charts


class _Point(TypedDict):
    epoch: Annotated[int, Gt(0)]
    value: float


def kept_chart(result: Result, folder: Path) -> Chart | None:
    """Return the channels that every unit keeps, and those that were removed."""
    import altair as alt

    units = _units(folder)
    if not units:
        return None
    bars = _with_pinned([_bar(unit) for unit in units], result.figures.get("pinned", ()))
    rows = [
        {**bar, "state": state, "channels": count, "place": place}
        for bar in bars
        for place, (state, count) in enumerate((("kept", bar["kept"]), ("removed", bar["of"] - bar["kept"])))
    ]
    states = ["kept", "removed"]
    figure = (
        alt.Chart(values(rows))
        .mark_bar()
        .encode(
            x=alt.X("channels:Q", title="channels", stack="zero", axis=alt.Axis(tickCount=8)),
            y=alt.Y("unit:N", title=None, sort=[bar["unit"] for bar in bars], axis=_names_axis()),
            color=alt.Color(
                "state:O", title=None, scale=alt.Scale(domain=states, range="category"), legend=_top_legend()
            ),
            opacity=alt.Opacity("state:O", title=None, scale=alt.Scale(domain=states, range=[1.0, 0.25])),
            order=alt.Order("place:O"),
            tooltip=["unit:N", "kept:Q", "of:Q", alt.Tooltip("share:Q", format=".0%"), alt.Tooltip("why:N")],
        )
        .properties(width=_WIDTH, height=_ROW * len(bars))
    )
    caption = "In the order of the forward pass; a unit is one decision of the search."
    if pinned := result.figures.get("pinned"):
        caption += f" {len(pinned)} layers keep all their channels; the table below says why."
    return Chart("kept", "Channels kept", figure, caption)


def scores_chart(result: Result, folder: Path) -> Chart | None:
    """Return the score of every candidate of a search in order, and the best so far."""
    import altair as alt

    found = candidates(result)
    if found is None:
        return None
    best, rows = -float("inf"), []
    for place, score in enumerate(found["scores"]):
        best = max(best, score)
        phase = "where the search starts" if place < found["prior"] else result.figures["search"]["strategy"]
        rows.append(
            {"evaluation": place + 1, "score": score, "best": best, "phase": phase, "chosen": place == found["chosen"]}
        )
    base = alt.Chart(values(rows)).encode(
        x=alt.X("evaluation:Q", title="candidates", axis=alt.Axis(grid=False, tickCount=10, format="d"))
    )
    scale = alt.Scale(domain=_focus(found["scores"]), clamp=True)
    dots = base.mark_circle(size=42, opacity=0.75).encode(
        y=alt.Y("score:Q", title="score (0 is the dense network)", scale=scale),
        color=alt.Color("phase:N", title=None, sort=None, legend=_top_legend()),
        tooltip=["evaluation:Q", alt.Tooltip("score:Q", format="+.4f"), "phase:N"],
    )
    line = base.mark_line(interpolate="step-after", style="muted", strokeWidth=1.5).encode(
        y=alt.Y("best:Q", scale=scale)
    )
    chosen = base.transform_filter("datum.chosen").mark_point(size=160, style="ink", filled=False, strokeWidth=2)
    figure = alt.layer(line, dots, chosen.encode(y=alt.Y("score:Q", scale=scale))).properties(
        width=_WIDTH, height=_HEIGHT
    )
    caption = "A dot is a candidate, the line the best so far, the ring the one that was chosen."
    if min(found["scores"]) < scale.domain[0]:
        caption += " Worse scores lie on the lower edge."
    return Chart("scores", "The search", figure, caption)


def fronts_chart(result: Result, folder: Path) -> Chart | None:
    """Return the score of every candidate against each of its costs, those that no other one beats as a line."""
    import altair as alt

    found = candidates(result)
    if found is None:
        return None
    predicted = dict.fromkeys(spec_of(metric).label for metric in found["costs"] if is_measured(metric))
    panels = [
        _front(metric, costs, found["scores"], found["chosen"], result) for metric, costs in found["costs"].items()
    ]
    return Chart(
        "fronts",
        "Score against cost",
        alt.concat(*panels, columns=2),
        "The line joins candidates that no other one beats in both; the ring is the one that was chosen."
        + "".join(f" {label.capitalize()} is predicted." for label in predicted),
    )


def _front(metric: str, costs: Sequence[float], scores: Sequence[float], chosen: int, result: Result) -> ChartType:
    import altair as alt

    best = set(front(costs, scores))
    dense = result.stages["dense"].cost(metric)
    shares = [cost / dense for cost in costs]
    rows = [
        {
            "cost": share,
            "amount": format_amount(metric, cost),
            "score": score,
            "front": place in best,
            "chosen": place == chosen,
        }
        for place, (share, cost, score) in enumerate(zip(shares, costs, scores, strict=True))
    ]
    title = (metric if "@" in metric else spec_of(metric).label) + " left"
    scale = alt.Scale(domain=_focus(scores), clamp=True)
    base = alt.Chart(values(rows)).encode(
        x=alt.X(
            "cost:Q", title=title, axis=alt.Axis(format="%"), scale=alt.Scale(domain=share_domain(shares), nice=False)
        ),
        y=alt.Y("score:Q", title="score", scale=scale),
    )
    dots = base.mark_circle(size=36, opacity=0.6).encode(
        tooltip=[alt.Tooltip("score:Q", format="+.4f"), alt.Tooltip("amount:N", title=title.removesuffix(" left"))]
    )
    line = base.transform_filter("datum.front").mark_line(style="accent", interpolate="step-after", strokeWidth=1.5)
    ring = base.transform_filter("datum.chosen").mark_point(size=160, style="ink", filled=False, strokeWidth=2)
    return alt.layer(dots, line, ring).properties(width=_PANEL, height=_HEIGHT)


def layer_latency_chart(result: Result, folder: Path) -> Chart | None:
    """Return what each layer takes of the predicted latency, before and after pruning, those that took most."""
    import altair as alt

    found = result.figures.get("layer_latency")
    if not found:
        return None
    ranked = sorted(found, key=lambda one: -one["dense"])
    shown, others = ranked[:_LAYERS], ranked[_LAYERS:]
    if others:
        sums = {name: sum(one[name] for one in others) for name in ("dense", "pruned")}
        shown = [*shown, {"layer": f"{len(others)} other layers", **sums}]
    rows = [
        {"layer": one["layer"], "network": network, "ms": one[network]}
        for one in shown
        for network in ("dense", "pruned")
    ]
    figure = (
        alt.Chart(values(rows))
        .mark_bar()
        .encode(
            x=alt.X("ms:Q", title="milliseconds", axis=alt.Axis(tickCount=8)),
            y=alt.Y("layer:N", title=None, sort=[one["layer"] for one in shown], axis=_names_axis()),
            yOffset=alt.YOffset("network:N"),
            color=alt.Color("network:N", title=None, legend=_top_legend()),
            tooltip=["layer:N", "network:N", alt.Tooltip("ms:Q", format=".3f")],
        )
        .properties(width=_WIDTH, height=1.6 * _ROW * len(shown))
    )
    caption = "By the predictor that was fitted to whole networks; operations without weights are not in it."
    return Chart("layer_latency", "Latency by layer", figure, caption)


def epochs_chart(result: Result, folder: Path) -> Chart | None:
    """Return the primary metric after every epoch of the fine-tune, with those of the dense and the pruned network."""
    import altair as alt

    name = result.metric_names[0] if result.metric_names else ""
    points = _epochs(folder, name)
    if len(points) < 2:
        return None
    before = [
        {"network": stage, "value": measured.primary}
        for stage in ("dense", "pruned")
        if stage in result.stages and (measured := result.stages[stage].metrics) is not None
    ]
    y = alt.Y("value:Q", title=name, scale=alt.Scale(zero=False))
    line = (
        alt.Chart(values(points))
        .mark_line(point=True)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(values=_ticks(points[-1]["epoch"]), format="d", grid=False)),
            y=y,
            tooltip=["epoch:Q", alt.Tooltip("value:Q", title=name, format=".3f")],
        )
    )
    levels = alt.Chart(values(before)).mark_rule(strokeDash=[5, 4], strokeWidth=1.2).encode(y=y)
    words = alt.Chart(values(before)).mark_text(align="left", dx=4, dy=-7).encode(y=y, x=alt.value(0), text="network:N")
    figure = alt.layer(levels, words, line).properties(width=_WIDTH, height=_HEIGHT)
    return Chart(
        "epochs",
        "Fine-tuning",
        figure,
        f"{name} on the validation split after every epoch; dashed: before the fine-tune. What ships has its "
        "batch norm recalibrated after the last epoch.",
    )


def candidates(result: Result) -> Mapping[str, Any] | None:
    """Return what a search scored, see `autoprune.workflows.shown.search_figures`; None if nothing was."""
    found: Mapping[str, Any] = result.figures.get("search", {}).get("candidates", {})
    return found if found.get("scores") else None


def _units(folder: Path) -> Sequence[PolicyUnit]:
    """Return the units in a run's policy; none without one."""
    try:
        return Policy.load(folder / "policy.json").units
    except PolicyError:
        return ()


def _bar(unit: PolicyUnit) -> dict[str, Any]:
    return {
        "unit": unit.name,
        "kept": unit.keep,
        "of": unit.channels,
        "share": unit.ratio,
        "why": "decided by the search",
    }


def _with_pinned(bars: Sequence[dict[str, Any]], pinned: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the bars of units with those of pinned layers in between, each with its reason."""
    found = list(bars)
    for one in reversed(pinned):
        bar = {"unit": one["layer"], "kept": one["channels"], "of": one["channels"], "share": 1.0, "why": one["why"]}
        found.insert(one["units_before"], bar)
    return found


def _epochs(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return a metric after every epoch of a run's fine-tune that has it; empty if it was not noted, or not legibly."""
    try:
        found = [
            {"epoch": one["epoch"], "value": one["accuracy"]["metrics"][name]}
            for one in json.loads(read_bytes(folder / "finetune" / "epochs.json"))
            if one["accuracy"] and name in one["accuracy"]["metrics"]
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return found if fits(found, Sequence[_Point]) else []


def _focus(scores: Sequence[float]) -> list[float]:
    """Return the range of scores that a chart shows: without the worst few, which would press the rest flat."""
    ranked = sorted(scores)
    low, high = ranked[int(_WORST * len(ranked))], ranked[-1]
    pad = 0.08 * max(high - low, 1e-3)
    return [low - pad, high + pad]


def front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Return the places of the candidates that no other one beats in both cost and score, the cheapest first."""
    best, found = -float("inf"), []
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -scores[place])):
        if scores[place] > best:
            best = scores[place]
            found.append(place)
    return found


def share_domain(shares: Sequence[float]) -> list[float]:
    """Return the range that an axis of costs' shares spans."""
    spread = max(max(shares) - min(shares), _NARROWEST)
    centre = (max(shares) + min(shares)) / 2
    return [max(centre - 0.55 * spread, 0.0), centre + 0.55 * spread]


def _ticks(last: int) -> list[int]:
    """Return at most about a dozen epochs to label."""
    step = max(1, round(last / 10))
    return [1, *range(step, last + 1, step)] if step > 1 else list(range(1, last + 1))


def _names_axis() -> alt.Axis:
    import altair as alt

    return alt.Axis(labelLimit=_LABEL, ticks=False, domain=False)


def _top_legend() -> alt.Legend:
    import altair as alt

    return alt.Legend(orient="top", direction="horizontal")
