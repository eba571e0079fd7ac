"""How a policy is written as JSON, and read back from what a user has edited."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autoprune.io.fields import Fields, parse_strictly, pretty
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
    fields = Fields(parse_strictly(text), "the policy")
    version = fields.integer("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {version}, this autoprune reads {SCHEMA_VERSION}")
    entries: dict[str, Any] = {
        "model": read_model(fields.inner("model")),
        "criterion": fields.text("criterion"),
        "round_to": fields.integer("round_to"),
        "units": tuple(_unit(unit) for unit in fields.objects("units")),
        "budget": fields.texts("budget"),
        "costs": _costs(fields.inner("costs")),
        "score": None if fields.absent("score") else fields.number("score"),
        "provenance": _provenance(fields.inner("provenance")),
    }
    fields.end()
    return entries


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
