"""Slicing: the smaller network computes what the dense one does with the same channels zeroed, and shares nothing."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.criteria.registry import make_criterion
from autoprune.errors import ModelError
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Pruner, Slicer, state_tensors
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers.networks import check_exact, random_keep, shaken, zeroed

IMAGES = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Zoo(nn.Module):
    """Every kind of layer that has channels: two branches, a sum, a concatenation, a chunk, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8))
        self.one, self.two = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.each = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6))
        self.gated = nn.Conv2d(14, 10, 1)
        self.up = nn.ConvTranspose2d(5, 7, 2, stride=2)
        self.plain = nn.Conv2d(7, 4, 1)
        self.head = nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = torch.relu(self.each(self.one(x) + self.two(x)))
        first, second = self.gated(torch.cat([y, x], 1)).chunk(2, 1)
        x = torch.tanh(self.plain(torch.relu(self.up(torch.tanh(first) * torch.sigmoid(second)))))
        found: torch.Tensor = self.scale * self.head(x.mean((2, 3)))
        return found


@cache
def analysed() -> tuple[nn.Module, ChannelGraph]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = shaken(Zoo())
    for parameter in module.parameters():
        parameter.data.mul_(2)  # so that every layer tells in the output
    return module, analyse(module, IMAGES)


def space() -> Space:
    return Space(analysed()[1], round_to=1, min_keep=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_what_is_left_computes_what_the_dense_network_does_without_the_rest(seed: int) -> None:
    module, graph = analysed()
    check_exact(module, graph, random_keep(space(), seed), IMAGES)


@pytest.mark.parametrize("unit", range(5))
def test_each_unit_alone_is_exact_by_zeroed_weights_too(unit: int) -> None:
    module, graph = analysed()
    assert [one.name for one in graph.units] == ["stem.0", "one", "gated", "up", "plain"]
    counts = space().dense.copy()
    counts[unit] = 2
    keep = space().kept_channels(counts, [np.random.default_rng(1).permutation(group.size) for group in graph.groups])
    with torch.no_grad():
        expected, dense = zeroed(module, graph, keep)(IMAGES), module(IMAGES)
        torch.testing.assert_close(Slicer(module, graph).materialise(keep)(IMAGES), expected, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(expected, dense, rtol=1e-3)


def test_the_numbers_that_repeat_widths_follow() -> None:
    module, graph = analysed()
    names = ["stem.0", "one", "gated", "up", "plain"]
    keep = space().kept_channels(
        space().from_names(dict(zip(names, (5, 4, 3, 6, 2), strict=True))),
        [np.arange(group.size) for group in graph.groups],
    )
    small = Slicer(module, graph).materialise(keep)
    assert isinstance(small, Zoo)
    convolutions = {name: child for name, child in small.named_modules() if isinstance(child, nn.Conv2d)}
    assert {name: (one.in_channels, one.out_channels, one.groups) for name, one in convolutions.items()} == {
        "stem.0": (3, 5, 1),
        "one": (5, 4, 1),
        "two": (5, 4, 1),
        "each.0": (4, 4, 4),
        "gated": (9, 6, 1),
        "plain": (6, 2, 1),
    }
    assert (small.up.in_channels, small.up.out_channels) == (3, 6)
    assert (small.head.in_features, small.head.out_features) == (2, 3)
    assert [small.stem[1].num_features, small.each[1].num_features, small.stem[2].num_parameters] == [5, 4, 5]  # type: ignore[union-attr]
    assert "Conv2d(5, 4" in repr(small)


@pytest.mark.parametrize("whole", [True, False])
def test_the_result_shares_no_memory_and_the_dense_network_stays(whole: bool) -> None:
    module, graph = analysed()
    before = copy.deepcopy(module.state_dict())
    keep = np.ones(graph.channels, dtype=np.bool_) if whole else random_keep(space(), 3)
    small = Slicer(module, graph).materialise(keep)
    with torch.no_grad():
        for tensor in state_tensors(small).values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert state_tensors(small).keys() == state_tensors(module).keys()


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_frozen_weights_are_kept(training: bool) -> None:
    module = copy.deepcopy(analysed()[0]).train(training)
    module.get_submodule("one").requires_grad_(False)
    small = Slicer(module, analysed()[1]).materialise(random_keep(space(), 4))
    assert all(child.training is training for child in small.modules())
    frozen = {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    assert frozen == {"one.weight", "one.bias"}


def test_a_slicer_can_be_sent_to_another_process() -> None:
    module, graph = analysed()
    keep = random_keep(space(), 5)
    slicer = Slicer(module, graph)
    here, there = slicer.materialise(keep), pickle.loads(pickle.dumps(slicer)).materialise(keep)
    assert all(torch.equal(here.state_dict()[name], tensor) for name, tensor in there.state_dict().items())


def test_the_most_important_channels_stay_and_the_graph_follows() -> None:
    module, graph = analysed()
    order = make_criterion("l1").order(module, graph)
    pruner = Pruner(module, space(), order)
    allocation = tuple(max(1, int(width) // 2) for width in space().dense)
    small, keep = pruner.materialise(allocation), pruner.kept(allocation)
    for group, ranked in zip(graph.groups, order, strict=True):
        kept = set(np.flatnonzero(keep[group.offset : group.offset + group.size]))
        assert kept == set(ranked[: len(kept)])
    again = pruner.graph_of(allocation)
    assert [unit.width for unit in again.units] == list(allocation)
    check_exact(small, again, random_keep(Space(again, round_to=1, min_keep=1e-6), 6), IMAGES)


def test_what_cannot_be_cut_is_refused() -> None:
    module, graph = analysed()
    slicer = Slicer(module, graph)
    everything = np.ones(graph.channels, dtype=np.bool_)
    with pytest.raises(ModelError, match=rf"must have {graph.channels} entries, got \(3,\)"):
        slicer.materialise(everything[:3])
    pinned = next(group for group in graph.groups if group.pinned)
    free = next(group for group in graph.groups if not group.pinned)
    for group, removed, said in (
        (pinned, 1, f"{pinned.name} must keep all its channels"),
        (free, free.size, f"{free.name} would keep none"),
    ):
        keep = everything.copy()
        keep[group.offset : group.offset + removed] = False
        with pytest.raises(ModelError, match=said):
            slicer.materialise(keep)
