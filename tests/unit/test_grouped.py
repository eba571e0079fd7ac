"""Grouped convolutions: a group's filters go with the channel that they read, and anything else keeps its groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import get_flops

from autoprune.costs import FlopsCost, ParamsCost, parameter_shapes, undescribed_flops
from autoprune.criteria._base import CalibrationData
from autoprune.criteria.registry import make_criterion
from autoprune.latency.tables import LayerGrid, plan_grids
from autoprune.structure.graph import LayerKind
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers.networks import FREE_OUTPUTS, check_exact, compared, random_keep, reading_only, shaken

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))


class Net(nn.Module):
    """A stem, a grouped layer with a norm, something behind it, and a head."""

    def __init__(self, grouped: nn.Module, *, width: int, out: int, add: bool = False, halves: str = "") -> None:
        super().__init__()
        self.stem, self.grouped, self.norm = nn.Conv2d(3, width, 3, padding=1), grouped, nn.BatchNorm2d(out)
        self.paired_with = nn.Conv2d(3, out, 1) if add else None
        self.halves = halves
        self.head = nn.Conv2d(out // 2 if halves == "multiplied" else out, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.grouped(torch.relu(self.stem(x)))))
        if self.paired_with is not None:
            features = features + self.paired_with(x)
        if self.halves:
            first, second = features.chunk(2, 1)
            features = first * second if self.halves == "multiplied" else torch.cat([second, first], 1)
        return self.head(features)


def multiplied(width: int, times: int, *, add: bool = False, halves: str = "", bias: bool = True) -> nn.Module:
    """A network with a depthwise convolution of several filters per channel."""
    layer = nn.Conv2d(width, width * times, 3, padding=1, groups=width, bias=bias)
    return shaken(Net(layer, width=width, out=width * times, add=add, halves=halves))


@settings(max_examples=15)
@given(
    width=st.integers(2, 8),
    times=st.integers(1, 4),
    add=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_channel_goes_with_all_its_filters(width: int, times: int, add: bool, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    module = multiplied(width, times, add=add, bias=bias)
    graph = analyse(module, IMAGES.double())
    (unit,) = graph.units
    assert (unit.name, unit.width) == ("stem", width)
    space = Space(graph, round_to=1, min_keep=1e-6)
    keep = random_keep(space, seed)
    kept = int(keep[graph.groups[unit.groups[0]].offset :][:width].sum())
    pruned = check_exact(module, graph, keep, IMAGES)
    assert (pruned.grouped.groups, pruned.grouped.in_channels, pruned.grouped.out_channels) == (
        kept,
        kept,
        kept * times,
    )
    counts = np.array([kept])
    assert int(ParamsCost(space, parameter_shapes(module))(counts)) == sum(p.numel() for p in pruned.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pruned(IMAGES[:1].double())
    flops = FlopsCost(space, fixed=undescribed_flops(module, graph, IMAGES[:1].double()))
    assert float(flops(counts)) == counter.get_total_flops() + 8 * kept * times * 64
    if kept > 1:
        rest = graph.restricted(keep)
        again = random_keep(Space(rest, round_to=1, min_keep=1e-6), seed)
        check_exact(pruned, rest, again, IMAGES)
        depthwise = next(layer for layer in rest.layers if layer.name == "grouped")
        assert depthwise.groups == kept


@pytest.mark.parametrize(
    ("width", "times", "halves", "widths"),
    [
        (4, 2, "multiplied", [2]),
        (4, 3, "multiplied", [2]),
        (3, 2, "multiplied", [1]),
        (4, 2, "swapped", [2]),
        (4, 3, "swapped", [2]),
        (3, 2, "swapped", []),  # a channel lies across the cut
    ],
)
def test_filters_of_a_channel_may_lie_in_both_halves_of_a_chunk(
    width: int, times: int, halves: str, widths: list[int]
) -> None:
    torch.manual_seed(0)
    module = multiplied(width, times, halves=halves)
    graph = analyse(module, IMAGES.double())
    assert [unit.width for unit in graph.units] == widths
    for seed in range(3):
        check_exact(module, graph, random_keep(Space(graph, round_to=1, min_keep=1e-6), seed), IMAGES)


@pytest.mark.parametrize("name", ["l1", "l2", "bn", "fpgm", "lamp", "taylor", "fisher", "apoz", "regression"])
def test_every_criterion_ranks_the_channels(name: str) -> None:
    torch.manual_seed(0)
    module = multiplied(6, 2).float()
    graph = analyse(module, IMAGES)
    evidence = CalibrationData([IMAGES], lambda images: images, lambda network, images: network(images).square().mean())
    (unit,) = graph.units
    assert make_criterion(name, lambda: evidence)(module, graph)[unit.groups[0]].shape == (6,)


GROUPED = {
    "groups of two": lambda: Net(nn.Conv2d(8, 8, 3, padding=1, groups=4), width=8, out=8),
    "more outputs": lambda: Net(nn.Conv2d(8, 12, 3, padding=1, groups=4), width=8, out=12),
    "fewer outputs": lambda: Net(nn.Conv2d(12, 4, 3, padding=1, groups=4), width=12, out=4),
    "transposed depthwise": lambda: Net(nn.ConvTranspose2d(8, 8, 2, 2, groups=8), width=8, out=8),
    "transposed, more outputs": lambda: Net(nn.ConvTranspose2d(8, 16, 2, 2, groups=8), width=8, out=16),
    "transposed groups": lambda: Net(nn.ConvTranspose2d(8, 4, 2, 2, groups=2), width=8, out=4),
    "depthwise 3d": lambda: Net(Deep(), width=8, out=16),
    "depthwise 1d": lambda: Net(Flat(), width=8, out=16),
}


class Deep(nn.Module):
    """A depthwise convolution over three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(8, 16, 3, padding=1, groups=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.unsqueeze(2)).squeeze(2)


