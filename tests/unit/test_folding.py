"""Constants of removed channels: what reads them gets them, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.arrays import Mask
from autoprune.cli.main import main
from autoprune.criteria.registry import make_criterion
from autoprune.evaluation.compensation import fold_constants
from autoprune.evaluation.evaluator import Evaluator
from autoprune.journal import Journal
from autoprune.models import open_adapter
from autoprune.policy import Policy, PolicyModel, PolicyUnit, Provenance
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Pruner, Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers.detectors import build, write_detector
from tests.helpers.networks import compared
from tests.helpers.world import SIZE, analysed
from tests.unit.test_importance import network

SEEDS = st.integers(0, 2**16)


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Give batch norms arbitrary numbers, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.double().modules():
        if isinstance(child, nn.BatchNorm2d):
            for tensor, low, high in (
                (child.weight, 0.5, 1.5),
                (child.bias, -1.0, 1.0),
                (child.running_mean, -1.0, 1.0),
                (child.running_var, 0.5, 1.5),
            ):
                assert isinstance(tensor, torch.Tensor)
                tensor.data.uniform_(low, high, generator=generator)
    return module.eval()


def chosen(graph: ChannelGraph, seed: int) -> Mask:
    """Return a mask that removes some channels of every unit."""
    random, keep = np.random.default_rng(seed), np.ones(graph.channels, dtype=np.bool_)
    for unit in graph.units:
        count = int(random.integers(1, unit.width))
        for index in unit.groups:
            group = graph.groups[index]
            keep[group.offset + random.permutation(group.size)[:count]] = False
    return keep


def kill(module: nn.Module, graph: ChannelGraph, keep: Mask) -> None:
    """Set γ of the removed channels to 0 wherever they are made; a depthwise convolution only passes them on."""
    for path, block in module.named_modules():
        if isinstance(getattr(block, "bn", None), nn.BatchNorm2d) and block.conv.groups == 1:  # type: ignore[union-attr]
            ((_, axis),) = graph.tensors[f"{path}.bn.weight".lstrip(".")]
            block.bn.weight.data[torch.from_numpy(~keep[graph.axes[axis]])] = 0  # type: ignore[union-attr,operator]


def repeat_borders(module: nn.Module) -> None:
    """Pad every convolution by what is at its border, so that a constant stays one to the edge."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            child.padding_mode = "replicate"


