"""Policies: an allocation with its provenance, as a JSON file that a user reads and edits."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from autoprune.criteria.registry import spec_of
from autoprune.errors import AutopruneWarning, ConfigError, PolicyError
from autoprune.io.fields import Fields, parse_strictly, pretty
from autoprune.io.files import read_bytes, write_atomic

if TYPE_CHECKING:
    import torch
    from torch import nn

    from autoprune.criteria._base import CalibrationData
    from autoprune.models._base import Adapter

SCHEMA_VERSION = 1
_RATIO_DIGITS = 6
_UNITS_NAMED = 5


class PolicyWarning(AutopruneWarning):
    """A policy was applied in a way that leaves the network less accurate than it can be."""


class CostKind(Enum):
    """How a cost became known."""

    PREDICTED = "predicted"
    MEASURED = "measured"


@dataclass(frozen=True)
class PolicyUnit:
    """What one unit keeps.

    Attributes:
        name: the unit, named after its first producing layer.
        channels: how many it has in the dense network.
        keep: how many stay, 1 to ``channels``. This is what counts; the ratio follows from it.

    Raises:
        PolicyError: ``keep`` is out of range.
    """

    name: str
    channels: int
    keep: int

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise PolicyError(f"{self.name} must have at least 1 channel, got {self.channels}")
        if not 1 <= self.keep <= self.channels:
            raise PolicyError(f"{self.name} must keep 1 to {self.channels} channels, got keep {self.keep}")

    @property
    def ratio(self) -> float:
        """Keep ratio, kept / original channels, in (0, 1]."""
        return self.keep / self.channels


@dataclass(frozen=True)
class PolicyModel:
    """Which network a policy is for.

    Attributes:
        name: for people, e.g. ``yolov8n``.
        layers: channels of the dense network's units, by name.
    """

    name: str
    layers: Mapping[str, int]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted layer names and widths: equal for equal architectures, whatever the weights."""
        return hashlib.sha256(json.dumps(sorted(self.layers.items())).encode()).hexdigest()


@dataclass(frozen=True)
class PolicyCost:
    """What the policy's network costs under one metric.

    Attributes:
        value: in ``unit``.
        unit: FLOPs, parameters, bytes, channels, milliseconds.
        kind: whether the value was predicted or measured.
    """

    value: float
    unit: str
    kind: CostKind


@dataclass(frozen=True)
class Provenance:
    """Where a policy came from.

    Attributes:
        autoprune: the version that made it.
        command: the command line that made it.
        strategy: the search strategy, e.g. ``ppo``.
        seed: its seed.
        evaluations: how many candidates it was allowed.
        created: when, ISO 8601 with time zone.
    """

    autoprune: str
    command: str
    strategy: str
    seed: int
    evaluations: int
    created: str


class HoldsModule(Protocol):
    """A network with its data, such as `autoprune.Network`."""

    @property
    def module(self) -> nn.Module:
        """The network in torch."""

    @property
    def adapter(self) -> Adapter:
        """Its family's tools."""

    def with_module(self, module: nn.Module) -> Any:
        """Return another network of the same data."""


Kind = TypeVar("Kind", bound="nn.Module | HoldsModule")


