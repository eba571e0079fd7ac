"""Interrupted trainings end with the network that they would have ended with, bit for bit, wherever they stopped."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autoprune.training.ultralytics.session
from autoprune.choices import PenaltyName
from autoprune.errors import ModelError, TrainingError
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.structure.space import Space
from autoprune.training.extensions._base import Event, TrainingExtension
from autoprune.training.extensions.distill import Distillation
from autoprune.training.extensions.fake_quantization import FakeQuantization
from autoprune.training.extensions.gradual_zeroing import GradualZeroing
from autoprune.training.extensions.masking import Masking, convolution_weights, two_of_four
from autoprune.training.extensions.penalties import make_penalty
from autoprune.training.extensions.sparsity import Schedule, SparsityTraining
from autoprune.training.extensions.sparsity_record import SparsityRecord
from autoprune.training.finetune import finetune
from autoprune.training.results import EpochReport, FinetuneResult, read_epochs
from autoprune.training.ultralytics.session import Session
from tests.helpers.detectors import build
from tests.helpers.networks import random_keep
from tests.helpers.training import Stop, parameters, pruned, stop, write_training
from tests.helpers.world import analysed

EPOCHS = 3
EVENTS = (*(event.value for event in Event), "on_model_save", "on_fit_epoch_end")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    return write_training(tmp_path_factory.mktemp("resume"))


def tune(adapter: UltralyticsAdapter, out: Path, module: nn.Module | None = None, **options: Any) -> FinetuneResult:
    settings: dict[str, Any] = {"epochs": EPOCHS, "batch": 2, "workers": 0, **options}
    return finetune(adapter, pruned() if module is None else module, out=out, **settings)


@pytest.fixture(scope="module")
def whole(adapter: UltralyticsAdapter, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """A training that was not interrupted."""
    return tune(adapter, tmp_path_factory.mktemp("whole"))


def assert_same(one: FinetuneResult, other: FinetuneResult) -> None:
    mine, theirs = one.module.state_dict(), other.module.state_dict()
    assert mine.keys() == theirs.keys()
    assert [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])] == []
    assert (one.epochs, one.batch, one.losses) == (other.epochs, other.batch, other.losses)


class StopAt(TrainingExtension):
    """Stops a training at an event, the first time that it comes in an epoch or later."""

    def __init__(self, event: str, epoch: int) -> None:
        self._event, self._epoch = event, epoch

    def attach(self, session: Session) -> None:
        def look(trainer: Any) -> None:
            if getattr(trainer, "epoch", self._epoch) >= self._epoch:
                raise Stop

        session.listen(self._event, look)


# -- wherever it stops -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event", [pytest.param(event, marks=() if event == Event.GRADIENTS else pytest.mark.slow) for event in EVENTS]
)
def test_a_stop_at_any_moment_of_an_epoch(
    adapter: UltralyticsAdapter, whole: FinetuneResult, tmp_path: Path, event: str
) -> None:
    with pytest.raises(Stop):
        tune(adapter, tmp_path, extensions=[StopAt(event, epoch=1)])
    reports: list[EpochReport] = []
    assert_same(tune(adapter, tmp_path, resume=True, on_epoch=reports.append), whole)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2", "3"]
    if event == Event.GRADIENTS:
        assert [report.epoch for report in reports] == [2, 3]


@pytest.mark.slow
def test_many_stops(adapter: UltralyticsAdapter, whole: FinetuneResult, tmp_path: Path) -> None:
    for epoch in range(EPOCHS):
        with pytest.raises(Stop):
            tune(adapter, tmp_path, resume=True, extensions=[StopAt(Event.STEPPED, epoch)])
    assert_same(tune(adapter, tmp_path, resume=True), whole)


def test_a_stop_after_the_last_epoch(adapter: UltralyticsAdapter, whole: FinetuneResult, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        tune(adapter, tmp_path, extensions=[StopAt("on_model_save", epoch=EPOCHS - 1)])
    reports: list[EpochReport] = []
    assert_same(tune(adapter, tmp_path, resume=True, on_epoch=reports.append), whole)
    assert reports == [], "nothing is trained again"
    assert [report.epoch for report in read_epochs(tmp_path)] == [1, 2, 3], "the curve is whole"


@pytest.mark.slow
@pytest.mark.parametrize("epoch", range(EPOCHS))
@pytest.mark.parametrize("written", [False, True], ids=["before the state", "after it"])
def test_a_stop_between_the_files_of_an_epoch(
    adapter: UltralyticsAdapter,
    whole: FinetuneResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
    written: bool,
) -> None:
    write = autoprune.training.ultralytics.session.write_state

    def stopped(session: Session, best: Mapping[str, torch.Tensor]) -> None:
        if written or session.epoch < epoch:
            write(session, best)
        if session.epoch == epoch:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(autoprune.training.ultralytics.session, "write_state", stopped)
        with pytest.raises(Stop):
            tune(adapter, tmp_path)
    assert_same(tune(adapter, tmp_path, resume=True), whole)
    assert {path.name for path in (tmp_path / "weights").iterdir()} == {"last.pt", "state.pt"}


_KILLED = """
import os, signal, sys
from pathlib import Path
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.training.extensions._base import Event, TrainingExtension
from tests.workflows.test_resume import tune

