"""Several runs together: one table, and their candidates in one chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autoprune.metrics import format_amount, spec_of
from autoprune.report.chart import Chart, values
from autoprune.report.search_charts import candidates, front, share_domain
from autoprune.report.table import Table
from autoprune.report.tables import NOTHING
from autoprune.results import Result, Stage

_WIDTH, _HEIGHT = 720, 320  # pixels


def overview(results: Sequence[tuple[str, Result]]) -> list[Table | Chart]:
    """Return what shows several runs next to one another.

    Args:
        results: each with a name; results that share a name are numbered.
    """
    named = list(_numbered(results))
    found: list[Table | Chart | None] = [_table(named), _fronts(named)]
    return [one for one in found if one is not None]


def _numbered(results: Sequence[tuple[str, Result]]) -> Iterator[tuple[str, Result]]:
    names = [name for name, _ in results]
    for place, (name, result) in enumerate(results):
        yield (name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"), result


def _table(named: Sequence[tuple[str, Result]]) -> Table | None:
    """Return a row per run: its primary metric at each stage, and what its last network costs."""
    measured = [(name, result) for name, result in named if result.stages]
    if not measured:
        return None
    stages = list(dict.fromkeys(stage for _, result in measured for stage in result.stages))
    costs = [
        metric
        for metric in ("flops", "params", "latency", "energy")
        if any(_cost(result, metric) != NOTHING for _, result in measured)
    ]
    names = list(dict.fromkeys(result.metric_names[0] if result.metric_names else NOTHING for _, result in measured))
    header = ["run", *(["metric"] if len(names) > 1 else []), *stages, *(spec_of(metric).label for metric in costs)]
    rows = [
        [
            f"{name}: {result.title}".removesuffix(": "),
            *([result.metric_names[0] if result.metric_names else NOTHING] if len(names) > 1 else []),
            *(_primary(result.stages.get(stage)) for stage in stages),
            *(_cost(result, metric) for metric in costs),
        ]
        for name, result in measured
    ]
    return Table("All runs" + (f": {names[0]}" if len(names) == 1 else ""), header, rows)


def _primary(stage: Stage | None) -> str:
    return NOTHING if stage is None or stage.metrics is None else f"{stage.metrics.primary:.3f}"


def _cost(result: Result, metric: str) -> str:
    """Return what the network that a run made costs; nothing if it made none, as a comparison or a profile."""
    stages = list(result.stages.values())
    last = stages[-1].cost(metric)
    if len(stages) == 1 or result.command == "profile" or not last > 0:
        return NOTHING
    factor = stages[-1].speed_up(stages[0]).get(metric, float("nan"))
    return format_amount(metric, last) + (f" ({1 / factor:.0%})" if factor == factor else "")


def _fronts(named: Sequence[tuple[str, Result]]) -> Chart | None:
    """Return the fronts of score and FLOPs of all searches, over one another."""
    import altair as alt

    searched = [(name, result) for name, result in named if candidates(result) is not None]
    if len(searched) < 2:
        return None
    rows = []
    for name, result in searched:
        found, dense = candidates(result) or {}, result.stages["dense"].cost("flops")
        costs, scores = found["costs"]["flops"], found["scores"]
        rows += [{"run": name, "cost": costs[at] / dense, "score": scores[at]} for at in front(costs, scores)]
    shares = [float(row["cost"]) for row in rows]
    figure = (
        alt.Chart(values(rows))
        .mark_line(point=True, interpolate="step-after")
        .encode(
            x=alt.X(
                "cost:Q",
                title="FLOPs left",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(domain=share_domain(shares), nice=False),
            ),
            y=alt.Y("score:Q", title="score (0 is the dense network)", scale=alt.Scale(zero=False)),
            color=alt.Color("run:N", title=None, sort=None, legend=alt.Legend(orient="top")),
            tooltip=["run:N", alt.Tooltip("score:Q", format="+.4f"), alt.Tooltip("cost:Q", format=".1%")],
        )
        .properties(width=_WIDTH, height=_HEIGHT)
    )
    caption = "Candidates that no other one of their run beats in both; scores of different networks do not compare."
    return Chart("together", "Score against FLOPs", figure, caption)