@dataclass(frozen=True)
class Policy:
    """An allocation with all that is needed to apply it to any weights of the same architecture.

    Attributes:
        model: the network it is for.
        criterion: the importance criterion that says which channels stay.
        round_to: the widths' common divisor in the search.
        units: what each unit of the model keeps, in the order of the forward pass.
        budget: the limits it was made for, as texts.
        costs: by metric.
        score: the evaluation's score, or None where it was not scored.
        provenance: where it came from.

    Raises:
        PolicyError: the units are not those of the model, each once and with its channels; a number is not finite; or
            ``round_to`` is below 1.
    """

    model: PolicyModel
    criterion: str
    round_to: int
    units: tuple[PolicyUnit, ...]
    budget: tuple[str, ...]
    costs: Mapping[str, PolicyCost]
    score: float | None
    provenance: Provenance

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for unit in self.units:
            if unit.name in seen:
                raise PolicyError(f"A policy names every unit once, got {unit.name} twice")
            seen.add(unit.name)
        channels = {unit.name: unit.channels for unit in self.units}
        if differences := _differences(channels, self.model.layers, "in units", "in the model's layers"):
            raise PolicyError(
                f"A policy names every unit of its model with the channels it has there, and differs at {differences}; "
                "change keep alone"
            )
        if self.round_to < 1:
            raise PolicyError(f"round_to must be at least 1, got {self.round_to}")
        for name, value in [("score", self.score), *((metric, cost.value) for metric, cost in self.costs.items())]:
            if value is not None and not math.isfinite(value):
                raise PolicyError(f"A policy's numbers must be finite, got {name} {value}")

    @property
    def keep(self) -> dict[str, int]:
        """Kept channels by unit name, in the order of the forward pass."""
        return {unit.name: unit.keep for unit in self.units}

    def check(self, widths: Mapping[str, int]) -> None:
        """Make sure that the policy fits a model.

        Args:
            widths: channels of all units of the model, by name, as in ``model.layers``.

        Raises:
            PolicyError: the units differ; the message names the first of them.
        """
        if differences := _differences(self.model.layers, widths, "in the policy", "in the model"):
            raise PolicyError(
                f"The policy was made for {self.model.name} and does not fit this model: {differences}; apply it to "
                "weights of the architecture it was made for"
            )

    def check_criterion(self) -> None:
        """Make sure that the policy's criterion is one.

        Raises:
            PolicyError: it is not.
        """
        try:
            spec_of(self.criterion)
        except ConfigError as error:
            raise PolicyError(f"A policy's criterion must be one that there is: {error}") from error

    def apply(
        self,
        module: Kind,
        *,
        data: Adapter | Path | str | None = None,
        imgsz: int | None = None,
        compensate: bool = True,
        reconstruct: bool = True,
        example: torch.Tensor | None = None,
        free_outputs: Collection[str] = frozenset({"feats"}),
        evidence: CalibrationData | None = None,
    ) -> Kind:
        """Return a new network that keeps what the policy says, compensated and recalibrated on training images.

        For Ultralytics: ``yolo.model = Policy.load("policy.json").apply(yolo.model, data="data.yaml")``. That is the
        network that ``autoprune apply --data data.yaml`` writes.

        Args:
            module: a network of the architecture that the policy is for, with any weights; it is not modified. An
                `autoprune.Network` brings its data, and one of its kind is returned.
            data: the data set it was trained on, a YAML file or class folders as Ultralytics reads them; or an adapter
                of such a network with its data, for those that are not Ultralytics'.
            imgsz: with a data set, the image size in pixels; what the weights were trained with if None.
            compensate: with a data set, give the kept channels' weights what best predicts the removed ones from them.
            reconstruct: of what is compensated, also solve every layer for what the dense network gives.
            example: without ``data``, an input that it takes, shape (2, C, H, W); two black images of 128 px if None.
            free_outputs: without ``data``, keys of a training output whose tensors may change their channel count
                (Ultralytics' own).
            evidence: without ``data``, training images, where the policy's criterion looks at them.

        Raises:
            PolicyError: the policy is for another architecture, or names an unknown criterion.
            ConfigError: its criterion needs images, and there are none.
            ModelError: the network cannot be analysed, or is not one of Ultralytics and ``data`` is a path.
            DataError: the data set is missing or malformed, or does not fit the network.

        Warns:
            PolicyWarning: there is no ``data``, and so nothing is compensated and batch norm is not recalibrated.
        """
        from torch import nn

        from autoprune.evaluation.pruning import apply_keep

        self.check_criterion()
        apply = partial(
            apply_keep,
            keep=self.keep,
            criterion=self.criterion,
            check=self.check,
            imgsz=imgsz,
            compensate=compensate,
            reconstruct=reconstruct,
            example=example,
            free_outputs=free_outputs,
            evidence=evidence,
        )
        found: Any
        if isinstance(module, nn.Module):
            found = apply(module, data=data)
            if data is None:
                _warn_of_batch_norm(module)
        else:
            found = module.with_module(apply(module.module, data=module.adapter if module.adapter.has_images else None))
        kept: Kind = found
        return kept

    def to_json(self) -> str:
        """Return the policy as JSON, one unit and one layer per line, in a fixed order; ends with a line end."""
        entries = {
            "schema_version": str(SCHEMA_VERSION),
            "model": model_to_json(self.model),
            "criterion": json.dumps(self.criterion),
            "round_to": str(self.round_to),
            "units": pretty([{**vars(unit), "ratio": _rounded(unit)} for unit in self.units], indent="  "),
            "budget": json.dumps(self.budget),
            "costs": pretty({name: {**vars(cost), "kind": cost.kind.value} for name, cost in self.costs.items()}, "  "),
            "score": json.dumps(self.score),
            "provenance": pretty(vars(self.provenance), indent="  "),
        }
        return "{\n" + ",\n".join(f'  "{name}": {value}' for name, value in entries.items()) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Read what ``to_json`` wrote, or a user's edit of it.

        Raises:
            PolicyError: not JSON (the message has line and column), another schema version, an entry that is unknown,
                missing, of the wrong type or out of range, or a ratio that does not belong to its ``keep``.
        """
        try:
            return _policy(Fields(parse_strictly(text), "the policy"))
        except ValueError as error:
            raise PolicyError(str(error)) from error

    def save(self, path: Path | str) -> None:
        """Write the policy as a JSON file, whole or not at all.

        Raises:
            RunError: the file cannot be written.
        """
        write_atomic(Path(path), self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """Read a policy file.

        Raises:
            PolicyError: it cannot be read, or is not a policy; the message begins with the path.
        """
        try:
            text = read_bytes(Path(path)).decode("utf-8-sig")
        except OSError as error:
            raise PolicyError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise PolicyError(f"{path} is not a policy: it is not a text in UTF-8") from error
        try:
            return cls.from_json(text)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from error


def model_to_json(model: PolicyModel) -> str:
    """Return a file's entry ``model``, one layer per line, indented by two spaces."""
    names = pretty({"name": model.name, "fingerprint": model.fingerprint}, indent="  ")
    return names.removesuffix("\n  }") + f',\n    "layers": {pretty(dict(model.layers), indent="    ")}\n  }}'


