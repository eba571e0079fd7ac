from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.errors import ConfigError, DeviceError, ModelError, TrainingError
from autoprune.models.module import ModuleAdapter, Sgd
from autoprune.training.extensions.distill import Distillation
from autoprune.training.finetune import finetune
from autoprune.training.results import EpochReport, FinetuneResult, read_epochs
from tests.helpers.own_network import SHAPE, Net, Shapes, adapter, loss
from tests.helpers.training import Stop, stop


@pytest.fixture
def own() -> ModuleAdapter:
    torch.manual_seed(0)
    return adapter(Net(8))


def tuned(own: ModuleAdapter, out: Path, **options: Any) -> FinetuneResult:
    return finetune(own, own.module, out=out, **{"epochs": 3, "batch": 8, "lr_scale": 1.0, **options})


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(tensor, twin) for tensor, twin in pairs)


def test_it_learns_and_leaves_the_network_alone(own: ModuleAdapter, tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    before = {name: tensor.clone() for name, tensor in own.module.state_dict().items()}
    result = tuned(own, tmp_path, epochs=6, on_epoch=reports.append)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.module.state_dict().items())
    assert [(report.epoch, report.epochs) for report in reports] == [(epoch, 6) for epoch in range(1, 7)]
    assert reports[-1].losses["loss"] < reports[0].losses["loss"]
    assert result.losses == reports[-1].losses
    assert not result.module.training
    (batch,) = own.batches("train", images=24, batch=24, seed=0)
    with torch.no_grad():
        assert own.loss(result.module, batch) < own.loss(own.module, batch)


def test_it_is_a_function_of_its_seed(own: ModuleAdapter, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    one, two, other = (tuned(own, tmp_path / name, seed=seed).module for name, seed in [("a", 0), ("b", 0), ("c", 1)])
    assert same(one, two)
    assert not same(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_killed_training_ends_as_one_that_was_not(own: ModuleAdapter, tmp_path: Path) -> None:
    whole = tuned(own, tmp_path / "whole")
    with pytest.raises(Stop):
        tuned(own, tmp_path / "killed", on_epoch=stop)
    reports: list[EpochReport] = []
    resumed = tuned(own, tmp_path / "killed", on_epoch=reports.append, resume=True)
    assert [report.epoch for report in reports] == [2, 3]
    assert read_epochs(tmp_path / "killed") == read_epochs(tmp_path / "whole")
    assert same(resumed.module, whole.module)
    assert (resumed.epochs, resumed.batch, resumed.losses) == (whole.epochs, whole.batch, whole.losses)
    again = tuned(own, tmp_path / "killed", resume=True)  # killed between the last epoch and what follows
    assert same(again.module, whole.module)


def test_the_learning_rate_starts_at_the_share_and_falls(
    own: ModuleAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    own.sgd = Sgd(lr=0.2)
    tuned(own, tmp_path, epochs=4, batch=24, lr_scale=0.1)
    assert rates[0] == pytest.approx(0.02)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * rates[0]

    rates.clear()
    tuned(own, tmp_path / "named", epochs=4, batch=24, lr_scale=0.1, changes={"lr0": 0.05})
    assert rates[0] == pytest.approx(0.05), "a rate that is given is the rate itself, as in Ultralytics' training"


@pytest.mark.parametrize("kill", [False, True])
def test_with_patience_the_best_epoch_s_weights_are_the_result(tmp_path: Path, kill: bool) -> None:
    told = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    torch.manual_seed(0)
    own = adapter(Net(8), metric=lambda *_: next(told))
    reports: list[EpochReport] = []

    def note(report: EpochReport) -> None:
        reports.append(report)
        if kill and report.epoch == 3:
            raise Stop

    if kill:
        with pytest.raises(Stop):
            tuned(own, tmp_path / "run", epochs=9, changes={"patience": 2}, on_epoch=note)
        result = tuned(own, tmp_path / "run", epochs=9, changes={"patience": 2}, on_epoch=note, resume=True)
    else:
        result = tuned(own, tmp_path / "run", epochs=9, changes={"patience": 2}, on_epoch=note)
    assert [report.epoch for report in reports] == [1, 2, 3, 4]
    assert result.epochs == 4
    best = torch.load(tmp_path / "run" / "weights" / "best.pt", weights_only=True)
    assert best["epoch"] == best["best_epoch"] == 2
    assert torch.equal(result.module.get_parameter("head.weight"), best["module"]["head.weight"])


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    calls: list[int] = []

    def breaking(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return loss(module, images, kinds) * (float("nan") if len(calls) == 5 else 1.0)

    broken = adapter(Net(8), loss=breaking)
    with pytest.raises(TrainingError, match=r"not a number in epoch 2 \(nan, .*\); lower the learning rate"):
        tuned(broken, tmp_path)


def test_a_loss_without_a_gradient_is_told(tmp_path: Path) -> None:
    detached = adapter(Net(8), loss=lambda module, images, kinds: loss(module, images, kinds).detach())
    with pytest.raises(TrainingError, match="the loss must depend on weights that are trained, and has no gradient"):
        tuned(detached, tmp_path)


def test_a_teacher_teaches_what_is_called_by_name(tmp_path: Path) -> None:
    def named(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(module(image=images), kinds)

    torch.manual_seed(0)
    own = adapter(Net(8), loss=named)
    result = tuned(own, tmp_path, extensions=[Distillation(own.module)])
    assert result.losses.keys() > {"loss"}


def test_memory_that_runs_out_is_told(tmp_path: Path) -> None:
    def large(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(DeviceError, match="out of memory on cpu in epoch 1; give a smaller `batch`"):
        tuned(adapter(Net(8), loss=large), tmp_path)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), MemoryError()]
)
def test_a_lack_of_memory_is_told(tmp_path: Path, error: Exception) -> None:
    def scarce(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(DeviceError, match="out of memory on cpu in epoch 1; give a smaller `batch`"):
        tuned(adapter(Net(8), loss=scarce), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"changes": {"mosaic": 1.0}}, "no setting mosaic"),
        ({"devices": ("cuda:0", "cuda:1")}, "on one device; leave further devices out"),
        ({"changes": {"optimizer": "AdamW"}}, "whose optimizer is SGD, got AdamW"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_written(
    own: ModuleAdapter, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tuned(own, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_another_network_s_training_is_not_resumed(own: ModuleAdapter, tmp_path: Path) -> None:
    tuned(own, tmp_path, epochs=1)
    with pytest.raises(TrainingError, match=r"last.pt does not hold the pruned network: stem.0.weight is 8×2×3×3"):
        finetune(own, Net(12), epochs=1, out=tmp_path, resume=True)


@pytest.mark.parametrize("left", [2, 1000])
def test_a_corrupt_file_is_told(own: ModuleAdapter, tmp_path: Path, left: int) -> None:
    tuned(own, tmp_path, epochs=1)
    file = tmp_path / "weights" / "last.pt"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ModelError, match=r"last\.pt is damaged or not of this training; remove its folder"):
        tuned(own, tmp_path, epochs=1, resume=True)


def test_every_image_counts_the_same(tmp_path: Path) -> None:
    class Constant(Shapes):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.full(SHAPE, float(index)), 0

    means = adapter(
        Net(8), train=Constant(10, 0), loss=lambda module, images, _: images.mean() + 0 * module(images).sum()
    )
    reports: list[EpochReport] = []
    tuned(means, tmp_path, epochs=1, batch=4, on_epoch=reports.append)
    assert reports[0].losses["loss"] == pytest.approx(4.5)
