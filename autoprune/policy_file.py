"""How a policy is written as JSON, and read back from what a user has edited."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autoprune.io.fields import pretty
from autoprune.io.records import FiniteRecord, read_record
from autoprune.policy_records import CostKind, PolicyCost, PolicyModel, PolicyUnit, Provenance

SCHEMA_VERSION = 1
_RATIO_DIGITS = 6


def policy_to_json(entries: Mapping[str, Any]) -> str:
    """Return a policy's attributes as JSON, one unit and one layer per line, in a fixed order."""
    texts = {
        "schema_version": str(SCHEMA_VERSION),
        "model": model_to_json(entries["model"]),
        "criterion": json.dumps(entries["criterion"]),
        "round_to": str(entries["round_to"]),
        "units": pretty([{**vars(unit), "ratio": _rounded(unit)} for unit in entries["units"]], indent="  "),
        "budget": json.dumps(entries["budget"]),
        "costs": pretty(
            {name: {**vars(cost), "kind": cost.kind.value} for name, cost in entries["costs"].items()}, "  "
        ),
        "score": json.dumps(entries["score"]),
        "provenance": pretty(vars(entries["provenance"]), indent="  "),
    }
    return "{\n" + ",\n".join(f'  "{name}": {value}' for name, value in texts.items()) + "\n}\n"


def model_to_json(model: PolicyModel) -> str:
    """Return a file's entry ``model``, one layer per line, indented by two spaces."""
    names = pretty({"name": model.name, "fingerprint": model.fingerprint}, indent="  ")
    return names.removesuffix("\n  }") + f',\n    "layers": {pretty(dict(model.layers), indent="    ")}\n  }}'


def read_policy(text: str) -> dict[str, Any]:
    """Return the attributes of a policy whose JSON ``policy_to_json`` wrote or a user edited.

    Raises:
        ValueError: an entry is unknown, missing or of the wrong type, or the text is not JSON.
        PolicyError: an entry is out of range.
    """
    read = read_record(text, _PolicyEntries, "the policy", version=SCHEMA_VERSION)
    return {
        "model": read.model.read(),
        "criterion": read.criterion,
        "round_to": read.round_to,
        "units": tuple(map(_unit, read.units)),
        "budget": read.budget,
        "costs": {name: PolicyCost(cost.value, cost.unit, CostKind(cost.kind)) for name, cost in read.costs.items()},
        "score": read.score,
        "provenance": read.provenance,
    }


@dataclass(frozen=True)
class ModelEntries:
    """A file's entry ``model``."""

    name: str
    fingerprint: str
    layers: dict[str, int]

    def read(self) -> PolicyModel:
        """Return the model; ValueError says that the entries do not belong together."""
        model = PolicyModel(self.name, self.layers)
        if self.fingerprint != model.fingerprint:
            raise ValueError(
                "model: fingerprint does not belong to layers; both describe the model and are not to be edited"
            )
        return model


@dataclass(frozen=True)
class _UnitEntries(FiniteRecord):
    name: str
    channels: int
    keep: int
    ratio: float = math.nan  # may be left out: it follows from keep


@dataclass(frozen=True)
class _CostEntries(FiniteRecord):
    value: float
    unit: str
    kind: Literal["predicted", "measured"]


@dataclass(frozen=True)
class _PolicyEntries(FiniteRecord):
    schema_version: int
    model: ModelEntries
    criterion: str
    round_to: int
    units: tuple[_UnitEntries, ...]
    budget: tuple[str, ...]
    costs: dict[str, _CostEntries]
    score: float | None
    provenance: Provenance


def _unit(read: _UnitEntries) -> PolicyUnit:
    unit = PolicyUnit(read.name, read.channels, read.keep)
    ratio = read.ratio
    if abs(ratio - unit.ratio) > 0.5001 * 10**-_RATIO_DIGITS:
        wanted = round(min(max(ratio, 0.0), 2.0) * unit.channels)
        hint = f" or set keep to {wanted}" if 1 <= wanted <= unit.channels else ""
        raise ValueError(
            f"{unit.name} keeps {unit.keep} of {unit.channels} channels, a ratio of {_rounded(unit)}, "
            f"but its ratio says {ratio}: keep is what counts, so correct or remove ratio{hint}"
        )
    return unit


def _rounded(unit: PolicyUnit) -> float:
    return round(unit.ratio, _RATIO_DIGITS)