def outputs(module: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return compared(module(images))


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def largest_error(module: nn.Module, dense: nn.Module, read: torch.Tensor, border: int = 0) -> float:
    inner = (..., slice(border, -border), slice(border, -border)) if border else (...,)
    pairs = zip(outputs(module, read), outputs(dense, read), strict=True)
    return max(float((one - other)[inner].abs().max()) for one, other in pairs)


@settings(max_examples=15)
@given(SEEDS)
def test_dead_channels_leave_what_they_gave(seed: int) -> None:
    """A residual stream, a depthwise convolution and a head; borders are compared, too."""
    dense, graph = network()
    keep = chosen(graph, seed)
    randomised(dense, seed)
    kill(dense, graph, keep)
    repeat_borders(dense)
    smaller = Slicer(dense, graph).materialise(keep)
    fold_constants(smaller, dense, graph, keep, images(8, 1))
    assert largest_error(smaller, dense, images(8)) < 1e-10


def test_with_zeros_around_the_image_only_the_border_differs() -> None:
    dense, graph = network()
    keep = chosen(graph, 3)
    randomised(dense, 3)
    kill(dense, graph, keep)
    smaller = Slicer(dense, graph).materialise(keep)
    assert largest_error(smaller, dense, images(24), border=4) > 1e-2  # as surgery leaves it
    fold_constants(smaller, dense, graph, keep, images(24, 1))
    assert largest_error(smaller, dense, images(24), border=4) < 1e-10  # four 3×3 convolutions
    assert largest_error(smaller, dense, images(24)) > 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_a_detector_with_dead_channels_detects_the_same(seed: int) -> None:
    dense: Any = build(32)
    graph = analysed(dense, torch.rand(2, 3, SIZE, SIZE), free_outputs={"feats"})
    keep = chosen(graph, seed)
    randomised(dense, seed)
    kill(dense, graph, keep)
    repeat_borders(dense)
    smaller = Slicer(dense, graph).materialise(keep)
    before = largest_error(smaller, dense, images(SIZE))
    fold_constants(smaller, dense, graph, keep, images(SIZE, 1))
    assert largest_error(smaller, dense, images(SIZE)) < 1e-5 < 1e-2 < before


def test_channels_that_are_not_dead_are_made_up_for_by_their_mean() -> None:
    """Batch norm makes β the mean before the activation; with statistics of these images it truly is."""
    dense, graph = network()
    randomised(dense, 0)
    read = images(24, 8)
    for child in dense.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.weight.data *= 0.1
            child.momentum = None
            child.reset_running_stats()
    dense.train()(read)
    keep = chosen(graph, 1)
    smaller = Slicer(dense.eval(), graph).materialise(keep)
    before = largest_error(smaller, dense, read, border=4)
    fold_constants(smaller, dense, graph, keep, read[:1])
    assert largest_error(smaller, dense, read, border=4) < 0.5 * before


class Reader(nn.Module):
    """A batch norm whose channels are read by another kind of layer."""

    def __init__(self, last: nn.Module, between: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.between = nn.Identity() if between is None else between
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(torch.relu(self.bn(self.conv(x)))))


def even(layer: nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    """Give all places of a kernel the same weight, so that a constant comes out as one."""
    layer.weight.data[:] = layer.weight.data.mean((2, 3), keepdim=True)
    return layer


READERS: dict[str, Callable[[], Reader]] = {
    "with bias": lambda: Reader(nn.Conv2d(6, 4, 1)),
    "no padding": lambda: Reader(nn.Conv2d(6, 4, 3, stride=2, dilation=2)),
    "norm": lambda: Reader(nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4))),
    "transposed": lambda: Reader(even(nn.ConvTranspose2d(6, 4, 2, stride=2))),
    "linear": lambda: Reader(nn.Linear(6 * 4, 4), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())),
}


