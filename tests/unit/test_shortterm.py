"""Short fine-tunes: a few steps that lower the loss, the same every time, on images that score no candidate."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.errors import DeviceError, TrainingError
from autoprune.models._base import Adapter, Batch
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.training.shortterm import HELD_IMAGES, train_briefly, training_batches
from tests.helpers import own_network
from tests.helpers.detectors import build, write_detector


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """As the commands here compute: sums are the same to the last bit then."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    """A detector that sees objects everywhere, so that there is something to unlearn."""
    network = build()
    for branch in network.model[-1].cv3:
        nn.init.zeros_(branch[-1].bias)
    weights = write_detector(tmp_path_factory.mktemp("shortterm") / "eager.pt", network)
    return UltralyticsAdapter.load(weights, data=tiny / "data" / "data.yaml", image_size=64)


def tuned(adapter: Adapter, *, steps: int = 10, lr_scale: float = 0.1) -> nn.Module:
    module = deepcopy(adapter.module)
    batches = training_batches(adapter, scoring=2, steps=steps, batch=2, seed=0)
    train_briefly(adapter, module, batches, steps=steps, lr_scale=lr_scale)
    return module


def loss(adapter: Adapter, module: nn.Module, batches: list[Batch]) -> float:
    module = deepcopy(module).train()
    with torch.no_grad():
        return sum(float(adapter.loss(module, batch)) for batch in batches)


def images(adapter: Adapter, batches: Any) -> list[torch.Tensor]:
    return [image for batch in batches for image in adapter.inputs(batch)]


def test_a_few_steps_change_the_weights_and_lower_the_loss(adapter: UltralyticsAdapter) -> None:
    before = {name: tensor.clone() for name, tensor in adapter.module.state_dict().items()}
    batches = list(training_batches(adapter, scoring=2, steps=10, batch=2, seed=0))
    module = tuned(adapter, steps=40, lr_scale=1.0)
    assert module.training
    assert loss(adapter, module, batches) < 0.9 * loss(adapter, adapter.module, batches)
    changed = dict(module.named_parameters())
    assert all(torch.isfinite(tensor).all() for tensor in changed.values())
    assert not torch.equal(changed["model.0.conv.weight"], before["model.0.conv.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.module.state_dict().items())


def test_what_the_head_fixes_stays(adapter: UltralyticsAdapter) -> None:
    for name, parameter in adapter.module.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, dict(tuned(adapter, steps=1).named_parameters())[name]), name


def test_it_trains_the_same_every_time(adapter: UltralyticsAdapter) -> None:
    first, torch_state = tuned(adapter, steps=3), torch.get_rng_state()
    torch.manual_seed(7)
    second = tuned(adapter, steps=3)
    torch.set_rng_state(torch_state)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_learning_rate_is_the_asked_share(adapter: UltralyticsAdapter) -> None:
    dense = adapter.module.state_dict()["model.0.conv.weight"]
    steps = [
        float((tuned(adapter, steps=1, lr_scale=scale).state_dict()["model.0.conv.weight"] - dense).abs().max())
        for scale in (0.05, 0.1)
    ]
    assert 0 < steps[0] < steps[1]
    assert steps[1] == pytest.approx(2 * steps[0], rel=0.1)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Adam", "auto"])
def test_every_optimizer_of_the_dense_training_trains(
    adapter: UltralyticsAdapter, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setattr(adapter, "train_args", {**adapter.train_args, "optimizer": optimizer})
    batches = list(training_batches(adapter, scoring=2, steps=4, batch=2, seed=0))
    assert loss(adapter, tuned(adapter, steps=4), batches) < loss(adapter, adapter.module, batches)


@pytest.mark.parametrize("scoring", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_scoring_image_is_trained_on(adapter: UltralyticsAdapter, scoring: int, seed: int) -> None:
    trained = images(adapter, training_batches(adapter, scoring=scoring, steps=10, batch=2, seed=seed))
    scored = images(adapter, adapter.batches("train", images=scoring, batch=2, seed=seed))
    assert trained
    assert len(scored) == scoring
    assert not any(torch.equal(one, other) for one in trained for other in scored)


def test_no_scoring_image_is_trained_on_where_a_last_image_joins_a_batch() -> None:
    own = own_network.adapter(own_network.Net(), train=own_network.Shapes(34, 0))
    scored = images(own, own.batches("train", images=17, batch=16, seed=0))
    trained = images(own, training_batches(own, scoring=17, steps=10, batch=16, seed=0))
    assert trained
    assert not any(torch.equal(one, other) for one in trained for other in scored)
    fewer = own_network.adapter(own_network.Net(), train=own_network.Shapes(17, 0))
    with pytest.raises(TrainingError, match="besides the 16 that score"):
        training_batches(fewer, scoring=16, steps=1, batch=16, seed=0)


def test_as_many_batches_as_steps_are_held_and_no_more_than_is_bearable(adapter: UltralyticsAdapter) -> None:
    assert len(training_batches(adapter, scoring=2, steps=1, batch=2, seed=0)) == 1
    asked: list[int] = []

    class Counting(UltralyticsAdapter):
        def batches(self, split: str, *, images: int, batch: int, seed: int) -> Any:
            asked.append(images)
            return super().batches(split, images=images, batch=batch, seed=seed)

    counting = deepcopy(adapter)
    counting.__class__ = Counting
    training_batches(counting, scoring=2, steps=10_000, batch=2, seed=0)
    assert asked == [2 + HELD_IMAGES]


def test_without_other_images_it_says_so(adapter: UltralyticsAdapter) -> None:
    with pytest.raises(TrainingError, match=r"besides the 6 that score candidates.*`short_term_steps` 0"):
        training_batches(adapter, scoring=6, steps=1, batch=2, seed=0)


def test_a_loss_that_is_no_number_is_told_with_its_step(
    adapter: UltralyticsAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = UltralyticsAdapter.loss, []

    def breaking(self: UltralyticsAdapter, module: nn.Module, batch: Batch) -> torch.Tensor:
        calls.append(batch)
        return original(self, module, batch) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(UltralyticsAdapter, "loss", breaking)
    with pytest.raises(TrainingError, match=r"in step 2 of a short fine-tune \(nan, .*\); lower `lr_scale`"):
        tuned(adapter, steps=3)


def test_a_lack_of_memory_is_told(adapter: UltralyticsAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(*_: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(UltralyticsAdapter, "loss", scarce)
    with pytest.raises(DeviceError, match=r"out of memory on cpu in step 1 .*; give a smaller `batch`"):
        tuned(adapter, steps=3)


def test_other_networks_are_refused(adapter: UltralyticsAdapter) -> None:
    batches = training_batches(adapter, scoring=2, steps=1, batch=2, seed=0)
    stranger: Any = type("Stranger", (), {"name": "stranger"})()
    with pytest.raises(TrainingError, match="stranger must be of a family that autoprune can train"):
        train_briefly(stranger, nn.Conv2d(1, 1, 1), batches, steps=1, lr_scale=0.1)
