"""Curves reach trackers once, however often a run goes on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import ConfigError
from autoprune.listener import SilentListener, hearing
from autoprune.tracking import TRACKERS, MLflowTracker, RunTracking, TensorBoardTracker, TrackerSpec, check_tracker


class Kept:
    """Keeps what it is handed."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.seen: list[tuple[int, Mapping[str, float]]] = []
        self.over: str | None = None

    def start(self, name: str, config: Mapping[str, Any], folder: Path, key: str) -> None:
        self.keys.append(key)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.seen.append((step, dict(values)))

    def finish(self, failed: bool) -> None:
        self.over = "failed" if failed else "finished"


def test_a_step_is_handed_on_once_and_steps_only_rise(tmp_path: Path) -> None:
    first, second = Kept(), Kept()
    run = RunTracking({"one": first}, tmp_path, {})
    run.log(1, {"search/best": 0.1, "search/noise": math.nan})
    run.log(2, {"search/best": 0.2})
    run.close()
    again = RunTracking({"one": second}, tmp_path, {})
    for step, value in ((1, 0.1), (2, 0.2), (3, 0.3)):
        again.log(step, {"search/best": value})
    assert first.seen == [(1, {"search/best": 0.1}), (2, {"search/best": 0.2})]
    assert second.seen == [(3, {"search/best": 0.3})]
    assert first.keys == second.keys
    assert (first.over, second.over) == ("finished", None)


def test_a_tracker_that_a_resume_adds_hears_the_whole_curve(tmp_path: Path) -> None:
    first, again, added = Kept(), Kept(), Kept()
    RunTracking({"one": first}, tmp_path, {}).log(1, {"search/best": 0.1})
    run = RunTracking({"one": again, "two": added}, tmp_path, {})
    for step in (1, 2):
        run.log(step, {"search/best": step / 10})
    assert [step for step, _ in again.seen] == [2]
    assert [step for step, _ in added.seen] == [1, 2]


@pytest.mark.parametrize("fails", ["start", "log", "finish"])
def test_a_tracker_that_fails_costs_a_warning_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def away(*_: object) -> None:
        raise ConnectionError("the server is away")

    class Hears(SilentListener):
        def warn(self, text: str) -> None:
            heard.append(text)

    heard: list[str] = []
    broken, whole = Kept(), Kept()
    monkeypatch.setattr(broken, fails, away)
    with hearing(Hears()):
        run = RunTracking({"one": broken, "two": whole}, tmp_path, {})
        for step in (1, 2):
            run.log(step, {"search/best": step / 10})
        run.close(failed=True)
    assert heard == ["The tracker one failed (ConnectionError: the server is away); the run goes on without it."]
    assert ([step for step, _ in whole.seen], whole.over) == ([1, 2], "failed")


def test_a_tracker_that_hears_nothing_does_not_start(tmp_path: Path) -> None:
    tracker = Kept()
    run = RunTracking({"one": tracker}, tmp_path, {})
    run.log(1, {"search/best": -math.inf})
    run.close()
    assert (tracker.keys, tracker.over, list(tmp_path.iterdir())) == ([], None, [])


def test_tensorboard_shows_a_run_that_went_on_as_one_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((1, 2), (1, 2, 3)):
        run = RunTracking({"tensorboard": TensorBoardTracker()}, tmp_path, {})
        for step in steps:
            run.log(step, {"search/best": step / 8})
        run.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("search/best")] == [(1, 0.125), (2, 0.25), (3, 0.375)]


def test_mlflow_keeps_a_run_that_went_on_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for steps in ((1, 2), (1, 2, 3)):
        run = RunTracking({"mlflow": MLflowTracker()}, tmp_path, {"seed": 3})
        for step in steps:
            run.log(step, {"finetune/mAP50(B)": step / 8})
        run.close()
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'autoprune'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.data.params) == ("FINISHED", {"seed": "3"})
    curve = client.get_metric_history(found.info.run_id, "finetune/mAP50_B_")
    assert [(point.step, point.value) for point in curve] == [(1, 0.125), (2, 0.25), (3, 0.375)]


def test_wandb_writes_offline_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = RunTracking({"wandb": check_tracker("wandb").make()}, tmp_path, {"seed": 3})
    run.log(1, {"search/best": 0.5})
    run.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + 20
    while b"search/best" not in file.read_bytes() and time.monotonic() < end:  # another process writes it
        time.sleep(0.1)
    assert b"search/best" in file.read_bytes()
    assert "WANDB_MODE" not in os.environ, "runs of the user's own are not changed"


def test_a_tracker_that_is_not_there_names_its_extra() -> None:
    with pytest.raises(ConfigError, match=r"needs no_such_package, .* -m pip install .*\[mlflow\]"):
        TrackerSpec("mlflow", "autoprune.tracking:MLflowTracker", "no_such_package", extra="mlflow").make()
    with pytest.raises(ConfigError, match=f"must be {', '.join(spec.name for spec in TRACKERS)}, got aim"):
        check_tracker("aim")