class Flat(nn.Module):
    """A depthwise convolution over one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3, padding=1, groups=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.flatten(2)).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("name", GROUPED)
def test_other_grouped_layers_keep_their_groups(name: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1), GROUPED[name]())
    graph = analyse(shaken(module), IMAGES.double())
    assert {unit.name for unit in graph.units} == {"0", "1"}
    pruned = check_exact(module, graph, random_keep(Space(graph, round_to=1, min_keep=1e-6), 1), IMAGES)
    layers = [next(layer for layer in each.modules() if getattr(layer, "groups", 1) > 1) for each in (module, pruned)]
    assert repr(layers[0]) == repr(layers[1])


def test_a_table_of_times_has_the_layer_as_wide_as_it_is() -> None:
    torch.manual_seed(0)
    module = multiplied(16, 3)
    graph = analyse(module, IMAGES.double())
    space = Space(graph, round_to=1, min_keep=0.1)
    grid = next(grid for grid in plan_grids(space, graph.layers) if grid.layer.kind is LayerKind.DEPTHWISE)
    for point in [*grid.points(), LayerGrid(grid.layer, (5,), (15,)).point(5, 15)]:
        built = point.build()
        assert isinstance(built, nn.Conv2d)
        assert (built.groups, built.out_channels) == (point.c_in, 3 * point.c_in)
        assert point.weights == built.weight.numel()


YAML = {
    "nc": 2,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "DWConv", [32, 3, 2]],  # two filters per channel
        [-1, 1, "DWConv", [48, 3, 2]],  # groups of two: 16 of 32 channels
        [-1, 1, "C2f", [32, True]],
        [-1, 1, "DWConv", [32, 3, 2]],
    ],
    "head": [[-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 3], 1, "Concat", [1]], [[6, 4], 1, "Detect", ["nc"]]],
}
"""A detector with depthwise convolutions of every kind, as Ultralytics' DWConv makes them."""


def test_a_detector_with_depthwise_convolutions_that_widen_is_pruned() -> None:
    torch.manual_seed(0)
    module = shaken(DetectionModel(YAML, verbose=False))
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    graph = analyse(module, images, free_outputs=FREE_OUTPUTS)
    assert {unit.name for unit in graph.units} >= {"model.3.cv1", "model.3.cv2", "model.7.cv2.0.0"}
    space = Space(graph, round_to=1, min_keep=1e-6)
    for seed in range(2):
        keep = random_keep(space, seed)
        pruned = Slicer(module, graph).materialise(keep)
        with torch.no_grad():
            found = compared(pruned.eval()(images))
            with reading_only(module, graph, keep):
                expected = compared(module.eval()(images))
            pruned.train()(images)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        counts = np.array([keep[graph.groups[unit.groups[0]].offset :][: unit.width].sum() for unit in space.units])
        flops = FlopsCost(space, fixed=undescribed_flops(module, graph, images))
        assert float(flops(counts)) == pytest.approx(get_flops(pruned.float(), 64) * 1e9, rel=0.005)
