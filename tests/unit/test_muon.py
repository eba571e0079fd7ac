"""Pruned networks are brought back by Muon, whose steps a CPU computes in float32."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.training.extensions._base import Event, Training, TrainingExtension
from autoprune.training.finetune import finetune
from autoprune.training.ultralytics.muon import float32_steps, orthogonalised
from tests.helpers.training import Stop, pruned, stop, write_training


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    return write_training(tmp_path_factory.mktemp("muon"))


class StopAtOnce(TrainingExtension):
    def attach(self, training: Training) -> None:
        training.listen(Event.EPOCH_START, stop)


def trained_with(adapter: UltralyticsAdapter, out: Path, epochs: int = 10, **options: Any) -> tuple[str, float]:
    """Return the optimizer and first learning rate of a fine-tune."""
    with pytest.raises(Stop):
        finetune(adapter, pruned(), epochs=epochs, out=out, batch=3, extensions=[StopAtOnce()], **options)
    arguments = yaml.safe_load((out / "args.yaml").read_text())
    return arguments["optimizer"], arguments["lr0"]


def test_a_pruned_network_is_brought_back_by_muon_whatever_trained_the_dense_one(
    adapter: UltralyticsAdapter, tmp_path: Path
) -> None:
    assert adapter.train_args["optimizer"] != "MuSGD"
    assert trained_with(adapter, tmp_path, recovers=True, lr_scale=2.0) == ("MuSGD", pytest.approx(0.02))


def test_a_short_training_keeps_the_optimizer_of_the_dense_one(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    assert trained_with(adapter, tmp_path, epochs=9, recovers=True) == ("AdamW", pytest.approx(0.001))


def test_other_trainings_keep_the_optimizer_of_the_dense_one(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    assert trained_with(adapter, tmp_path) == ("AdamW", pytest.approx(0.001))


def test_an_optimizer_that_is_asked_for_has_the_rate_of_the_dense_training(
    adapter: UltralyticsAdapter, tmp_path: Path
) -> None:
    found = trained_with(adapter, tmp_path, recovers=True, changes={"optimizer": "AdamW"})
    assert found == ("AdamW", pytest.approx(0.001))
    found = trained_with(adapter, tmp_path, recovers=True, changes={"optimizer": "musgd"})
    assert found == ("musgd", pytest.approx(0.01)), "as Ultralytics reads it"
    found = trained_with(adapter, tmp_path, recovers=True, changes={"lr0": 0.5})
    assert found == ("MuSGD", pytest.approx(0.5))


def test_tasks_that_it_was_not_measured_on_keep_theirs(
    adapter: UltralyticsAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "task", replace(adapter.task, muon=False))
    assert trained_with(adapter, tmp_path, recovers=True)[0] == "AdamW"


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3), st.integers(0, 99))
def test_what_is_orthogonalised_has_singular_values_of_about_one(
    rows: int, columns: int, batch: int, seed: int
) -> None:
    shape = (batch, rows, columns) if batch else (rows, columns)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    least = min(rows, columns)
    values = torch.linspace(1.0, 0.2, least)  # well-conditioned: five iterations do not lift what is near zero
    matrices = left[..., :least] * values @ right[..., :least, :]
    found = torch.linalg.svdvals(orthogonalised(matrices))
    assert found.shape[-1] == least
    assert 0.6 < float(found.min()) <= float(found.max()) < 1.3


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (3, 8, 24)])
def test_steps_in_float32_are_those_of_bfloat16_without_its_rounding(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    theirs = stock.muon.zeropower_via_newtonschulz5(matrices).float()
    with float32_steps(torch.device("cpu")):
        mine = stock.muon.zeropower_via_newtonschulz5(matrices)
    assert mine.dtype == torch.float32
    assert float((mine - theirs).norm() / mine.norm()) < 0.04
    assert not torch.equal(mine, theirs)


def test_the_package_is_left_as_it_was() -> None:
    original = stock.muon.zeropower_via_newtonschulz5
    with suppress(ZeroDivisionError), float32_steps(torch.device("cpu")):
        assert stock.muon.zeropower_via_newtonschulz5 is orthogonalised
        raise ZeroDivisionError
    assert stock.muon.zeropower_via_newtonschulz5 is original
    with float32_steps(torch.device("cuda")):
        assert stock.muon.zeropower_via_newtonschulz5 is original


def test_the_optimizer_takes_such_steps() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    weight.grad = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    optimizer = stock.muon.MuSGD([{"params": [weight], "use_muon": True}], lr=1.0, muon=1.0, sgd=0.0)
    with float32_steps(torch.device("cpu")):
        optimizer.step()
    assert torch.allclose(weight.detach(), -orthogonalised(weight.grad), atol=1e-6)
