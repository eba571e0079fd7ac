"""Layers solved for what the dense network gives."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.criteria.registry import make_criterion
from autoprune.evaluation.compensation import compensate
from autoprune.evaluation.reconstruction import _Points, _solve, _Sums, reconstruct
from autoprune.statistics.moments import collect_moments
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.unit.test_folding import randomised
from tests.unit.test_importance import Net, network

IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def pruned(module: nn.Module, graph: ChannelGraph, keep: int | None) -> tuple[nn.Module, np.ndarray]:
    """Return the network with so many channels of ``inner`` left, and which channels stay."""
    space = Space(graph, round_to=1)
    pruner = Pruner(module, space, make_criterion("l1").order(module, graph))
    dense = {unit.name: unit.width for unit in space.units}
    allocation = space.from_names(dense if keep is None else {**dense, "inner": keep})
    return pruner.materialise(allocation), pruner.kept(allocation)


def error(module: nn.Module, dense: nn.Module, images: torch.Tensor = IMAGES) -> float:
    with torch.no_grad():
        return float((module.eval()(images) - dense.eval()(images)).square().mean())


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
    first, second = (_Sums.of(read[part], wanted[part], intercept=True) for part in (slice(20), slice(20, None)))
    found = (first + second).error(weight, bias)
    assert found == pytest.approx(float((wanted - read @ weight.T - bias).square().sum()))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([(2, 1), (3, 2), (256, 128)]), st.integers(1, 36))
def test_what_is_constant_on_the_images_that_are_solved_for_has_an_answer(
    seed: int, points: tuple[int, int], inputs: int
) -> None:
    (count, cut), generator = points, torch.Generator().manual_seed(seed)
    read = torch.rand(count, inputs, 1, generator=generator)
    read[:cut] = read[0].clone()
    layer = nn.Conv2d(inputs, 4, 1).requires_grad_(False)
    bias = _solve(layer, _Points(read, torch.rand(count, 4, generator=generator), cut), intercept=True)
    assert bool(torch.isfinite(bias).all() and torch.isfinite(layer.weight).all())


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


def test_what_has_no_bias_and_no_batch_norm_gets_a_bias() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3, bias=False)).eval()
    dense[0].bias.data.fill_(1.0)
    graph = analyse(dense, torch.zeros(2, 3, 8, 8))
    smaller, keep = halved(dense, graph)
    reconstruct(smaller, dense, graph, keep, IMAGES)
    with torch.no_grad():
        gap = (smaller(IMAGES) - dense(IMAGES)).mean((0, 2, 3))
        size = dense(IMAGES).mean((0, 2, 3)).abs().max()
    assert gap.abs().max() < 0.01 * size


def test_frozen_layers_stay() -> None:
    dense, graph = network()
    dense.head.requires_grad_(False)
    smaller, keep = pruned(dense, graph, 2)
    reconstruct(smaller, dense, graph, keep, IMAGES)
    assert torch.equal(smaller.head.weight, dense.head.weight)  # type: ignore[union-attr,arg-type]


def smooth(count: int, seed: int) -> torch.Tensor:
    """Return images whose neighbouring pixels are alike."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, scale_factor=4, mode="bilinear") + 0.1 * noise.repeat(1, 1, 4, 4)


def test_what_is_solved_on_one_image_is_better_on_others_than_what_is_only_compensated() -> None:
    """Three 3×3 layers with half of their channels: the ridge is chosen at positions that were not solved for."""
    shares = []
    for seed in range(4):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(width, 16, 3, padding=1) for width in (3, 16, 16)]
        dense = nn.Sequential(*(one for layer in layers for one in (layer, nn.ReLU())), nn.Conv2d(16, 4, 1)).eval()
        graph = analyse(dense, torch.zeros(2, 3, 32, 32))
        smaller, keep = halved(dense, graph)
        compensate(smaller, dense, graph, keep, collect_moments(dense, graph, [smooth(1, seed)]))
        before = error(smaller, dense, smooth(16, 100 + seed))
        reconstruct(smaller, dense, graph, keep, smooth(1, seed))
        shares.append(error(smaller, dense, smooth(16, 100 + seed)) / before)
    assert max(shares) < 1.1
    assert np.mean(shares) < 0.9


class Levels(nn.Module):
    """A head that runs on two levels which look different, with a batch norm of its own for each if asked for."""

    def __init__(self, norms: bool = False, *, two_modules: bool = False) -> None:
        super().__init__()
        self.make, self.shared = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, bias=not norms)
        self.other = nn.Conv2d(8, 8, 3, bias=not norms) if two_modules else self.shared
        self.other.weight = self.shared.weight
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) if norms else nn.Identity() for _ in range(2))
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.make(x))
        level = torch.tanh(3 * nn.functional.max_pool2d(x, 3, 1, 1))
        first, second = self.norms[0](self.shared(x)), self.norms[1](self.other(level))
        return torch.cat([self.last(torch.relu(level)) for level in (first, second)], dim=1)


def leveled(*options: bool, seed: int = 0, **named: bool) -> tuple[Any, ChannelGraph]:
    torch.manual_seed(seed)
    dense: Any = randomised(Levels(*options, **named), seed).float()
    dense.make.weight.data *= 5
    return dense, analyse(dense, torch.zeros(2, 3, 8, 8))


