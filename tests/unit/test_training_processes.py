"""Trainings in processes of their own, as on several GPUs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.errors import ConfigError, TrainingError
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.training.extensions.fake_quantization import FakeQuantization
from autoprune.training.finetune import finetune
from autoprune.training.results import EpochReport, read_epochs
from tests.helpers.processes import ended, wait_for
from tests.helpers.training import PRUNED, parameters, pruned, write_training


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    return write_training(tmp_path_factory.mktemp("processes"))


@pytest.mark.slow
def test_a_process_of_its_own_trains_the_pruned_network_and_goes_on(
    adapter: UltralyticsAdapter, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What Ultralytics starts on each of several GPUs, here once and on the CPU."""
    reports: list[EpochReport] = []
    settings: dict[str, Any] = {"out": tmp_path, "devices": ["cpu"], "on_epoch": reports.append}
    result = finetune(adapter, pruned(), epochs=2, batch=3, **settings)
    assert capfd.readouterr() == ("", "")
    assert parameters(result.module) == PRUNED
    assert result.epochs == 2
    assert [(report.epoch, report.epochs) for report in reports] == [(1, 2), (2, 2)]
    assert reports[0].accuracy is not None
    assert result.losses == pytest.approx(reports[1].losses, abs=5e-6), "what Ultralytics logs is rounded"
    assert set(result.losses) == {"box_loss", "cls_loss", "dfl_loss"}

    unfinished = {**torch.load(tmp_path / "weights" / "state.pt", weights_only=True), "epoch": 1, "over": False}
    torch.save(unfinished, tmp_path / "weights" / "state.pt")
    (tmp_path / "epochs.json").unlink()  # as if it was killed before it had looked for a finished epoch
    again = finetune(adapter, pruned(), epochs=2, batch=3, resume=True, **settings)
    assert parameters(again.module) == PRUNED
    assert [report.epoch for report in reports[2:]] == [1, 2]
    assert [report.epoch for report in read_epochs(tmp_path)] == [1, 2]


def test_an_epoch_that_was_written_in_the_moment_before_a_kill_is_kept(
    adapter: UltralyticsAdapter, tmp_path: Path
) -> None:
    finetune(adapter, pruned(), epochs=2, batch=3, out=tmp_path)
    kept = read_epochs(tmp_path)
    (tmp_path / "epochs.json").write_text(json.dumps(json.loads((tmp_path / "epochs.json").read_text())[:1]))
    reports: list[EpochReport] = []
    finetune(adapter, pruned(), epochs=2, batch=3, out=tmp_path, on_epoch=reports.append, resume=True)
    assert [report.epoch for report in reports] == [2]
    assert [report.epoch for report in read_epochs(tmp_path)] == [1, 2]
    assert reports[0].accuracy == kept[1].accuracy


# Trains in processes of which each writes its number down and does not end by itself.
STARTER = """
import sys
from types import SimpleNamespace
from autoprune.training.ultralytics import parallel

parallel.stock = SimpleNamespace(generate_ddp_file=lambda session: sys.argv[1], ddp_cleanup=lambda *_: None)
session = SimpleNamespace(world_size=int(sys.argv[2]))
with parallel._script(session) as script, parallel._started(session, script, sys.stderr) as process:
    process.wait()
"""
ENDLESS = """
import os, pathlib, time
(pathlib.Path(__file__).parent / f"rank {os.getpid()}, of {os.getppid()}").touch()
time.sleep(600)
"""


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_processes_end_with_the_one_that_was_killed(tmp_path: Path, processes: int) -> None:
    (tmp_path / "script.py").write_text(ENDLESS)
    words = [sys.executable, "-c", STARTER, str(tmp_path / "script.py"), str(processes)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as starter:
        wait_for(lambda: len(list(tmp_path.glob("rank *"))) == processes, seconds=60)
        starter.kill()
    found = {int(number) for path in tmp_path.glob("rank *") for number in re.findall(r"\d+", path.name)}
    assert len(found) == processes + 1, "all of the same parent: this test's, or torch's launcher"
    wait_for(lambda: all(map(ended, found)), seconds=30)


@pytest.mark.slow
def test_what_a_process_fails_of_is_told(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    network = pruned()
    with torch.no_grad():
        network.model[0].conv.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"^the training loss is not a number in epoch 1"):
        finetune(adapter, network, epochs=1, batch=3, out=tmp_path, devices=["cpu"])


def test_what_takes_part_needs_one_device(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one device, got cuda:0, cuda:1"):
        finetune(
            adapter, pruned(), epochs=1, out=tmp_path, devices=["cuda:0", "cuda:1"], extensions=[FakeQuantization()]
        )
