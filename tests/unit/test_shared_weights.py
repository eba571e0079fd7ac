"""Tensors that several modules share: pruned once, counted once, and computed with as often as they are used."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from autoprune.costs import (
    FlopsCost,
    ParamsCost,
    SizeCost,
    parameter_shapes,
    state_shapes,
    uncounted,
    undescribed_flops,
)
from autoprune.criteria.registry import make_criterion
from autoprune.models.module import ModuleAdapter
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from autoprune.training.extensions.penalties import PenaltyName, make_penalty
from tests.helpers.networks import check_exact, random_keep, shaken

IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))


class Base(nn.Module):
    """Two blocks of one width between a stem and a head, which nothing shares."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.mid, self.head = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm_a(self.a(self.stem(x))))
        return self.head(self.mid(torch.relu(self.norm_b(self.b(x)))))


def weight() -> nn.Module:
    net = Base()
    net.b.weight = net.a.weight
    return net


def first_weight_only() -> nn.Module:
    """The module whose name comes first runs last."""
    net = Base()
    net.a.weight, net.a.bias = net.mid.weight, net.mid.bias
    net.a, net.mid = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
    net.head = nn.Conv2d(6, 2, 1)
    net.mid.weight, net.b.weight = net.a.weight, nn.Parameter(torch.rand(6, 6, 3, 3))
    return net


def module_twice() -> nn.Module:
    net = Base()
    net.b = net.a
    return net


class Aliased(Base):
    """Runs a layer by the second of its names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mid(self.norm_b(self.again(self.norm_a(self.a(self.stem(x)))))))


def norm() -> nn.Module:
    net = Base()
    net.norm_b = net.norm_a
    return net


def scale_of_a_norm() -> nn.Module:
    net = Base()
    net.norm_b.weight, net.norm_b.bias = net.norm_a.weight, net.norm_a.bias
    return net


def buffer() -> nn.Module:
    net = Base()
    net.norm_b.running_mean = net.norm_a.running_mean
    return net


def memory() -> nn.Module:
    """Two parameters in the same memory, which are two as soon as they are copied."""
    net = Base()
    net.b.weight = nn.Parameter(net.a.weight.data)
    return net


class Autoencoder(nn.Module):
    """Its decoder has the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 2, 2)
        self.decoder, self.head = nn.ConvTranspose2d(5, 6, 2, 2), nn.Conv2d(6, 2, 1)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(torch.relu(self.encoder(self.stem(x)))))


class Tied(nn.Module):
    """A linear layer has the weight of an embedding of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.places = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3), nn.Embedding(4, 7)
        self.out = nn.Linear(7, 4, bias=False)
        self.out.weight = self.places.weight
        self.register_buffer("numbers", torch.arange(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.mid(self.stem(x))).mean((2, 3)) + self.places(self.numbers).sum())


class Viewed(Base):
    """A weight is used as it is, and as a view of another shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = conv2d(self.stem(x), self.a.weight.flatten(2).sum(2)[..., None, None])
        return self.head(self.mid(self.a(x)))


SHARING: dict[str, Callable[[], nn.Module]] = {
    "nothing": Base,
    "weight": weight,
    "first weight": first_weight_only,
    "module": module_twice,
    "alias": Aliased,
    "norm": norm,
    "scale of a norm": scale_of_a_norm,
    "buffer": buffer,
    "memory": memory,
    "autoencoder": Autoencoder,
    "embedding": Tied,
    "view": Viewed,
}


@lru_cache
def analysed(name: str) -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    module = shaken(SHARING[name]()).float()
    return module, analyse(module, IMAGES)


def norms(module: nn.Module, image: torch.Tensor) -> int:
    """Count the elements that batch norms put out."""
    seen = [0]
    hooks = [
        child.register_forward_hook(lambda _, __, output: seen.append(output.numel()))
        for child in module.modules()
        if isinstance(child, nn.BatchNorm2d)
    ]
    module(image)
    for hook in hooks:
        hook.remove()
    return sum(seen)


@pytest.mark.parametrize("name", SHARING)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_costs_are_those_of_the_pruned_network_which_is_exact(name: str, seed: int) -> None:
    module, graph = analysed(name)
    space = Space(graph, round_to=1, min_keep=1e-6)
    keep = random_keep(space, seed)
    counts = np.array([keep[graph.groups[unit.groups[0]].offset :][: unit.width].sum() for unit in space.units])
    pruned = Slicer(module, graph).materialise(keep)
    assert int(ParamsCost(space, parameter_shapes(module))(counts)) == sum(p.numel() for p in pruned.parameters())
    elements = sum(int(np.prod(shape)) for shape in state_shapes(pruned).values())
    size = SizeCost(space, state_shapes(module), dense_bytes=100_000, bytes_per_element=4)
    dense = sum(int(np.prod(shape)) for shape in state_shapes(module).values())
    assert float(size(counts)) == 100_000 - 4 * (dense - elements)
    flops = FlopsCost(space, fixed=undescribed_flops(module, graph, IMAGES[:1]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pruned(IMAGES[:1])
    if "conv2d" not in uncounted(graph):  # a convolution that is no layer is told, not counted
        assert float(flops(counts)) == counter.get_total_flops() + 8 * norms(pruned, IMAGES[:1])
    check_exact(shaken(SHARING[name]()), graph, keep, IMAGES)


@pytest.mark.parametrize("name", SHARING)
def test_what_is_shared_stays_shared(name: str) -> None:
    module, graph = analysed(name)
    pruned = Slicer(module, graph).materialise(random_keep(Space(graph, round_to=1, min_keep=0.5), 0))
    objects = [len({id(tensor) for tensor in [*each.parameters(), *each.buffers()]}) for each in (module, pruned)]
    assert objects[0] == objects[1]


@pytest.mark.parametrize("name", ["weight", "module", "norm", "autoencoder"])
def test_criteria_and_penalties_know_shared_tensors(name: str) -> None:
    module, graph = analysed(name)
    (first, *_), prunable = graph.units, {unit.groups[0] for unit in graph.units}
    scores = make_criterion("l1", None)(module, graph)
    assert all(scores[index].std() > 0 for index in prunable), first
    parameters = dict(module.named_parameters())
    for penalty in (PenaltyName.GROUP_LASSO, *([PenaltyName.L1] if name != "autoencoder" else [])):
        assert make_penalty(penalty, module, graph).scales(parameters).size > 0


@pytest.mark.parametrize("name", ["nothing", "weight", "module", "norm"])
def test_the_size_of_a_file_is_predicted(name: str) -> None:
    module, graph = analysed(name)

    def loss(network: nn.Module, images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return network(images).square().mean()

    data = [(IMAGES[0], 0)]
    adapter = ModuleAdapter(module, example=IMAGES[:1], loss=loss, train=data, val=data, metric=lambda *_: 0.0)
    space = Space(graph, round_to=1, min_keep=1e-6)
    size = SizeCost(
        space,
        state_shapes(adapter.module),
        dense_bytes=adapter.checkpoint_size(adapter.module),
        bytes_per_element=adapter.bytes_per_number,
    )
    keep = space.kept_channels(space.lower, [np.arange(group.size) for group in graph.groups])
    pruned = Slicer(adapter.module, graph).materialise(keep)
    saved = adapter.checkpoint_size(adapter.module) - adapter.checkpoint_size(pruned)
    assert float(size(space.dense) - size(space.lower)) == pytest.approx(saved, abs=500)  # names and numbers