def halved(module: nn.Module, graph: ChannelGraph) -> tuple[nn.Module, np.ndarray]:
    """Return the network with half of all channels, and which stay."""
    space = Space(graph, round_to=1)
    pruner = Pruner(module, space, make_criterion("l1").order(module, graph))
    allocation = space.allocation(space.round_down(np.full(len(space), 0.5)))
    return pruner.materialise(allocation), pruner.kept(allocation)


@pytest.mark.parametrize(("norms", "most"), [(False, 0.4), (True, 0.5)])
def test_a_layer_on_two_levels_is_solved_for_both(norms: bool, most: float) -> None:
    shares = []
    for seed in range(4):
        dense, graph = leveled(norms, seed=seed)
        smaller, keep = halved(dense, graph)
        before = error(smaller, dense)
        reconstruct(smaller, dense, graph, keep, IMAGES)
        shares.append(error(smaller, dense) / before)
    assert max(shares) < 1
    assert np.mean(shares) < most


def test_every_level_keeps_the_means_of_the_dense_network() -> None:
    """Each has a batch norm behind the one convolution, whose outputs are off by one constant."""
    dense, graph = leveled(True)
    smaller, keep = halved(dense, graph)
    means: dict[str, list[torch.Tensor]] = {"dense": [], "small": []}
    reconstruct(smaller, dense, graph, keep, IMAGES)
    for name, module in (("dense", dense), ("small", smaller)):
        for norm in module.get_submodule("norms").children():
            norm.register_forward_hook(lambda _, __, given, name=name: means[name].append(given.mean((0, 2, 3))))
        with torch.no_grad():
            module(IMAGES)
    (group,) = (group for group in graph.groups if group.name == "shared")
    gaps = [
        (small - whole[torch.from_numpy(keep[group.span])]).abs().max()
        for small, whole in zip(means["small"], means["dense"], strict=True)
    ]
    assert max(gaps) < 0.05


def test_weights_that_two_layers_share_stay() -> None:
    dense, graph = leveled(two_modules=True)
    assert dense.other is not dense.shared
    smaller, keep = halved(dense, graph)
    weight, bias = (smaller.get_parameter(f"shared.{name}").detach().clone() for name in ("weight", "bias"))
    last = smaller.get_parameter("last.weight").detach().clone()
    reconstruct(smaller, dense, graph, keep, IMAGES)
    assert torch.equal(smaller.get_parameter("shared.weight"), weight)
    assert torch.equal(smaller.get_parameter("shared.bias"), bias)
    assert not torch.equal(smaller.get_parameter("last.weight"), last)


def test_it_ends_no_further_from_the_dense_network_than_what_is_only_compensated() -> None:
    """On images that nothing was solved on: the ridge is chosen on held-back ones, up to leaving the weights alone."""
    fresh = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    shares = []
    for seed in range(20):
        dense, graph = network()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in dense.parameters():
                parameter.add_(0.3 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator))
        smaller, kept = pruned(dense, graph, 1 + seed % 5)
        compensate(smaller, dense, graph, kept, collect_moments(dense, graph, [IMAGES]))
        before = error(smaller, dense, fresh)
        reconstruct(smaller, dense, graph, kept, IMAGES)
        shares.append(error(smaller, dense, fresh) / before)
    assert max(shares) < 1.01
    assert np.mean(shares) < 0.9


def test_without_an_intercept_squares_are_about_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(4, 2, bias=False)
    read = torch.rand(3000, 4, 1, generator=generator) + 2.0
    wanted = read[..., 0] @ torch.rand(4, 2, generator=generator) + 5.0  # constants that no bias can give
    with torch.no_grad():
        bias = _solve(layer, _Points.of([read], [wanted], images=3), intercept=False)
        best = torch.linalg.lstsq(read[..., 0], wanted).solution
        least, left = ((read[..., 0] @ weight - wanted).square().mean() for weight in (best, layer.weight.T))
    assert not bias.any()
    assert float(left) < 1.02 * float(least)


def test_what_does_not_hold_on_held_back_images_is_not_learnt() -> None:
    """Only noise lies between what is wanted and what the layer gives: its weights stay nearly where they are."""
    learnt = everything = 0.0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        layer = nn.Linear(8, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(3, 8, generator=generator))
            before, read = layer.weight.clone(), torch.randn(12, 8, 1, generator=generator)
            wanted = layer(read[..., 0]) + torch.randn(12, 3, generator=generator)
            bias = _solve(layer, _Points.of([read], [wanted], images=12), intercept=True)
            middle = wanted.mean(0) - layer.weight @ read.mean((0, 2))
            best = torch.linalg.lstsq(read[..., 0] - read[..., 0].mean(0), wanted - wanted.mean(0)).solution.T
            learnt += float((layer.weight - before).square().sum())
            everything += float((best - before).square().sum())
        torch.testing.assert_close(bias.float(), middle.detach(), rtol=1e-3, atol=1e-4)
    assert learnt < 0.1 * everything
