"""The table of plug-ins in the documentation names what there is."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from autoprune.config import SearchConfig
from autoprune.errors import ConfigError
from autoprune.evaluation.runners import RUNNERS, RunnerOptions, open_runner, runner_spec

ROOT = Path(__file__).parents[2]
ROWS = [
    line.split("|")[1:-1]
    for line in (ROOT / "docs" / "extending.md").read_text().splitlines()
    if re.match(r"\| \w.*`", line)
]


def test_there_is_a_row_for_every_kind() -> None:
    assert len(ROWS) >= 10


def test_a_runner_is_found_by_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = replace(RUNNERS[0], name="mine", workers=r"mine://\w+", meaning="mine://HOST")
    monkeypatch.setattr("autoprune.evaluation.runners.RUNNERS", (*RUNNERS, mine))
    for workers, name in (("0", "serial"), ("2", "ray"), ("auto", "ray"), ("mine://here", "mine")):
        assert runner_spec(workers).name == name
    with open_runner(RunnerOptions("mine://here")) as runner:
        assert list(runner.map(abs, [-2, 1])) == [2, 1]
    SearchConfig(budget=("flops=50%",), workers="mine://here")
    with pytest.raises(ConfigError, match=r"must be 0, or a number .*, or mine://HOST, got 'mine'"):
        SearchConfig(budget=("flops=50%",), workers="mine")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_the_registry_and_the_record_exist(row: list[str]) -> None:
    path, name = re.findall(r"`([^`]+)`", row[2])
    module = importlib.import_module(path.removesuffix(".py").replace("/", ".").replace("envs", "autoprune.envs", 1))
    assert hasattr(module, name)
    (record,) = re.findall(r"`(\w+)`", row[1])
    assert hasattr(module, record)
    assert all((ROOT / example).is_file() for example in re.findall(r"`([^`]+)`", row[3]))