class Kill(TrainingExtension):
    def attach(self, session):
        session.listen(Event.GRADIENTS, lambda one: one.epoch == 1 and os.kill(os.getpid(), signal.SIGKILL))

folder, out = map(Path, sys.argv[1:])
tune(UltralyticsAdapter.load(folder / "tiny.pt", data=folder / "data.yaml"), out, extensions=[Kill()])
"""


@pytest.mark.slow
def test_kill_9_within_an_epoch(adapter: UltralyticsAdapter, whole: FinetuneResult, tmp_path: Path, root: Path) -> None:
    assert adapter.data is not None
    command = [sys.executable, "-c", _KILLED, str(adapter.data.file.parent), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run(command, cwd=root, env=environment).returncode == -signal.SIGKILL
    assert_same(tune(adapter, tmp_path / "out", resume=True), whole)


# -- whatever is trained ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A kind of training."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    extensions: Callable[[UltralyticsAdapter, Path], Sequence[TrainingExtension]] = lambda *_: ()
    module: Callable[[], nn.Module] = pruned


def softening(adapter: UltralyticsAdapter, _: Path) -> Sequence[TrainingExtension]:
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    return [GradualZeroing(graph, random_keep(Space(graph, round_to=1, min_keep=1e-6), 0))]


def sparsity(adapter: UltralyticsAdapter, folder: Path) -> Sequence[TrainingExtension]:
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    penalty = make_penalty(PenaltyName.L1, adapter.module, graph)
    scales = penalty.scales(dict(adapter.module.named_parameters(remove_duplicate=False)))
    record = SparsityRecord.start(scales, penalty="l1", watched=next(iter(penalty.spans)))
    schedule = Schedule(0.1, warmup=0.3, decay=0.1)
    return [SparsityTraining(penalty, schedule, record, file=folder / "sparsity.json", events=folder / "events")]


def masks(adapter: UltralyticsAdapter, _: Path) -> Sequence[TrainingExtension]:
    return [Masking(two_of_four(convolution_weights(adapter.module)))]


CASES = {
    "mosaics, then none": Case({"close_mosaic": 1, "mosaic": 1.0, "mixup": 0.5, "multi_scale": 0.5}),
    "steps of several batches": Case({"nbs": 5 * 2, "warmup_epochs": 1.5}),
    "Muon": Case({"optimizer": "MuSGD", "lr0": 0.01, "warmup_epochs": 2.0}),
    "SGD": Case({"optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 2.0}),
    "the best epoch": Case({"patience": 2}),
    "two heads": Case(module=lambda: build(8, seed=1, end2end=True)),
    "a teacher": Case(extensions=lambda adapter, _: [Distillation(adapter.module)]),
    "softening": Case(extensions=softening, module=build),
    "sparsity": Case({"optimizer": "SGD", "lr0": 0.01}, extensions=sparsity, module=build),
    "masks": Case(extensions=masks, module=build),
    "fake quantisation": Case(extensions=lambda *_: [FakeQuantization()], module=build),
}


@pytest.mark.slow
@pytest.mark.parametrize("epoch", range(1, EPOCHS))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stop_in_any_kind_of_training(adapter: UltralyticsAdapter, tmp_path: Path, case: Case, epoch: int) -> None:
    def tuned(name: str, *more: TrainingExtension, **options: Any) -> FinetuneResult:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        extensions = [*case.extensions(adapter, folder), *more]
        return tune(adapter, folder / "out", case.module(), changes=case.changes, extensions=extensions, **options)

    whole = tuned("whole")
    with pytest.raises(Stop):
        tuned("stopped", StopAt("on_train_batch_end", epoch))
    assert_same(tuned("stopped", resume=True), whole)
    records = [tmp_path / name / "sparsity.json" for name in ("whole", "stopped")]
    if records[0].exists():
        assert len({SparsityRecord.load(file).epochs[-1] for file in records}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_a_stop_in_any_task(tmp_path: Path, task: str) -> None:
    from tests.helpers.task_data import write_task_data
    from tests.unit.test_tasks import build as built
    from tests.unit.test_tasks import write_network

    data = write_task_data(tmp_path / "data", task)
    adapter = UltralyticsAdapter.load(write_network(tmp_path / "dense.pt", task), data=data)
    whole = tune(adapter, tmp_path / "whole", built(task, 8))
    with pytest.raises(Stop):
        tune(adapter, tmp_path / "out", built(task, 8), extensions=[StopAt(Event.GRADIENTS, 1)])
    assert_same(tune(adapter, tmp_path / "out", built(task, 8), resume=True), whole)


@pytest.mark.slow
def test_a_stop_with_processes_that_load_images(
    adapter: UltralyticsAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: on a CPU Ultralytics loads in the training's own process."""
    build_pipeline = Session._build_train_pipeline

    def with_workers(self: Session) -> None:
        self.args.workers = 2
        build_pipeline(self)
        assert self.train_loader.num_workers == min(2, os.cpu_count() or 1)

    monkeypatch.setattr(Session, "_build_train_pipeline", with_workers)
    changes = {"mosaic": 1.0, "close_mosaic": 0}
    whole = tune(adapter, tmp_path / "whole", changes=changes)
    with pytest.raises(Stop):
        tune(adapter, tmp_path / "out", changes=changes, extensions=[StopAt(Event.GRADIENTS, 1)])
    assert_same(tune(adapter, tmp_path / "out", changes=changes, resume=True), whole)