def _warn_of_batch_norm(module: nn.Module) -> None:
    """Say what a network lacks that is pruned without images."""
    from torch import nn

    if any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in module.modules()):
        warnings.warn(
            "Without data a pruned network is neither compensated nor its batch norm recalibrated, and its accuracy "
            "may be next to nothing until it is trained; give the data set that it was trained on, "
            'apply(model, data="data.yaml")',
            PolicyWarning,
            stacklevel=3,
        )


def _policy(fields: Fields) -> Policy:
    version = fields.integer("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {version}, this autoprune reads {SCHEMA_VERSION}")
    policy = Policy(
        model=read_model(fields.inner("model")),
        criterion=fields.text("criterion"),
        round_to=fields.integer("round_to"),
        units=tuple(_unit(unit) for unit in fields.objects("units")),
        budget=fields.texts("budget"),
        costs=_costs(fields.inner("costs")),
        score=None if fields.absent("score") else fields.number("score"),
        provenance=_provenance(fields.inner("provenance")),
    )
    fields.end()
    return policy


def read_model(fields: Fields) -> PolicyModel:
    """Read what ``model_to_json`` wrote; ValueError says what is wrong."""
    layers = fields.inner("layers")
    model = PolicyModel(fields.text("name"), {name: layers.integer(name) for name in layers.names()})
    fingerprint = fields.text("fingerprint")
    fields.end()
    if fingerprint != model.fingerprint:
        raise ValueError(
            "model: fingerprint does not belong to layers; both describe the model and are not to be edited"
        )
    return model


def _unit(fields: Fields) -> PolicyUnit:
    unit = PolicyUnit(fields.text("name"), fields.integer("channels"), fields.integer("keep"))
    if "ratio" in fields:  # may be left out: it follows from keep
        ratio = fields.number("ratio")
        if abs(ratio - unit.ratio) > 0.5001 * 10**-_RATIO_DIGITS:
            wanted = round(min(max(ratio, 0.0), 2.0) * unit.channels)
            hint = f" or set keep to {wanted}" if 1 <= wanted <= unit.channels else ""
            raise ValueError(
                f"{unit.name} keeps {unit.keep} of {unit.channels} channels, a ratio of {_rounded(unit)}, "
                f"but its ratio says {ratio}: keep is what counts, so correct or remove ratio{hint}"
            )
    fields.end()
    return unit


def _costs(fields: Fields) -> dict[str, PolicyCost]:
    costs = {}
    for metric in fields.names():
        entry = fields.inner(metric)
        kind = entry.text("kind")
        if kind not in {known.value for known in CostKind}:
            raise ValueError(f"costs: {metric} must be of kind predicted or measured, got {kind!r}")
        costs[metric] = PolicyCost(entry.number("value"), entry.text("unit"), CostKind(kind))
        entry.end()
    return costs


def _provenance(fields: Fields) -> Provenance:
    provenance = Provenance(
        autoprune=fields.text("autoprune"),
        command=fields.text("command"),
        strategy=fields.text("strategy"),
        seed=fields.integer("seed"),
        evaluations=fields.integer("evaluations"),
        created=fields.text("created"),
    )
    fields.end()
    return provenance


def _rounded(unit: PolicyUnit) -> float:
    return round(unit.ratio, _RATIO_DIGITS)


def _differences(ours: Mapping[str, int], theirs: Mapping[str, int], here: str, there: str) -> str:
    """Name the first units whose channels are not the same in both; empty if there are none."""
    differences = [
        f"{name} ({_width(ours.get(name))} {here}, {_width(theirs.get(name))} {there})"
        for name in [*ours, *(name for name in theirs if name not in ours)]
        if ours.get(name) != theirs.get(name)
    ]
    more = len(differences) - _UNITS_NAMED
    return ", ".join(differences[:_UNITS_NAMED]) + (f" and {more} more units differ" if more > 0 else "")


def _width(channels: int | None) -> str:
    return "absent" if channels is None else str(channels)
