"""The one result model: what commands find, its JSON, and how that is read again.

It lies above `autoprune.budget`, whose records say what metrics are called and how their amounts are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen, Predicate
from typing_extensions import TypedDict

from autoprune.budget import Limit
from autoprune.errors import RunError
from autoprune.io.files import read_bytes, write_atomic
from autoprune.io.records import fits
from autoprune.metrics import METRICS, is_measured, latency_target

RESULT_VERSION = 2
"""Of the JSON reports; 1 were those that called metrics ``main`` and ``lenient`` and had no version."""

SUMMARIES = ("summary.json", "compare.json", "profile.json", "export.json", "quantize.json", "mask.json")
"""The names of commands' reports, all in one form."""

LEVELS = "levels"
"""The folder in a run's own that has a folder for each of its levels."""


@dataclass(frozen=True, repr=False)
class Metrics(Mapping[str, float]):
    """How well a network does its task: a mapping from metrics' names to their values.

    Attributes:
        values_by_name: in [0, 1]; the first one decides: mAP50-95 of a detector, top-1 of a classifier.
        per_class: the same of each class by its name; empty if the task has none.

    Example:
        >>> found = Metrics({"mAP50-95": 0.55, "mAP50": 0.84}, {"cat": {"mAP50-95": 0.55, "mAP50": 0.84}})
        >>> found["mAP50"], found.primary
        (0.84, 0.55)
    """

    values_by_name: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def primary(self) -> float:
        """The value that decides."""
        return next(iter(self.values_by_name.values()))

    def __getitem__(self, name: str) -> float:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __repr__(self) -> str:
        return f"Metrics({dict(self.values_by_name)})"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        per_class = {name: dict(values) for name, values in self.per_class.items()}
        return {"metrics": dict(self.values_by_name), "per_class": per_class}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Metrics:
        """Read what ``to_json`` gave."""
        return cls(values["metrics"], values["per_class"])


@dataclass(frozen=True)
class Detection:
    """An object of an image, as it is labelled or detected.

    Attributes:
        label: name of its class.
        box: left, top, right and bottom edge in pixels of the network's input.
        score: confidence in [0, 1]; 1 if it is labelled.

    Example:
        >>> Detection("cell", (0, 0, 10, 10), 0.75).score
        0.75
    """

    label: str
    box: tuple[float, float, float, float]
    score: float = 1.0


