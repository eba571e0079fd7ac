"""Graph, space and surgery on real architectures: what is pruned equals what is zeroed."""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers.networks import FREE_OUTPUTS, NETWORKS, build, compared, example, random_keep, zeroed

HEAVY = {"yolov3"}
LONG = {*HEAVY, "yolov5n", "yolov6n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "yolov8n-pose"}
ALL = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in NETWORKS]


@lru_cache(maxsize=4)  # the tests that are parametrized by module take one network after the other
def analysed(name: str) -> tuple[nn.Module, ChannelGraph]:
    module = build(name)
    return module, analyse(module, example(), free_outputs=FREE_OUTPUTS)


@pytest.mark.parametrize("name", ALL, scope="module")
def test_pruned_equals_zeroed(name: str) -> None:
    module, graph = analysed(name)
    surgeon, space = Slicer(module, graph), Space(graph, round_to=1, min_keep=1e-6)
    images = example()
    for seed in range(1 if name in HEAVY else 3):
        keep = random_keep(space, seed)
        with torch.no_grad():
            pruned = compared(surgeon.materialise(keep).eval()(images))
            expected = compared(zeroed(module, graph, keep).eval()(images))
        assert len(pruned) == len(expected) > 0
        for one, other in zip(pruned, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL, scope="module")
def test_random_allocations_train_and_shrink(name: str) -> None:
    module, graph = analysed(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    space = Space(graph)
    smaller = Slicer(module, graph).materialise(random_keep(space, 7))
    with torch.no_grad():
        smaller.train()(example())
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in module.parameters())
    assert type(smaller) is type(module)
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    for path, child in smaller.named_modules():
        if isinstance(child, nn.Conv2d):
            assert child.weight.shape[:2] == (child.out_channels, child.in_channels // child.groups), path
        if isinstance(child, nn.BatchNorm2d):
            assert child.weight.shape == (child.num_features,), path


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"], scope="module")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pruned_torchvision_networks_are_traced(name: str) -> None:
    module, graph = analysed(name)
    pruned = Slicer(module, graph).materialise(random_keep(Space(graph, round_to=1, min_keep=0.5), 4)).eval()
    images = example()
    with torch.no_grad():
        traced = torch.jit.trace(pruned, images)
        torch.testing.assert_close(traced(images), pruned(images))


@pytest.mark.parametrize("name", ["yolov8n", pytest.param("yolo11n", marks=pytest.mark.slow)], scope="module")
def test_a_pruned_network_can_be_pruned_again(name: str) -> None:
    module, graph = analysed(name)
    first = random_keep(Space(graph, round_to=1, min_keep=0.5), 1)
    rest = graph.restricted(first)
    second = random_keep(Space(rest, round_to=1, min_keep=0.5), 2)
    together = first.copy()
    together[np.flatnonzero(first)] = second
    once = Slicer(module, graph).materialise(together)
    twice = Slicer(Slicer(module, graph).materialise(first), rest).materialise(second)
    assert repr(once) == repr(twice)
    for key, value in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[key], value, rtol=0, atol=0)
    assert [unit.width for unit in rest.restricted(second).units] == [
        unit.width for unit in graph.restricted(together).units
    ]


@pytest.mark.parametrize("name", [param for param in ALL if str(param.values[0]).startswith("yolo")], scope="module")
def test_pruned_detector_fuses_to_the_same_function(name: str) -> None:
    module, graph = analysed(name)
    pruned = Slicer(module, graph).materialise(random_keep(Space(graph), 3)).eval()
    images = example()
    with torch.no_grad():
        decoded = pruned(images)[0]
        fused = copy.deepcopy(pruned).fuse(verbose=False)(images)[0]
    flat = [item if isinstance(item, torch.Tensor) else item[0] for item in (decoded, fused)]
    if getattr(pruned.model[-1], "end2end", False):  # ends in a top-k
        flat = [tensor[..., 4].sort(dim=1).values for tensor in flat]
    torch.testing.assert_close(flat[0], flat[1], rtol=1e-6, atol=1e-6)


def test_every_channel_of_a_yolov8_but_its_outputs_can_be_pruned() -> None:
    _, graph = analysed("yolov8n")
    pinned = {group.name: group.pinned for group in graph.groups if group.pinned}
    assert set(pinned) == {"x", "model.22.cv2.0.2", "model.22.cv3.0.2"}, (
        "the boxes and the scores of all levels are one"
    )
    assert {unit.name for unit in graph.units} >= {"model.0", "model.2.cv1", "model.9.cv2", "model.22.cv3.2.1"}


def test_halves_of_a_chunk_are_one_unit_with_two_groups() -> None:
    _, graph = analysed("yolov8n")
    unit = next(unit for unit in graph.units if unit.name == "model.2.cv1")
    assert (unit.width, len(unit.groups)) == (16, 2)


@pytest.mark.slow  # five seconds: its network is bisected
def test_attention_that_reads_its_input_width_is_pinned_by_the_proof() -> None:
    _, graph = analysed("yolo26n")
    reasons = [group.pinned for group in graph.groups if group.pinned and "fails without" in group.pinned]
    assert reasons


def test_unknown_operations_pin_and_never_break() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.three(torch.roll(self.two(self.one(x)), 1, dims=1))

    graph = analyse(Odd(), torch.rand(2, 3, 8, 8))
    assert [unit.name for unit in graph.units] == ["one"]
    assert "roll" in next(group.pinned for group in graph.groups if group.name == "two")


def test_a_tensor_that_is_neither_parameter_nor_buffer_pins_what_it_touches() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.scale = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), torch.rand(1, 8, 1, 1)
            self.three = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.three(self.two(self.one(x)) * self.scale)

    graph = analyse(Constant(), torch.rand(2, 3, 8, 8))
    assert [unit.name for unit in graph.units] == ["one"]


def test_a_group_may_not_lose_all_its_channels() -> None:
    module, graph = analysed("resnet18")
    keep = np.ones(graph.channels, dtype=np.bool_)
    group = graph.groups[graph.units[0].groups[0]]
    keep[group.offset : group.offset + group.size] = False
    with pytest.raises(ModelError, match="at least one channel"):
        Slicer(module, graph).materialise(keep)


def test_a_shared_convolution_is_pruned_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.two(self.two(self.one(x))))

    module = Shared()
    graph = analyse(module, torch.rand(2, 3, 8, 8))
    assert len(graph.units) == 1
    keep = np.ones(graph.channels, dtype=np.bool_)
    group = graph.groups[graph.units[0].groups[0]]
    keep[group.offset] = False
    smaller = Slicer(module, graph).materialise(keep)
    assert smaller.two.weight.shape == (7, 7, 3, 3)
