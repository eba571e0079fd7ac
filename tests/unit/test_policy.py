from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.errors import PolicyError, RunError
from autoprune.policy import CostKind, Policy, PolicyCost, PolicyModel, PolicyUnit, Provenance

LAYERS = {"model.0": 16, "model.1": 32, "model.2.cv1": 48}
POLICY = Policy(
    model=PolicyModel("yolov8n", LAYERS),
    criterion="l1",
    round_to=8,
    units=(PolicyUnit("model.0", 16, 8), PolicyUnit("model.1", 32, 32), PolicyUnit("model.2.cv1", 48, 8)),
    budget=("latency=8ms", "flops=50%"),
    costs={
        "latency": PolicyCost(7.9, "ms", CostKind.MEASURED),
        "flops": PolicyCost(4.2e9, "FLOPs", CostKind.PREDICTED),
    },
    score=-0.25,
    provenance=Provenance("0.1.0", "autoprune search --budget latency=8ms", "ppo", 0, 200, "2026-11-22T04:26:00+00:00"),
)

TEXT = """\
{
  "schema_version": 1,
  "model": {
    "name": "yolov8n",
    "fingerprint": "FINGERPRINT",
    "layers": {
      "model.0": 16,
      "model.1": 32,
      "model.2.cv1": 48
    }
  },
  "criterion": "l1",
  "round_to": 8,
  "units": [
    {"name": "model.0", "channels": 16, "keep": 8, "ratio": 0.5},
    {"name": "model.1", "channels": 32, "keep": 32, "ratio": 1.0},
    {"name": "model.2.cv1", "channels": 48, "keep": 8, "ratio": 0.166667}
  ],
  "budget": ["latency=8ms", "flops=50%"],
  "costs": {
    "latency": {"value": 7.9, "unit": "ms", "kind": "measured"},
    "flops": {"value": 4200000000.0, "unit": "FLOPs", "kind": "predicted"}
  },
  "score": -0.25,
  "provenance": {
    "autoprune": "0.1.0",
    "command": "autoprune search --budget latency=8ms",
    "strategy": "ppo",
    "seed": 0,
    "evaluations": 200,
    "created": "2026-11-22T04:26:00+00:00"
  }
}
""".replace("FINGERPRINT", POLICY.model.fingerprint)


def test_the_file_is_laid_out_for_people(tmp_path: Path) -> None:
    POLICY.save(tmp_path / "policy.json")
    assert (tmp_path / "policy.json").read_text() == TEXT
    assert Policy.load(tmp_path / "policy.json") == POLICY
    assert POLICY.keep == {"model.0": 8, "model.1": 32, "model.2.cv1": 8}


def model_of(name: str, units: Sequence[PolicyUnit]) -> PolicyModel:
    return PolicyModel(name, {unit.name: unit.channels for unit in units})