@dataclass(frozen=True)
class Stage:
    """One network of a run, measured.

    Attributes:
        metrics: on the validation split, or None if they were not measured.
        costs: in closed form or of files, by a budget's metric, in its unit; see `autoprune.budget.METRICS`.
        latencies: by a budget's metric (``latency``, ``latency@openvino``, ``energy``): median, p10, p90 in ms or mJ,
            and runs, with device, runtime, precision and batch if the stages of a run may differ in them.
        details: what only this command tells of a network, by name, in plain JSON values.
    """

    metrics: Metrics | None
    costs: Mapping[str, float] = field(default_factory=dict)
    latencies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [spec for spec in METRICS if spec.name in self.costs]
        costs = {one.name: round(self.costs[one.name]) if one.whole else self.costs[one.name] for one in known}
        object.__setattr__(self, "costs", costs)  # in one order, whole numbers as such

    def cost(self, metric: str) -> float:
        """Return what the network costs under a budget's metric, NaN if that was not measured."""
        if is_measured(metric):
            statistic = latency_target(metric)[1]
            return float(self.latencies[metric][statistic]) if metric in self.latencies else float("nan")
        return float(self.costs.get(metric, float("nan")))

    def speed_up(self, dense: Stage) -> dict[str, float]:
        """Return how many times less the network costs than the dense one, by metric, as far as both are known."""
        known = [*dense.costs, *dense.latencies]
        factors = {metric: dense.cost(metric) / self.cost(metric) for metric in known if self.cost(metric) > 0}
        return {metric: factor for metric, factor in factors.items() if factor == factor}

    def to_json(self, dense: Stage) -> dict[str, Any]:
        """Return plain JSON values, with the factors by which the network is cheaper than the dense one."""
        metrics = self.metrics.to_json() if self.metrics is not None else {"metrics": None, "per_class": {}}
        costs = {"costs": dict(self.costs), "latencies": {name: dict(one) for name, one in self.latencies.items()}}
        return {**metrics, **costs, "speed_up": self.speed_up(dense), "details": dict(self.details)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Stage:
        """Read what ``to_json`` gave."""
        metrics = Metrics.from_json(values) if values["metrics"] is not None else None
        return cls(metrics, values["costs"], values["latencies"], values["details"])


@dataclass(frozen=True)
class LimitResult:
    """What became of one limit of a budget.

    Attributes:
        metric: that is limited.
        requested: the limit as it was written.
        limit: the most that is allowed, in the metric's unit.
        dense: what the dense network costs.
        achieved: what the network costs that was made.
        satisfied: whether that holds the limit.
    """

    metric: str
    requested: str
    limit: float
    dense: float
    achieved: float
    satisfied: bool

    @classmethod
    def of(cls, limit: Limit, dense: Stage, final: Stage) -> LimitResult:
        """Compare a limit with the network that was made."""
        before, achieved = dense.cost(limit.metric), final.cost(limit.metric)
        most = limit.resolve(before)
        return cls(limit.metric, limit.requested, most, before, achieved, achieved <= most)


@dataclass(frozen=True)
class Compared:
    """A strategy, a criterion or a reference of a comparison; its values are per seed.

    Attributes:
        name: as it is printed.
        before: metrics before the fine-tune; empty if they mean nothing.
        after: the same after it; empty if there was none.
        costs: by metric, as shares of the dense network's.
        scores: proxy scores; empty of a reference.
        seeds: the seeds; empty of a reference.
        evaluations: candidates that were scored; empty if nothing was searched.
        seconds: what the search took, or the scoring of the channels; empty of a reference.
    """

    name: str
    before: Sequence[Metrics]
    after: Sequence[Metrics]
    costs: Mapping[str, Sequence[float]]
    scores: Sequence[float] = field(default_factory=list)
    seeds: Sequence[int] = field(default_factory=list)
    evaluations: Sequence[int] = field(default_factory=list)
    seconds: Sequence[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        tuned = {name: [one.to_json() for one in vars(self)[name]] for name in ("before", "after")}
        costs = {metric: list(values) for metric, values in self.costs.items()}
        values = {name: list(vars(self)[name]) for name in ("scores", "seeds", "evaluations", "seconds")}
        return {"name": self.name, **tuned, "costs": costs, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Compared:
        """Read what ``to_json`` gave."""
        tuned = {name: [Metrics.from_json(one) for one in values[name]] for name in ("before", "after")}
        return cls(**{**values, **tuned})


@dataclass(frozen=True, repr=False)
class Result(Mapping[str, Any]):
    """What a command found; as a mapping it is its JSON.

    Attributes:
        command: e.g. ``search``.
        title: what its tables and pictures are headed with.
        metric_names: of the task, the one that decides first.
        stages: networks by name, what the others are compared with first; empty if none was measured.
        budget: what became of every limit; empty without a budget.
        compared: rows of a comparison by what they are: ``strategies``, ``criteria``, ``references``.
        figures: what only this command finds, plain JSON values by name.
        environment: versions, platform and whatever else the figures depend on.

    Example:
        >>> stages = {"dense": Stage(None, {"flops": 6e9}), "pruned": Stage(None, {"flops": 2e9})}
        >>> result = Result("search", "yolov8n, flops=40%", ("mAP50-95", "mAP50"), stages=stages)
        >>> result.stages["pruned"].cost("flops"), result["stages"]["pruned"]["speed_up"]
        (2000000000.0, {'flops': 3.0})
    """

    command: str
    title: str
    metric_names: tuple[str, ...]
    stages: Mapping[str, Stage] = field(default_factory=dict)
    budget: Sequence[LimitResult] = field(default_factory=list)
    compared: Mapping[str, Sequence[Compared]] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def json(self) -> Mapping[str, Any]:
        """The result as plain JSON values."""
        dense = next(iter(self.stages.values()), None)
        stages = {name: stage.to_json(dense or stage) for name, stage in self.stages.items()}
        compared = {kind: [row.to_json() for row in rows] for kind, rows in self.compared.items()}
        return {
            "version": RESULT_VERSION,
            "command": self.command,
            "title": self.title,
            "metric_names": list(self.metric_names),
            "stages": stages,
            "budget": [vars(row) for row in self.budget],
            "compared": compared,
            **self.figures,
            "environment": dict(self.environment),
        }

    def __getitem__(self, name: str) -> Any:
        return self.json[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.json)

    def __len__(self) -> int:
        return len(self.json)

    def __repr__(self) -> str:
        return f"Result({self.command}, {self.title}: {', '.join(self)})"

    def save(self, path: Path) -> Path:
        """Write the result as JSON, whole or not at all.

        Raises:
            RunError: the file cannot be written.
        """
        write_atomic(path, json.dumps(self.json, indent=2) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote.

        Raises:
            RunError: there is no such file, it is of another version, or it is damaged.
        """
        try:
            values: dict[str, Any] = json.loads(read_bytes(path))
            version = values.pop("version", 1)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"{path} must be a result of autoprune, and cannot be read: {error}") from error
        if version != RESULT_VERSION:
            raise RunError(
                f"{path} is a result of version {version}, this autoprune reads {RESULT_VERSION}; run the command again"
            )
        if not fits({name: values[name] for name in _Saved.__annotations__ if name in values}, _Saved):
            raise RunError(f"{path} is damaged: it does not hold what autoprune writes there; run the command again")
        return cls(
            command=values.pop("command"),
            title=values.pop("title"),
            metric_names=tuple(values.pop("metric_names")),
            stages={name: Stage.from_json(one) for name, one in values.pop("stages").items()},
            budget=[LimitResult(**row) for row in values.pop("budget")],
            compared={kind: list(map(Compared.from_json, rows)) for kind, rows in values.pop("compared").items()},
            environment=values.pop("environment"),
            figures=values,
        )


# -- the file --------------------------------------------------------------------------------------


def _timed(latencies: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether latencies have the figures that tables show, and the one that a budget's metric counts."""
    return all(
        isinstance(latency.get(name), int | float)
        for metric, latency in latencies.items()
        for name in ("median", "p10", "p90", latency_target(metric)[1])
    )


class _SavedMetrics(TypedDict):
    metrics: Annotated[Mapping[str, float], MinLen(1)]
    per_class: Mapping[str, Mapping[str, float]]


class _SavedStage(TypedDict):
    metrics: Annotated[Mapping[str, float], MinLen(1)] | None
    per_class: Mapping[str, Mapping[str, float]]
    costs: Mapping[str, float]
    latencies: Annotated[Mapping[str, Mapping[str, Any]], Predicate(_timed)]
    speed_up: Mapping[str, float]
    details: Mapping[str, Any]


class _SavedRow(TypedDict):
    name: str
    before: Sequence[_SavedMetrics]
    after: Sequence[_SavedMetrics]
    costs: Mapping[str, Sequence[float]]
    scores: Sequence[float]
    seeds: Sequence[int]
    evaluations: Sequence[int]
    seconds: Sequence[float]


class _Saved(TypedDict):
    """What every result has in its file; a command's figures stand next to it, and may be anything."""

    command: str
    title: str
    metric_names: Sequence[str]
    stages: Mapping[str, _SavedStage]
    budget: Sequence[LimitResult]
    compared: Mapping[str, Sequence[_SavedRow]]
    environment: Mapping[str, Any]
