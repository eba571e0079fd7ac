"""``--workers``: candidates computed by other processes, with the same result."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.cli.main import main
from autoprune.evaluation import runners
from autoprune.models import open_adapter
from autoprune.policy import Policy
from tests.helpers.world import arguments, one_sentence, records, summary

BUDGET = ("--budget", "flops=60%", "--no-tensorboard", "--episodes", "24")


@pytest.fixture
def ray() -> None:
    pytest.importorskip("ray", reason="pip install ray")


def scores(run: Path) -> dict[tuple[int, ...], float]:
    return {tuple(record["key"]): record["value"]["score"] for record in records(run, "evaluation")}


def iterations(run: Path) -> list[Any]:
    return [record["value"] for record in records(run, "iteration")]


def shipped_data() -> set[Path]:
    """Return the folders of data sets that were sent to this machine."""
    return {
        path for path in Path(tempfile.gettempdir()).glob("autoprune-*") if len(path.name) == len("autoprune-") + 32
    }


@pytest.mark.parametrize("workers", ["two", "-1", "ray://", "ray://head", "10000", "1.5", "http://head:1"])
def test_workers_are_a_number_or_a_cluster(
    tiny: Path, tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments("search", tiny, tmp_path / "run", *BUDGET, f"--workers={workers}")) == 2
    assert f"--workers must be 0, or a number of processes up to 9999, auto, or ray://HOST:PORT, got '{workers}'" in (
        one_sentence(capsys.readouterr().err)
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [("sensitivity",), ("search", *BUDGET)], ids=lambda command: command[0])
def test_without_ray_nothing_is_left_behind(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda name: None)
    assert main(arguments(command[0], tiny, tmp_path / "run", *command[1:], "--workers", "2")) != 0
    said = capsys.readouterr()
    assert re.search(r"--workers needs the package ray, which is not installed.*\[ray\]'", one_sentence(said.err))
    assert "Measure the dense network" not in said.out, "which may take minutes"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray")
def test_the_result_is_that_of_one_process(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {workers: tmp_path / workers for workers in ("0", "1", "2")}
    for workers, run in runs.items():
        assert main(arguments("search", tiny, run, *BUDGET, "--rollout", "8", "--workers", workers)) == 0
    found = [(Policy.load(run / "policy.json").units, list(scores(run).items())) for run in runs.values()]
    assert found[0] == found[1] == found[2]
    assert "2 workers computed" in capsys.readouterr().out
    assert "workers" not in summary(tmp_path / "0")
    assert summary(tmp_path / "2")["workers"]["tasks"] >= len(scores(tmp_path / "2"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray")
def test_probes_are_the_same(tiny: Path, tmp_path: Path) -> None:
    for workers in ("0", "2"):
        assert main(arguments("sensitivity", tiny, tmp_path / workers, "--ratios", "0.5", "--workers", workers)) == 0
    assert scores(tmp_path / "0") == scores(tmp_path / "2")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray")
def test_netadapt_trains_and_keeps_the_same_proposals(tiny: Path, tmp_path: Path) -> None:
    """To the last bit of what every iteration leaves, whose next one goes on from there."""
    found = []
    for workers in ("0", "1", "2"):
        run = tmp_path / workers
        limits = ("--budget", "flops=80%", "--short-term-steps", "2", "--initial-step", "0.1")
        assert main(arguments("netadapt", tiny, run, *limits, "--workers", workers)) == 0
        (last,) = sorted((run / "iterations").glob("*.pt"))[-1:]
        weights = open_adapter(last).module.state_dict()
        found.append((Policy.load(run / "policy.json").units, iterations(run), weights))
    assert len(found[0][1]) > 1
    for units, steps, weights in found[1:]:
        assert (units, steps) == found[0][:2]
        assert all(torch.equal(tensor, found[0][2][name]) for name, tensor in weights.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray")
def test_fine_tunes_of_a_comparison_are_the_same(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    temporary = shipped_data()
    for workers in ("0", "1", "2"):
        run = tmp_path / workers
        options = ("--budget", "flops=60%", "--strategies", "uniform,random", "--evaluations", "8", "--seeds", "2")
        options += ("--finetune-epochs", "1", "--correlated", "4", "--workers", workers)
        options += ("--ship-data",) if workers == "2" else ()
        assert main(arguments("compare", tiny, run, *options)) == 0
        weights = {path.parent.name: open_adapter(path).module.state_dict() for path in run.glob("*/*/model.pt")}
        tuned = [(one["key"], one["value"]) for kind in ("tuned", "reference") for one in records(run, kind)]
        files = {path.relative_to(run) for path in run.glob("*/*/**/*") if path.is_file()}
        found.append((tuned, files, weights))
    assert {"dense", "lower-32", "uniform-0", "random-1"} <= found[0][2].keys()
    assert "The data set goes to the workers once: " in capsys.readouterr().out
    for tuned, files, weights in found[1:]:
        assert (tuned, files) == found[0][:2]
        for name, tensors in weights.items():
            assert all(torch.equal(tensor, found[0][2][name][key]) for key, tensor in tensors.items())
    assert shipped_data() <= temporary, "nothing is left behind"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray")
def test_criteria_are_fine_tuned_the_same(tiny: Path, tmp_path: Path) -> None:
    found = []
    for workers in ("0", "2"):
        run = tmp_path / workers
        options = ("--budget", "flops=60%", "--criteria", "l1,bn", "--finetune-epochs", "1", "--workers", workers)
        assert main(arguments("compare", tiny, run, *options)) == 0
        rows = [(one["key"], {**one["value"], "seconds": 0}) for one in records(run, "criterion")]
        found.append((rows, {path.relative_to(run) for path in run.glob("networks/**/*") if path.is_file()}))
        assert ("workers" in json.loads((run / "compare.json").read_text())) == (workers == "2")
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray")
def test_a_killed_run_goes_on_with_as_many_workers_as_then_wanted(tiny: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = arguments("search", tiny, killed, *BUDGET, "--workers", "2")
    process = subprocess.Popen([sys.executable, "-m", "autoprune", *words], stdout=subprocess.DEVNULL)
    journal, deadline = killed / "journal.jsonl", time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b'"kind": "evaluation"') > 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists()
    assert main(["search", "--resume", str(killed), "--workers", "1"]) == 0
    assert main(arguments("search", tiny, whole, *BUDGET)) == 0
    assert Policy.load(killed / "policy.json").units == Policy.load(whole / "policy.json").units
