"""Softening: what is to be removed is zero in the end, and so removing it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.arrays import Mask
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.training.extensions.gradual_zeroing import GradualZeroing, doomed, remaining
from autoprune.training.finetune import finetune
from tests.helpers.detectors import build
from tests.helpers.networks import compared
from tests.helpers.training import Stop, stop, write_training
from tests.helpers.world import analysed

UNNORMALISED = [
    [-1, 1, "nn.ConvTranspose2d", [16, 2, 2, 0]],  # with a bias, and no batch norm behind it
    [[-1, 3], 1, "Concat", [1]],
    [-1, 1, "C2f", [16]],
    [[8, 5], 1, "Detect", ["nc"]],
]
"""A head that makes channels without batch norm."""


def shaken(**extra: object) -> nn.Module:
    """A detector in float64 whose batch norms are far from neutral."""
    network: nn.Module = build(16, **extra).double()
    generator = torch.Generator().manual_seed(3)
    for child in network.modules():
        if isinstance(child, nn.BatchNorm2d):
            for tensor in (child.weight.data, child.bias.data, child.running_mean, child.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)
    return network


class Shifted(nn.Module):
    """Makes channels by a weight of its own and a shift of shape (1, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.shift, self.filters = nn.Parameter(torch.rand(1, 8, 1, 1)), nn.Parameter(torch.rand(8, 8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x) + self.shift)
        return self.head(torch.relu(nn.functional.conv2d(x, self.filters)))


def test_shifts_and_weights_of_ones_own_fall_to_zero() -> None:
    torch.manual_seed(0)
    network = Shifted().double().eval()
    graph = analysed(network, example().double())
    keep = keeping(graph, share=0.5, seed=0)
    assert len(graph.units) == 2
    expected = Slicer(network, graph).materialise(keep)
    for part in doomed(network, graph, keep):
        part.shrink(0.0)
    with torch.no_grad():
        torch.testing.assert_close(network(example().double()), expected(example().double()))


def example(size: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def keeping(graph: ChannelGraph, *, share: float, seed: int) -> Mask:
    """Keep a share of every unit's channels, drawn by a seed."""
    random = np.random.default_rng(seed)
    space = Space(graph)
    counts = [max(1, round(share * unit.width)) for unit in space.units]
    return space.kept_channels(counts, [random.permutation(group.size) for group in graph.groups])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    return write_training(tmp_path_factory.mktemp("softening"))


@pytest.fixture(scope="module")
def graph(adapter: UltralyticsAdapter) -> ChannelGraph:
    return analysed(adapter.module, example(), free_outputs=adapter.free_outputs)


@settings(max_examples=12)
@given(st.floats(0.05, 0.95), st.integers(0, 1000), st.sampled_from(["normalised", "not normalised"]))
def test_removing_what_is_zero_changes_nothing(share: float, seed: int, kind: str) -> None:
    extra = {} if kind == "normalised" else {"head": UNNORMALISED}
    network = shaken(**extra)
    graph = analysed(network, example().double(), free_outputs=frozenset({"feats"}))
    keep = keeping(graph, share=share, seed=seed)
    for part in doomed(network, graph, keep):
        part.shrink(0.0)
    smaller = Slicer(network, graph).materialise(keep)
    images = example().double()
    with torch.no_grad():
        for whole, pruned in zip(compared(network(images)), compared(smaller(images)), strict=True):
            torch.testing.assert_close(pruned, whole, rtol=1e-9, atol=1e-9)


def test_rows_without_batch_norm_are_among_the_doomed(adapter: UltralyticsAdapter) -> None:
    network = shaken(head=UNNORMALISED)
    graph = analysed(network, example().double(), free_outputs=frozenset({"feats"}))
    shapes = [tuple(part.rows.shape) for part in doomed(network, graph, keeping(graph, share=0.5, seed=0))]
    assert (16, 24, 2, 2) in shapes, "the transposed convolution's weight, outputs first"
    assert all(len(shape) == 1 for shape in shapes if shape != (16, 24, 2, 2)), "other weights have a batch norm behind"


def test_a_policy_that_keeps_everything_dooms_nothing(adapter: UltralyticsAdapter, graph: ChannelGraph) -> None:
    assert not doomed(adapter.module, graph, np.ones(graph.channels, dtype=np.bool_))


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_schedule_falls_from_one_to_exactly_zero(one: float, other: float) -> None:
    assert remaining(0.0) == 1
    assert remaining(1.0) == remaining(1.2) == 0
    assert remaining(min(one, other)) >= remaining(max(one, other)) >= 0


def assert_gone(module: nn.Module, graph: ChannelGraph, keep: Mask) -> None:
    """Make sure that the doomed channels are zero, that others are not, and that surgery changes nothing."""
    assert all((part.rows[part.positions] == 0).all() for part in doomed(module, graph, keep))
    kept: Any = module.get_submodule("model.1.bn")
    assert kept.weight.abs().max() > 0.1
    smaller = Slicer(module, graph).materialise(keep)
    with torch.no_grad():
        for whole, pruned in zip(compared(module(example())), compared(smaller(example())), strict=True):
            torch.testing.assert_close(pruned, whole, rtol=1e-4, atol=1e-5)


def test_a_training_drives_the_channels_to_zero(
    adapter: UltralyticsAdapter, graph: ChannelGraph, tmp_path: Path
) -> None:
    keep = keeping(graph, share=0.5, seed=0)
    result = finetune(
        adapter, adapter.module, epochs=2, batch=3, out=tmp_path, extensions=[GradualZeroing(graph, keep)]
    )
    assert_gone(result.module, graph, keep)
    assert_gone(read_checkpoint(tmp_path / "weights" / "last.pt").module, graph, keep)
    parts = doomed(adapter.module, graph, keep)
    assert any(part.rows[part.positions].abs().max() > 0.1 for part in parts), "the dense network is as it was"


def test_an_interrupted_softening_goes_on_to_zero(
    adapter: UltralyticsAdapter, graph: ChannelGraph, tmp_path: Path
) -> None:
    keep = keeping(graph, share=0.5, seed=0)
    with pytest.raises(Stop):
        finetune(
            adapter,
            adapter.module,
            epochs=2,
            batch=3,
            out=tmp_path,
            on_epoch=stop,
            extensions=[GradualZeroing(graph, keep)],
        )
    half = read_checkpoint(tmp_path / "weights" / "last.pt").module
    scales = torch.cat([part.rows[part.positions].flatten().abs() for part in doomed(half, graph, keep)])
    whole = torch.cat([part.rows[part.positions].flatten().abs() for part in doomed(adapter.module, graph, keep)])
    assert float(scales.sum() / whole.sum()) == pytest.approx(0.5, abs=0.1), "half of the way is half of the cosine"
    result = finetune(
        adapter, adapter.module, epochs=2, batch=3, out=tmp_path, resume=True, extensions=[GradualZeroing(graph, keep)]
    )
    assert_gone(result.module, graph, keep)
