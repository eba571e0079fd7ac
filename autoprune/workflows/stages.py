"""What a network is at each stage of a run, and the table and summary made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from autoprune.budget import Limit, format_amount, is_latency, spec_of
from autoprune.models._base import Accuracy, AccuracyNames, Adapter
from autoprune.workflows.folder import RunFolder

_ORDER = ("params", "channels", "flops", "size")
"""The metrics that a table begins with; others that there are follow."""


@dataclass(frozen=True)
class Stage:
    """One network of a run, measured.

    Attributes:
        accuracy: on the validation split, or None where it was not measured.
        costs: by metric, in its unit; see `autoprune.budget.METRICS`.
        latency_ms: median, p10, p90 in milliseconds, with runs, device, runtime, precision and batch; None where it
            was not measured.
        other_latency_ms: the same by metric, for each other runtime or device that the budget names.
    """

    accuracy: Accuracy | None
    costs: Mapping[str, float]
    latency_ms: Mapping[str, Any] | None
    other_latency_ms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, accuracy: Accuracy | None, costs: Mapping[str, float], latencies: Mapping[str, Mapping[str, Any]]
    ) -> Stage:
        """Join what was measured of one network; costs and latencies by metric."""
        others = {metric: latency for metric, latency in latencies.items() if metric != "latency"}
        values = {metric: round(costs[metric]) if spec_of(metric).whole else costs[metric] for metric in _sorted(costs)}
        return cls(accuracy, values, latencies.get("latency"), others)

    def cost(self, metric: str) -> float:
        """Return what the stage costs under a budget's metric."""
        if is_latency(metric):
            latency = self.latency_ms if metric == "latency" else self.other_latency_ms[metric]
            return float(latency["median"]) if latency is not None else float("nan")
        return float(self.costs[metric])


def validated(name: str, module: nn.Module, adapter: Adapter, folder: RunFolder) -> Accuracy:
    """Return a network's accuracy on the validation split; measured once in a run.

    Args:
        name: of the network, which tells it from the others of the run.
        module: the network.
        adapter: has the data.
        folder: the run's.
    """
    return Accuracy(**folder.once("validation", lambda: asdict(adapter.validate(module)), name))


def held(limits: Sequence[Limit], dense: Stage, final: Stage) -> list[dict[str, Any]]:
    """Return what became of every limit: requested, limit, dense, achieved, satisfied."""
    rows = []
    for limit in limits:
        most, achieved = limit.resolve(dense.cost(limit.metric)), final.cost(limit.metric)
        rows.append(
            {
                "metric": limit.metric,
                "requested": limit.requested,
                "limit": most,
                "dense": dense.cost(limit.metric),
                "achieved": achieved,
                "satisfied": achieved <= most,
            }
        )
    return rows


def stage_rows(stages: Mapping[str, Stage], names: AccuracyNames) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table that compares the stages, costs with their ratio to the dense network."""
    dense = next(iter(stages.values()))
    header = ["", *stages]
    rows = accuracy_rows([stage.accuracy for stage in stages.values()], names)
    labels = {metric: spec_of(metric).label for metric in dense.costs}
    labels |= {"latency": "latency"} if dense.latency_ms is not None else {}
    labels |= {metric: metric for metric in dense.other_latency_ms}
    rows += [[label, *(_ratio(metric, one, dense) for one in stages.values())] for metric, label in labels.items()]
    return header, rows


def accuracy_rows(accuracies: Sequence[Accuracy | None], names: AccuracyNames, *, digits: int = 3) -> list[list[str]]:
    """Return the rows of a table that tell accuracies, the lenient figure first where the task has one."""

    def told(value: float | None) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    main = [names.main, *(told(None if one is None else one.main) for one in accuracies)]
    if names.lenient is None:
        return [main]
    return [[names.lenient, *(told(None if one is None else one.lenient) for one in accuracies)], main]


def as_json(stage: Stage) -> dict[str, Any]:
    """Return a stage as plain JSON values, its costs under the keys of their records."""
    found = asdict(stage)
    costs = {spec_of(metric).key: value for metric, value in found.pop("costs").items()}
    return {"accuracy": found.pop("accuracy"), **costs, **found}


def _sorted(metrics: Iterable[str]) -> list[str]:
    """Return metrics in the order of tables."""
    return sorted(metrics, key=lambda metric: _ORDER.index(metric) if metric in _ORDER else len(_ORDER))


def _ratio(metric: str, stage: Stage, dense: Stage) -> str:
    text = format_amount(metric, stage.cost(metric))
    return text if stage is dense else f"{text} ({stage.cost(metric) / dense.cost(metric):.0%})"
