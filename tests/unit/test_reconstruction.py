"""Layers solved for what the dense network gives."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.criteria.registry import make_criterion
from autoprune.evaluation.reconstruction import _Sums, reconstruct
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Space
from tests.unit.test_importance import Net, network

IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def pruned(module: nn.Module, graph: ChannelGraph, keep: int | None) -> tuple[nn.Module, np.ndarray]:
    """Return the network with so many channels of ``inner`` left, and which channels stay."""
    space = Space(graph, round_to=1)
    pruner = Pruner(module, space, make_criterion("l1").order(module, graph))
    dense = {unit.name: unit.width for unit in space.units}
    allocation = space.from_names(dense if keep is None else {**dense, "inner": keep})
    return pruner.materialise(allocation), pruner.kept(allocation)


def error(module: nn.Module, dense: nn.Module) -> float:
    with torch.no_grad():
        return float((module.eval()(IMAGES) - dense.eval()(IMAGES)).square().mean())


def with_copies(module: Net) -> Net:
    """Make the last three channels of ``inner`` copies of the first three, read with small weights."""
    with torch.no_grad():
        for tensor in (*module.inner.conv.parameters(), *module.inner.bn.state_dict().values()):
            if tensor.ndim:
                tensor[3:] = tensor[:3]
        module.outer.conv.weight[:, 3:] *= 0.3
    return module


def test_the_sums_tell_the_error_of_any_weights() -> None:
    generator = torch.Generator().manual_seed(2)
    read, wanted, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((50, 7), (50, 3), (3, 7), (3,))
    )
    found = (_Sums.of(read[:20], wanted[:20]) + _Sums.of(read[20:], wanted[20:])).error(weight, bias)
    assert found == pytest.approx(float((wanted - read @ weight.T - bias).square().sum()))


def test_what_can_be_made_up_is_made_up() -> None:
    dense, graph = network()
    dense = with_copies(dense)
    smaller, keep = pruned(dense, graph, 3)
    before = error(smaller, dense)
    reconstruct(smaller, dense, graph, keep, IMAGES)
    assert error(smaller, dense) < 0.01 * before


@pytest.mark.parametrize("keep", [5, None])
def test_channels_that_say_the_same_or_nothing_have_an_answer(keep: int | None) -> None:
    dense, graph = network()
    dense = with_copies(dense)
    with torch.no_grad():
        dense.inner.bn.weight[0] = dense.inner.bn.bias[0] = 0
    smaller, kept = pruned(dense, graph, keep)
    before = error(smaller, dense)
    reconstruct(smaller, dense, graph, kept, IMAGES)
    assert error(smaller, dense) <= max(before, 1e-8)


def test_whatever_is_pruned_comes_closer_to_the_dense_network() -> None:
    dense, graph = network()
    smaller, keep = pruned(dense, graph, 2)
    before = error(smaller, dense)
    reconstruct(smaller, dense, graph, keep, IMAGES)
    assert error(smaller, dense) < before


def test_nothing_pruned_nothing_changed() -> None:
    dense, graph = network()
    same, keep = pruned(dense, graph, None)
    state, mode = copy.deepcopy(dense.state_dict()), dense.training
    reconstruct(same, dense, graph, keep, IMAGES)
    assert dense.training is mode
    for name, tensor in same.state_dict().items():
        assert torch.equal(dense.state_dict()[name], state[name])
        torch.testing.assert_close(tensor, state[name], rtol=1e-4, atol=1e-5)


def test_frozen_layers_stay() -> None:
    dense, graph = network()
    dense.head.requires_grad_(False)
    smaller, keep = pruned(dense, graph, 2)
    reconstruct(smaller, dense, graph, keep, IMAGES)
    assert torch.equal(smaller.head.weight, dense.head.weight)  # type: ignore[union-attr,arg-type]


def test_one_image_is_too_little_and_still_an_answer() -> None:
    """Fewer feature points than weights: the ridge takes the solution nearest to the weights as they are."""
    dense, graph = network()
    smaller, keep = pruned(dense, graph, 5)
    reconstruct(smaller, dense, graph, keep, IMAGES[:1])
    assert all(bool(torch.isfinite(parameter).all()) for parameter in smaller.parameters())
    assert error(smaller, dense) < float("inf")