names = st.text(min_size=1, max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
units = st.integers(1, 4096).flatmap(
    lambda channels: st.builds(PolicyUnit, name=names, channels=st.just(channels), keep=st.integers(1, channels))
)
described = st.lists(units, max_size=5, unique_by=lambda unit: unit.name).map(tuple)
policies = st.builds(
    lambda name, units, **others: Policy(model=model_of(name, units), units=units, **others),
    name=names,
    units=described,
    criterion=names,
    round_to=st.integers(1, 64),
    budget=st.lists(names, max_size=3).map(tuple),
    costs=st.dictionaries(
        names, st.builds(PolicyCost, value=finite, unit=names, kind=st.sampled_from(CostKind)), max_size=3
    ),
    score=st.none() | finite,
    provenance=st.builds(
        Provenance,
        autoprune=names,
        command=names,
        strategy=names,
        seed=st.integers(),
        evaluations=st.integers(0),
        created=names,
    ),
)


@given(policies)
def test_json_round_trips_exactly(policy: Policy) -> None:
    text = policy.to_json()
    assert Policy.from_json(text) == policy
    assert Policy.from_json(text).to_json() == text


def edited(**changes: Any) -> str:
    return json.dumps({**json.loads(TEXT), **changes})


def with_unit(**changes: Any) -> str:
    first, *rest = json.loads(TEXT)["units"]
    return edited(units=[{**first, **changes}, *rest])


def test_keep_is_what_a_hand_edit_changes() -> None:
    policy = Policy.from_json(with_unit(keep=12, ratio=0.75))
    assert policy.units[0] == PolicyUnit("model.0", 16, 12)
    document = json.loads(TEXT)
    del document["units"][0]["ratio"]
    document["units"][0]["keep"] = 5
    assert Policy.from_json(json.dumps(document)).units[0].ratio == 5 / 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ratio": 0.25}, "model.0 keeps 8 of 16 channels, a ratio of 0.5, but its ratio says 0.25: .*set keep to 4"),
        ({"keep": 4}, "model.0 keeps 4 of 16 channels, a ratio of 0.25, but its ratio says 0.5: .*set keep to 8"),
        ({"ratio": 7}, "correct or remove ratio$"),
        ({"ratio": -1e308}, "correct or remove ratio$"),
        ({"keep": 0}, "model.0 must keep 1 to 16 channels, got keep 0"),
        ({"keep": 17}, "model.0 must keep 1 to 16 channels, got keep 17"),
        ({"keep": -1}, "model.0 must keep 1 to 16 channels, got keep -1"),
        ({"keep": 8.0}, r"units\[0\]: keep must be a whole number, got 8.0"),
        ({"keep": True}, r"units\[0\]: keep must be a whole number, got true"),
        ({"keep": "8"}, r'units\[0\]: keep must be a whole number, got "8"'),
        ({"channels": 0}, "model.0 must have at least 1 channel, got 0"),
        ({"kept": 8}, r"units\[0\] has the unknown entry 'kept'; it may have: name, channels, keep, ratio"),
        ({"name": 3}, r"units\[0\]: name must be a text in quotes, got 3"),
        ({"name": "model.1"}, "names every unit once, got model.1 twice"),
        ({"ratio": "half"}, r'units\[0\]: ratio must be a number, got "half"'),
    ],
)
def test_a_unit_edited_out_of_the_rules_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        Policy.from_json(with_unit(**changes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"not valid JSON at line 1, column 1"),
        (
            TEXT.replace('"round_to": 8,', '"round_to": 8'),
            r"not valid JSON at line 14, column 3: Expecting ',' delimiter",
        ),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 5000, "digits"),
        ("[]", r"the policy must be an object in braces, got \[\]"),
        ("{}", "the policy lacks the entry 'schema_version'"),
        (TEXT.replace('"score": -0.25', '"score": NaN'), "NaN is not a number that JSON knows"),
        (TEXT.replace('"score": -0.25', '"score": 1e999'), "the policy: score must be a finite number"),
        (TEXT.replace('"score": -0.25', '"round_to": 8'), "'round_to' is there twice"),
        (edited(schema_version=2), "schema_version is 2, this autoprune reads 1"),
        (edited(schema_version="1"), "the policy: schema_version must be a whole number"),
        (edited(comment="mine"), "the policy has the unknown entry 'comment'; it may have: schema_version, model"),
        (edited(units={}), r"units must be a list in brackets, got \{\}"),
        (edited(units=["model.0"]), r'units\[0\] must be an object in braces, got "model.0"'),
        (edited(budget="flops=50%"), 'the policy: budget must be a list in brackets, got "flops=50%"'),
        (edited(budget=[1]), r"budget\[0\] must be a text in quotes, got 1"),
        (edited(round_to=0), "round_to must be at least 1, got 0"),
        (edited(criterion="\ud800"), "the policy cannot be read: Invalid JSON"),
        (edited(score=True), "score must be a number, got true"),
        (edited(costs={"flops": {"value": 10**400, "unit": "FLOPs", "kind": "measured"}}), "value must be a finite"),
        (
            edited(costs={"flops": {"value": 1, "unit": "FLOPs", "kind": "guessed"}}),
            'kind must be predicted or measured, got "guessed"',
        ),
        (edited(costs={"flops": {"value": 1, "unit": "FLOPs"}}), "flops lacks the entry 'kind'"),
        (TEXT.replace('"model.1": 32', '"model.1": 64'), "fingerprint does not belong to layers"),
    ],
)
def test_a_broken_policy_is_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said) as caught:
        Policy.from_json(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40) | st.sampled_from(TEXT.splitlines()).map(lambda line: TEXT.replace(line, "", 1)))
def test_any_text_is_read_or_refused_by_a_policy_error(text: str) -> None:
    try:
        policy = Policy.from_json(text)
    except PolicyError:
        return
    assert Policy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize("name", list(json.loads(TEXT)))
