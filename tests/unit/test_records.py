"""Records of a journal that are whole and hold something else: the resume says so in one sentence, before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoprune.cli.main import main
from autoprune.errors import RunError
from autoprune.io.journal_lines import Record
from autoprune.io.records import fits
from autoprune.journal import Journal
from autoprune.workflows.records import check_record
from tests.helpers.world import arguments

TIME = {"median": 1.5, "p10": 1.4, "p90": 1.7, "runs": 40, "outliers": 0}
PAIR = {"candidate": TIME, "dense": TIME, "ratio": 0.5, "spread": 0.01, "note": None}
OUTCOME = {
    "entry": "ppo",
    "seed": 0,
    "allocation": [8],
    "score": -0.1,
    "evaluations": 3,
    "seconds": 1.0,
    "history": [float("nan"), -0.1],
    "tried": [[[8], -0.1]],
}
METRICS = {"metrics": {"accuracy": 0.5}, "per_class": {}}
TUNED = {"before": METRICS, "after": None, "costs": {"flops": 10.0}}

GOOD: list[tuple[str, Any, Any]] = [
    ("evaluation", [8, 16], {"score": -0.2, "seconds": 1.0}),
    ("evaluation dense", 16, {"loss": 2.5, "weights": [3.0, 60]}),
    ("scored in", "", "bf16"),
    ("gains", [[8, 16], [[16], []]], [[0.25], []]),
    ("netadapt 3", [8, 16], {"score": 0, "seconds": 1.0}),
    ("accuracy", [8, 16], {"metrics": {"mAP50-95": 0.5, "mAP50": 0.7}, "per_class": {"cat": {"mAP50": 0.7}}}),
    ("validation", "dense", METRICS),
    ("batch", 0, 8),
    ("threads", "", 2),
    ("created", "", "2026-01-01T00:00:00"),
    ("iteration", 1, {"allocation": [8], "score": -0.2, "changes": [[0, -0.2]], "evaluations": 3, "fine_tunes": 0}),
    ("outcome", ["ppo", 0], OUTCOME),
    ("tuned", [[8], 0], TUNED),
    ("criterion", ["l1", [8]], {"criterion": "l1", "score": 0.1, "before": METRICS, "after": None, "seconds": 1.0}),
    ("reference", "dense", {"row": {**TUNED, "name": "dense"}}),
    ("quantize", ["model", "error", "group"], 0.5),
    ("quantize", ["model", "held out", None], 0.5),
    ("quantize", ["model", "deployed", ["a"]], {**METRICS, "size_bytes": 10}),
    ("latency", "", [TIME, TIME]),
    ("latency", "", PAIR),
    ("latency", "format", "contiguous"),
    ("latency", "block", 8),
    ("latency@openvino", "reference", TIME),
    ("latency", "note", ""),
    ("latency", "layers", {"conv": 0.1}),
    ("latency", ["beside", "abc"], {"conv": 0.1}),
    ("latency@cpu", ["network", [8, 16, 2]], PAIR),
    ("latency", ["sample", [8, 16]], PAIR),
]

BAD: list[tuple[str, Any, Any]] = [
    ("evaluation", [8, 16], {"score": "high", "seconds": 1.0}),
    ("evaluation", [8, 16], {"score": float("nan"), "seconds": 1.0}),
    ("evaluation", [8, 16], {"seconds": 1.0}),
    ("evaluation", [8, -16], {"score": 0.1, "seconds": 1.0}),
    ("evaluation", "8", {"score": 0.1, "seconds": 1.0}),
    ("evaluation", [10**30], {"score": 0.1, "seconds": 1.0}),
    ("evaluation dense", 16, {"loss": None, "weights": [3.0]}),
    ("evaluation dense", 16, {"loss": 2.5, "weights": [0]}),
    ("scored in", "", "fp8"),
    ("gains", [[8, 16], [[16], []]], [[float("inf")], []]),
    ("gains", [[8, 16], [16]], [[0.1], []]),
    ("accuracy", [8], {**METRICS, "metrics": {"accuracy": "0.5"}}),
    ("accuracy", [8], {**METRICS, "metrics": {}}),
    ("accuracy", [8], {**METRICS, "per_class": {"cat": 0.5}}),
    ("validation", "dense", {"main": 0.5, "lenient": None}),
    ("validation", "dense", {**METRICS, "other": 1}),
    ("batch", 0, 0),
    ("batch", 0, 10**30),
    ("threads", "", "2"),
    ("iteration", 1, {"allocation": [8.5], "score": -0.2, "changes": [[0, -0.2]], "evaluations": 3, "fine_tunes": 0}),
    ("outcome", ["ppo", 0], {**OUTCOME, "tried": [[8, -0.1]]}),
    ("outcome", ["ppo", 0], {**OUTCOME, "history": None}),
    ("outcome", ["ppo", 2**60], OUTCOME),
    ("tuned", [[8], 0], {**TUNED, "costs": {"flops": "10"}}),
    ("reference", "dense", {"row": {"name": "dense"}}),
    ("quantize", ["model", "deployed", None], 0.5),
    ("latency", "", [TIME, None]),
    ("latency", "format", "diagonal"),
    ("latency", "reference", {**TIME, "median": 0.0}),
    ("latency", ["network", [8]], {**PAIR, "dense": {**TIME, "median": 0.0}}),
    ("latency", "layers", {"conv": -0.1}),
]


@pytest.mark.parametrize(("kind", "key", "value"), GOOD)
def test_what_commands_write_passes(kind: str, key: Any, value: Any) -> None:
    assert check_record(Record(kind, key, value))
    for other in (True, [[[]]], {"a": [[]]}):
        assert not check_record(Record(kind, key, other))


@pytest.mark.parametrize(("kind", "key", "value"), BAD)
def test_what_no_command_writes_is_refused(kind: str, key: Any, value: Any) -> None:
    assert not check_record(Record(kind, key, value))


@pytest.mark.parametrize(
    ("command", "options"),
    [
        pytest.param(
            "search", ("--budget", "latency=85%", "--episodes", "6", "--finalists", "2"), marks=pytest.mark.slow
        ),
        ("netadapt", ("--budget", "flops=80%", "--initial-step", "0.2", "--short-term-steps", "1")),
        pytest.param("compare", ("--budget", "flops=60%", "--strategies", "uniform"), marks=pytest.mark.slow),
        pytest.param("compare", ("--budget", "flops=60%", "--criteria", "l1,l2"), marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_a_run_is_checked(
    command: str, options: tuple[str, ...], tiny: Path, quick: None, tmp_path: Path
) -> None:
    assert main(arguments(command, tiny, tmp_path / "run", *options)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines if check_record(Record(line["kind"], [[[]]], [[[]]]))} == {"header"}
    Journal.open(tmp_path / "run" / "journal.jsonl", check=check_record).close()


def test_unknown_kinds_are_nobodys_business() -> None:
    assert check_record(Record("of a later version", None, [None]))


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (1, int, True),
        (1.0, int, False),
        (True, int, False),
        (True, float, False),
        (None, int | None, True),
        ("a", int | None, False),
        ([1, "a"], tuple[int, str], True),
        ([1], tuple[int, str], False),
        ([1, 2], tuple[int, ...], True),
        (float("nan"), float, True),
        ("a", Any, True),
    ],
)
def test_types_are_told_apart(value: Any, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected


@pytest.mark.parametrize(("header", "value", "line"), [({}, {"score": "high", "seconds": 1.0}, 2), ([1], 1, 1)])
def test_a_journal_with_such_a_record_is_not_opened(tmp_path: Path, header: Any, value: Any, line: int) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.create(path, header) as journal:
        journal.append("evaluation", [8], value)
    before = path.read_bytes()
    with pytest.raises(RunError, match=rf"journal\.jsonl: line {line} .* does not hold what autoprune writes there"):
        Journal.open(path, check=check_record)
    assert path.read_bytes() == before


def test_a_run_from_before_metrics_had_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    with monkeypatch.context() as before:
        before.setattr("autoprune.journal._SCHEMA", 1)
        with Journal.create(path, {}) as journal:
            journal.append("validation", "dense", {"main": 0.5, "lenient": 0.8})
    with pytest.raises(RunError, match="has the schema version 1, this autoprune reads 3; start the run again"):
        Journal.open(path, check=check_record)