@pytest.mark.shared
@pytest.mark.slow
def test_a_stop_of_a_real_detector(shared: Path, tmp_path: Path) -> None:
    adapter = UltralyticsAdapter.load(
        shared / "models/bccd-yolov5nu-320.pt", data=shared / "data/bccd/bccd.yaml", image_size=96
    )
    options: dict[str, Any] = {"epochs": 2, "batch": 16, "changes": {"fraction": 0.2, "mosaic": 1.0, "close_mosaic": 1}}
    whole = tune(adapter, tmp_path / "whole", adapter.module, **options)
    with pytest.raises(Stop):
        tune(adapter, tmp_path / "out", adapter.module, extensions=[StopAt(Event.STEPPED, 1)], **options)
    assert_same(tune(adapter, tmp_path / "out", adapter.module, resume=True, **options), whole)


# -- what there is to go on from -------------------------------------------------------------------


def test_nothing_to_go_on_from_is_a_beginning(
    adapter: UltralyticsAdapter, whole: FinetuneResult, tmp_path: Path
) -> None:
    assert_same(tune(adapter, tmp_path, resume=True), whole)


def test_what_another_training_left_is_not_gone_on_from(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    tune(adapter, tmp_path, epochs=1)
    with pytest.raises(Stop):
        tune(adapter, tmp_path, epochs=2, seed=1, extensions=[StopAt(Event.GRADIENTS, 0)])
    reports: list[EpochReport] = []
    tune(adapter, tmp_path, epochs=2, seed=1, resume=True, on_epoch=reports.append)
    assert [report.epoch for report in reports] == [1, 2]


def test_another_network_s_state_is_refused(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        tune(adapter, tmp_path, on_epoch=stop)
    with pytest.raises(TrainingError, match=r"state\.pt does not hold the pruned network: model\.1\.conv\.weight"):
        tune(adapter, tmp_path, build(), resume=True)


class Planted:
    """Tells, where it is unpickled, that code from a file was run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PLANTED"],)


def _no_optimizer(content: dict[str, Any]) -> None:
    del content["optimizer"]


def _other_optimizer(content: dict[str, Any]) -> None:
    content["optimizer"]["param_groups"].pop()


def _no_numbers(content: dict[str, Any]) -> None:
    content["epoch"] = "two"


def _code(content: dict[str, Any]) -> None:
    content["extensions"] = Planted()


@pytest.mark.parametrize("damage", [None, _no_optimizer, _other_optimizer, _no_numbers, _code])
def test_a_damaged_state_is_refused_and_no_code_in_it_is_run(
    adapter: UltralyticsAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[dict[str, Any]], None] | None,
) -> None:
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    with pytest.raises(Stop):
        tune(adapter, tmp_path, epochs=2, on_epoch=stop)
    file = tmp_path / "weights" / "state.pt"
    if damage is None:
        file.write_bytes(file.read_bytes()[:5000])
    else:
        content = torch.load(file, weights_only=True)
        damage(content)
        torch.save(content, file)
    with pytest.raises(ModelError, match=r"state\.pt is damaged or not of this training; remove its folder"):
        tune(adapter, tmp_path, epochs=2, resume=True)
    assert not (tmp_path / "planted").exists()


def test_a_label_cache_in_the_run_is_not_unpickled(
    adapter: UltralyticsAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    with pytest.raises(Stop):
        tune(adapter, tmp_path, epochs=2, on_epoch=stop)
    (tmp_path / "train.cache").write_bytes(pickle.dumps(Planted()))  # where Ultralytics' trainer was told to look
    result = tune(adapter, tmp_path, epochs=2, resume=True)
    assert parameters(result.module) == parameters(pruned())
    assert not (tmp_path / "planted").exists()