@pytest.mark.parametrize("make", READERS.values(), ids=READERS.keys())
def test_whatever_reads_a_constant_gets_it(make: Callable[[], Reader]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = make()
    graph = analyse(dense.eval(), torch.rand(2, 3, 8, 8))
    assert len(graph.units) == 1
    keep = chosen(graph, 0)
    randomised(dense, 0)
    dense.bn.bias.data.abs_()  # behind a ReLU a negative constant is none
    kill(dense, graph, keep)
    smaller = Slicer(dense, graph).materialise(keep)
    assert largest_error(smaller, dense, images(8)) > 1e-2
    fold_constants(smaller, dense, graph, keep, images(8, 1))
    assert largest_error(smaller, dense, images(8)) < 1e-10


class ActivatedNorm(nn.BatchNorm2d):
    """A batch norm with its activation inside, as timm has it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(input))


def test_constants_behind_a_norm_with_its_activation_are_those_behind_it() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = Reader(nn.Conv2d(6, 4, 1))
        dense.bn = ActivatedNorm(6)
    graph = analyse(dense.eval(), torch.rand(2, 3, 8, 8))
    keep = chosen(graph, 0)
    randomised(dense, 0)
    dense.bn.bias.data.abs_().neg_()  # which the activation makes 0
    kill(dense, graph, keep)
    smaller = Slicer(dense, graph).materialise(keep)
    fold_constants(smaller, dense, graph, keep, images(8, 1))
    assert largest_error(smaller, dense, images(8)) < 1e-10


def test_a_bias_that_two_layers_share_stays() -> None:
    dense: Any = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1))
    dense[4].bias = dense[3].bias
    graph = analyse(randomised(dense, 0).float(), torch.rand(2, 3, 8, 8))
    keep = chosen(graph, 0)
    smaller: Any = Slicer(dense, graph).materialise(keep)
    before = smaller[3].bias.clone()
    fold_constants(smaller, dense, graph, keep, images(8, 1).float())
    assert torch.equal(smaller[3].bias, before)


def test_a_reader_that_nothing_takes_constants_for_stays_as_it_is() -> None:
    dense = randomised(Reader(nn.Conv2d(6, 4, 1, bias=False)), 0)
    dense.bn.bias.data.abs_()
    graph = analyse(dense.float(), torch.rand(2, 3, 8, 8))
    keep = chosen(graph, 0)
    smaller = Slicer(dense, graph).materialise(keep)
    before = copy.deepcopy(smaller.state_dict())
    fold_constants(smaller, dense, graph, keep, images(8, 1).float())
    after = smaller.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_the_dense_network_is_left_alone_and_nothing_removed_changes_nothing() -> None:
    dense, graph = network()
    randomised(dense, 0).train()
    state, everything = copy.deepcopy(dense.state_dict()), np.ones(graph.channels, dtype=np.bool_)
    same = Slicer(dense, graph).materialise(everything)
    fold_constants(same, dense, graph, everything, images(8, 1))
    fold_constants(Slicer(dense, graph).materialise(chosen(graph, 0)), dense, graph, chosen(graph, 0), images(8, 1))
    assert dense.training
    assert not any(child._forward_hooks for child in dense.modules())
    for name, tensor in same.state_dict().items():
        assert torch.equal(dense.state_dict()[name], state[name])
        assert torch.equal(tensor, state[name])


# -- in the commands -------------------------------------------------------------------------------

HEAD = "model.9.cv2.0.2"  # a convolution with a bias and no batch norm, which recalibration would make up for


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector with channels that differ from one another."""
    return write_detector(tmp_path_factory.mktemp("weights") / "best.pt", randomised(build(32), 5).float())


@pytest.mark.filterwarnings("ignore")
def test_a_candidate_is_folded_where_that_is_asked_for(weights: Path, tiny: Path, tmp_path: Path) -> None:
    adapter = open_adapter(weights, data=tiny / "data" / "data.yaml", image_size=SIZE)
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    space = Space(graph, round_to=1)
    pruner = Pruner(adapter.module, space, make_criterion("bn").order(adapter.module, graph))
    half = space.allocation(space.round_down(np.full(len(space), 0.5)))
    with Journal.create(tmp_path / "journal.jsonl", {}) as journal:
        plain = Evaluator(adapter, pruner, images=2, batch=2, seed=0, journal=journal)
        folding = Evaluator(adapter, pruner, images=2, batch=2, seed=0, journal=journal, criterion="bn")
        biases = [one.repaired(half).get_submodule(HEAD).bias for one in (plain, folding)]
    expected = pruner.materialise(half)
    fold_constants(expected, adapter.module, graph, pruner.kept(half), adapter.example(1))
    assert torch.equal(biases[0], adapter.module.get_submodule(HEAD).bias)  # type: ignore[arg-type]
    assert torch.equal(biases[1], expected.get_submodule(HEAD).bias)  # type: ignore[arg-type]
    assert not torch.equal(*biases)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("criterion", ["bn", "l1"])
def test_apply_folds_for_the_criterion_bn(weights: Path, tmp_path: Path, quick: None, criterion: str) -> None:
    adapter = open_adapter(weights, image_size=SIZE)
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    units = tuple(PolicyUnit(unit.name, unit.width, max(unit.width // 2, 1)) for unit in graph.units)
    Policy(
        model=PolicyModel("best", {unit.name: unit.channels for unit in units}),
        criterion=criterion,
        round_to=1,
        units=units,
        budget=("flops=50%",),
        costs={},
        score=None,
        provenance=Provenance("0", "search", "uniform", 0, 1, "2025-01-01T00:00:00+00:00"),
    ).save(tmp_path / "policy.json")
    words = ["--policy", str(tmp_path / "policy.json"), "--model", str(weights), "--imgsz", str(SIZE)]
    assert main(["apply", *words, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    bias = open_adapter(tmp_path / "run" / "pruned.pt").module.get_submodule(HEAD).bias
    kept = torch.equal(bias, adapter.module.get_submodule(HEAD).bias)  # type: ignore[arg-type]
    assert kept is (criterion != "bn")
