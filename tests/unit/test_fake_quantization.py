"""Quantisation-aware fine-tuning: what is rounded, what gradients pass, and that only floats are left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from autoprune.training.extensions._base import Event, TrainingExtension
from autoprune.training.extensions.fake_quantization import ActivationRange, FakeQuantization, rounded_weights
from autoprune.training.finetune import finetune
from autoprune.training.shapes import shapes_of
from autoprune.training.ultralytics.session import Session
from tests.helpers.training import Stop, stop, write_training


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    return write_training(tmp_path_factory.mktemp("rounding"))


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000), st.integers(2, 8))
def test_each_output_channel_has_as_many_values_as_its_integer(seed: int, bits: int) -> None:
    weight = drawn(seed, 3, 4, 3, 3)
    rounded = rounded_weights(weight, bits=bits)
    step = weight.abs().amax((1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((rounded - weight).abs() <= step * 0.5001).all()
    torch.testing.assert_close(rounded / step, (rounded / step).round(), atol=1e-3, rtol=0)


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_rounding_and_folding_a_batch_norm_commute(seed: int, factor: float) -> None:
    weight, factors = drawn(seed, 3, 4, 1, 1), torch.tensor([factor, -factor, 1.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(rounded_weights(weight * factors), rounded_weights(weight) * factors, atol=0, rtol=0.02)


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = drawn(0, 2, 4, 1, 1)
    weight[0] = 0
    assert not rounded_weights(weight)[0].any()
    assert not ActivationRange()(torch.zeros(2, 3)).any()


@given(st.integers(0, 1000), st.floats(-5, 5))
def test_activations_are_off_by_half_a_step_and_zero_stays_zero(seed: int, shift: float) -> None:
    values = drawn(seed, 2, 30) + shift
    values[0, 0] = 0
    rounded = ActivationRange()(values)
    step = (max(float(values.max()), 0) - min(float(values.min()), 0)) / 255
    assert float((rounded - values).abs().max()) <= step * 1.01
    assert rounded[0, 0] == 0


def test_a_range_follows_the_batches_slowly() -> None:
    within = ActivationRange()
    within(torch.tensor([0.0, 1.0]))
    assert float(within(torch.tensor([0.0, 9.0]))[1]) == pytest.approx(1.08, abs=0.01), "what is beyond is cut off"


def test_gradients_do_not_see_the_rounding() -> None:
    weight = drawn(0, 2, 4, 1, 1).requires_grad_()
    (rounded_weights(weight) * 3).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 3).all()
    values = drawn(1, 4, 4).bfloat16().requires_grad_()
    rounded = ActivationRange()(values)
    rounded.sum().backward()
    assert rounded.dtype == torch.bfloat16
    assert values.grad is not None
    assert (values.grad == 1).all()


class Watch(TrainingExtension):
    """Looks at what a convolution of the network in training gives, after it was told to round."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.network: Any = None

    def attach(self, session: Session) -> None:
        session.listen(Event.GRADIENTS, self._look)

    def _look(self, session: Session) -> None:
        self.network = session.model
        layer = session.model.get_submodule("model.1.conv")
        with torch.no_grad():
            image = torch.zeros(1, layer.in_channels, 3, 3, device=session.device)
            image[:, :, 1, 1] = 1
            self.values.append(len(layer(image)[0, 0].unique()))


def plain(network: nn.Module) -> bool:
    return not any(layer._forward_hooks or "forward" in vars(layer) for layer in network.modules())


def test_the_network_in_training_rounds_and_the_checkpoint_is_plain(
    adapter: UltralyticsAdapter, tmp_path: Path
) -> None:
    watch = Watch()
    rounding = [FakeQuantization(weight_bits=2), watch]
    result = finetune(adapter, adapter.module, epochs=1, batch=3, out=tmp_path, extensions=rounding)
    other = finetune(adapter, adapter.module, epochs=1, batch=3, out=tmp_path / "other")
    kept = read_checkpoint(tmp_path / "weights" / "last.pt").module
    assert watch.values
    assert plain(watch.network)
    for network in (result.module, kept):
        assert plain(network)
        assert shapes_of(network) == shapes_of(adapter.module)
    learnt, usual = (one.get_submodule("model.1.conv").weight for one in (result.module, other.module))
    assert not torch.equal(learnt, usual), "rounding changes what is learnt"  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_interrupted_one_goes_on(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        finetune(
            adapter, adapter.module, epochs=2, batch=3, out=tmp_path, on_epoch=stop, extensions=[FakeQuantization()]
        )
    result = finetune(
        adapter, adapter.module, epochs=2, batch=3, out=tmp_path, resume=True, extensions=[FakeQuantization()]
    )
    assert result.epochs == 2
    assert plain(result.module)
