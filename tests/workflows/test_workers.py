"""``--workers``: candidates computed by other processes, with the same result."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoprune.cli.main import main
from autoprune.evaluation import ray_cluster
from autoprune.policy import Policy
from tests.helpers.world import arguments, one_sentence, records

BUDGET = ("--budget", "flops=60%", "--no-tensorboard", "--episodes", "24")


@pytest.fixture
def ray() -> None:
    pytest.importorskip("ray", reason="pip install ray")


def scores(run: Path) -> dict[tuple[int, ...], float]:
    return {tuple(record["key"]): record["value"]["score"] for record in records(run, "evaluation")}


@pytest.mark.parametrize("workers", ["two", "-1", "ray://", "ray://head", "10000", "1.5", "http://head:1"])
def test_workers_are_a_number_or_a_cluster(
    tiny: Path, tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments("search", tiny, tmp_path / "run", *BUDGET, f"--workers={workers}")) == 2
    assert f"--workers must be a number of processes up to 9999, auto, or ray://HOST:PORT, got '{workers}'" in (
        one_sentence(capsys.readouterr().err)
    )
    assert not (tmp_path / "run").exists()


def test_without_ray_nothing_is_left_behind(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    assert main(arguments("sensitivity", tiny, tmp_path / "run", "--workers", "2")) != 0
    assert "--workers needs the package ray, which is not installed" in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray")
def test_the_result_is_that_of_one_process(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {workers: tmp_path / workers for workers in ("0", "1", "2")}
    for workers, run in runs.items():
        assert main(arguments("search", tiny, run, *BUDGET, "--workers", workers)) == 0
    found = [(Policy.load(run / "policy.json").units, list(scores(run).items())) for run in runs.values()]
    assert found[0] == found[1] == found[2]
    assert "2 workers computed" in capsys.readouterr().out


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