def test_every_entry_is_needed(name: str) -> None:
    document = json.loads(TEXT)
    del document[name]
    with pytest.raises(PolicyError, match=f"the policy lacks the entry '{name}'"):
        Policy.from_json(json.dumps(document))


def test_loading_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    with pytest.raises(PolicyError, match=r"policy\.json cannot be read: No such file"):
        Policy.load(path)
    path.write_bytes(b"\xff\x00")
    with pytest.raises(PolicyError, match=r"policy\.json is not a policy: it is not a text in UTF-8"):
        Policy.load(path)
    path.write_text("{")
    with pytest.raises(PolicyError, match=r"policy\.json: not valid JSON at line 1, column 2"):
        Policy.load(str(path))
    path.write_text("\ufeff" + TEXT, encoding="utf-8")  # as some editors save it
    assert Policy.load(path) == POLICY


def test_a_full_disk_keeps_the_old_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "policy.json"
    POLICY.save(path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        replace(POLICY, score=0.0).save(path)
    assert Policy.load(path) == POLICY


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(PolicyError, match="must be finite, got score"):
        replace(POLICY, score=value)
    with pytest.raises(PolicyError, match="must be finite, got flops"):
        replace(POLICY, costs={"flops": PolicyCost(value, "FLOPs", CostKind.PREDICTED)})


def test_the_fingerprint_depends_on_names_and_widths_alone() -> None:
    turned = PolicyModel("other", dict(reversed(LAYERS.items())))
    assert turned.fingerprint == POLICY.model.fingerprint
    for changed in ({**LAYERS, "model.1": 31}, {**LAYERS, "model.3": 8}, {"model.0": 16}):
        assert PolicyModel("yolov8n", changed).fingerprint != POLICY.model.fingerprint


def test_a_policy_fits_the_architecture_it_was_made_for() -> None:
    POLICY.check(dict(reversed(LAYERS.items())))


def test_a_policy_for_another_architecture_names_the_first_layers_that_differ() -> None:
    with pytest.raises(PolicyError) as caught:
        POLICY.check({"model.0": 16, "model.1": 64, "model.9": 8})
    assert str(caught.value) == (
        "The policy was made for yolov8n and does not fit this model: "
        "model.1 (32 in the policy, 64 in the model), model.2.cv1 (48 in the policy, absent in the model), "
        "model.9 (absent in the policy, 8 in the model); "
        "apply it to weights of the architecture it was made for"
    )
    with pytest.raises(PolicyError, match=r"other\.4 \(absent in the policy, 4 in the model\) and 5 more units differ"):
        replace(POLICY, model=PolicyModel("empty", {}), units=()).check(
            {f"other.{index}": index for index in range(10)}
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (edited(units=[]), r"model\.0 \(absent in units, 16 in the model's layers\), model\.1 .*, model\.2\.cv1 "),
        (with_unit(name="model.7"), r"model\.7 \(16 in units, absent in the model's layers\), model\.0 "),
        (with_unit(channels=20, ratio=0.4), r"model\.0 \(20 in units, 16 in the model's layers\); edit only `keep`"),
    ],
)
def test_units_that_are_not_the_models_are_refused_when_the_file_is_read(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        Policy.from_json(text)


@given(policies.filter(lambda policy: policy.units), st.data())
def test_a_policy_that_leaves_out_or_changes_any_unit_is_refused(policy: Policy, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(policy.units) - 1))
    unit, others = policy.units[at], [*policy.units[:at], *policy.units[at + 1 :]]
    taken = {other.name for other in policy.units}
    replaced = data.draw(
        st.none()
        | names.filter(lambda name: name not in taken).map(lambda name: replace(unit, name=name))
        | st.just(replace(unit, channels=unit.channels + 1))
    )
    with pytest.raises(PolicyError, match="units must be its model's"):
        replace(policy, units=(*others, *(() if replaced is None else (replaced,))))
    policy.check(policy.model.layers)
    with pytest.raises(PolicyError, match="does not fit this model"):
        policy.check(model_of("other", [*others, *(() if replaced is None else (replaced,))]).layers)


def test_a_criterion_that_there_is_none_of_is_refused_before_anything_is_analysed() -> None:
    policy = replace(POLICY, criterion="tailor")
    with pytest.raises(PolicyError, match=r"A policy's criterion must be one .* got 'tailor'"):
        policy.apply(torch.nn.Identity())
