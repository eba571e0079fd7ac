"""FLOPs as Ultralytics prints them, parameters and channels exactly, checkpoint size from the dense one."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thop
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.utils.torch_utils import get_flops

from autoprune.arrays import Counts
from autoprune.costs import (
    ChannelsCost,
    CostSubject,
    FlopsCost,
    MemoryCost,
    ParamsCost,
    SizeCost,
    idle_layers,
    parameter_shapes,
    state_shapes,
    uncounted,
    undescribed_flops,
)
from autoprune.errors import ModelError
from autoprune.models import open_adapter
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.contracts.costs import check_cost
from tests.helpers.detectors import build, write_detector
from tests.helpers.networks import FREE_OUTPUTS, NETWORKS
from tests.helpers.toy import LayerFlops, chain_graph
from tests.helpers.world import analysed, open_world

SIZE = 64
QUICK = ("yolov8n", "mobilenet_v2")


class Small(nn.Module):
    """One of each: plain, depthwise, transposed and strided convolution, norm, pooling, upsampling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, 2, 1)
        self.norm = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.up = nn.ConvTranspose2d(24, 16, 2, 2)
        self.down = nn.Conv2d(16, 32, 3, 2, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(32, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.stem(image)))
        features = self.down(self.up(self.depthwise(features)))
        return self.head(torch.flatten(self.pool(features), 1))


def random_counts(space: Space, seed: int) -> Counts:
    generator = np.random.default_rng(seed)
    return np.array([generator.choice(choices) for choices in space.choices])


def materialised(module: nn.Module, space: Space, counts: Counts) -> nn.Module:
    order = [np.arange(group.size) for group in space.graph.groups]
    return Slicer(module, space.graph).materialise(space.kept_channels(counts, order))


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Space]:
    module = Small().eval()
    return module, Space(analyse(module, torch.rand(2, 3, 32, 32)), round_to=1, min_keep=0.1)


def test_costs_keep_their_contract(small: tuple[nn.Module, Space]) -> None:
    module, space = small
    check_cost(FlopsCost(space), space)
    check_cost(ParamsCost(space, parameter_shapes(module)), space)
    check_cost(SizeCost(space, state_shapes(module), dense_bytes=20_000), space)
    check_cost(ChannelsCost(space), space)


def test_flops_of_a_chain_are_two_per_multiply_accumulate() -> None:
    space = Space(chain_graph((16, 24, 32)))
    counts = random_counts(space, 0)
    assert FlopsCost(space)(counts) == LayerFlops(space)(counts)


def test_every_kind_of_layer_is_counted_by_hand(small: tuple[nn.Module, Space]) -> None:
    _, space = small
    widths = {unit.name: unit.width for unit in space.units}
    stem, up, down = widths["stem"], widths["up"], widths["down"]
    macs = 9 * 3 * stem * 16**2 + 4 * stem * 16**2 + 9 * stem * 16**2
    macs += stem * up * 4 * 16**2 + 9 * up * down * 16**2 + down * 5
    assert float(FlopsCost(space)(space.dense)) == 2 * macs


def test_fixed_flops_are_added(small: tuple[nn.Module, Space]) -> None:
    _, space = small
    assert FlopsCost(space, fixed=7.0)(space.lower) == FlopsCost(space)(space.lower) + 7


class Auxiliary(nn.Module):
    """A classifier with a second head while it trains, and weights of modules that run by a function alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.functional = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)
        self.auxiliary = nn.Sequential(nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 4, 1))

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(nn.functional.conv2d(self.stem(x), self.functional.weight.clone()))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


def test_what_runs_in_training_only_does_not_count() -> None:
    module, example = Auxiliary().eval(), torch.rand(2, 3, 16, 16)
    space = Space(analyse(module, example), round_to=1)
    assert idle_layers(module, space.graph, example) == {f"auxiliary.{place}" for place in range(3)}
    subject = CostSubject(module, space.graph, space, example, checkpoint_bytes=0, bytes_per_number=4)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(example[:1])
    assert float(FlopsCost.of(subject)(space.dense)) == counter.get_total_flops()


def test_what_is_not_counted_is_told(small: tuple[nn.Module, Space]) -> None:
    _, space = small
    told = uncounted(space.graph)
    assert told["pool"] == 1
    assert told["elementwise"] >= 1


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS]
)
def test_flops_and_parameters_are_those_of_the_pruned_network(name: str) -> None:
    torch.manual_seed(0)
    module = NETWORKS[name]().eval()
    example = torch.rand(2, 3, SIZE, SIZE)
    space = Space(analysed(module, example, free_outputs=FREE_OUTPUTS), round_to=1, min_keep=0.1)
    flops = FlopsCost(space, fixed=undescribed_flops(module, space.graph, example))
    params = ParamsCost(space, parameter_shapes(module))
    for counts in (space.dense, random_counts(space, 1), space.lower):
        pruned = materialised(module, space, counts)
        macs, _ = thop.profile(copy.deepcopy(pruned), inputs=(torch.zeros(1, 3, SIZE, SIZE),), verbose=False)
        assert float(flops(counts)) == pytest.approx(2 * macs, rel=0.005)
        assert int(params(counts)) == sum(parameter.numel() for parameter in pruned.parameters())


def test_channels_are_those_that_stay_of_every_group_but_the_pinned_ones() -> None:
    graph = analysed(build(), torch.rand(2, 3, 64, 64), free_outputs=FREE_OUTPUTS)
    space = Space(graph, round_to=1)
    assert max(len(unit.groups) for unit in space.units) == 2, "the halves of a chunk count each"
    pinned = sum(group.size for group in graph.groups if group.pinned is not None)
    order = [np.arange(group.size) for group in graph.groups]
    for counts in (space.dense, random_counts(space, 1), space.lower):
        assert float(ChannelsCost(space)(counts)) == space.kept_channels(counts, order).sum() - pinned


def test_size_is_structure_plus_bytes_per_element(small: tuple[nn.Module, Space]) -> None:
    module, space = small
    size = SizeCost(space, state_shapes(module), dense_bytes=20_000)
    elements = {
        name: sum(int(np.prod(shape)) for shape in state_shapes(materialised(module, space, counts)).values())
        for name, counts in (("dense", space.dense), ("lower", space.lower))
    }
    assert size(space.dense) == 20_000
    assert size(space.lower) == 20_000 - 2 * (elements["dense"] - elements["lower"])


def test_a_dense_checkpoint_that_is_too_small_is_refused(small: tuple[nn.Module, Space]) -> None:
    module, space = small
    with pytest.raises(ModelError, match="hold every element"):
        SizeCost(space, state_shapes(module), dense_bytes=10)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bccd-yolov5nu-320", "bccd-yolov8n-320"])
def test_costs_of_a_real_detector(shared: Path, name: str) -> None:
    adapter = open_adapter(shared / "models" / f"{name}.pt", image_size=320)
    module = adapter.module
    space = Space(analysed(module, adapter.example(2), free_outputs=adapter.free_outputs))
    counts = random_counts(space, 2)
    pruned = materialised(module, space, counts)
    flops = FlopsCost(space, fixed=undescribed_flops(module, space.graph, adapter.example()))
    params = ParamsCost(space, parameter_shapes(module))
    size = SizeCost(space, state_shapes(module), dense_bytes=adapter.checkpoint_size(module))
    assert float(flops(counts)) == pytest.approx(get_flops(pruned, 320) * 1e9, rel=0.005)
    assert int(params(counts)) == sum(parameter.numel() for parameter in pruned.parameters())
    assert float(size(counts)) == pytest.approx(adapter.checkpoint_size(pruned), rel=0.01)


class Tokens(nn.Module):
    """A convolution and another, between them something that multiplies matrices."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 1, bias=False)
        self.attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.weight = nn.Parameter(torch.rand(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        tokens = x.flatten(2).transpose(1, 2)
        if self.kind == "attention":
            tokens = self.attention(tokens, tokens, tokens)[0]
        elif self.kind == "encoder":
            tokens = self.encoder(tokens)
        elif self.kind == "linear":
            tokens = nn.functional.linear(tokens, self.weight)
        elif self.kind == "product":
            tokens = tokens @ self.weight
        elif self.kind == "computed weight":
            return self.last(nn.functional.conv2d(x, (self.weight / self.weight.norm())[..., None, None]))
        return self.last(tokens.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize(
    ("kind", "macs"),
    [
        ("linear", 64 * 64),
        ("product", 64 * 64),
        ("computed weight", 64 * 64),
        ("attention", 4 * 64 * 64 + 2 * 64 * 64 * 8),
        ("encoder", 4 * 64 * 64 + 2 * 64 * 64 * 8 + 2 * 64 * 8 * 16),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_matrix_products_that_no_layer_describes_are_counted(kind: str, macs: int, batch: int) -> None:
    module = Tokens(kind).eval()
    graph = analyse(module, torch.rand(2, 3, 8, 8))
    space = Space(graph)
    flops = FlopsCost(space, fixed=undescribed_flops(module, graph, torch.rand(batch, 3, 8, 8)))
    assert float(flops(space.dense)) == 2 * (64 * (3 * 8 + 8 * 4) + macs)
    assert not {"linear", "matmul", "conv2d"} & uncounted(graph).keys()


@pytest.mark.parametrize("folded", [False, True])
def test_tensors_whose_batch_is_folded_into_heads_take_memory(folded: bool) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            heads = x.view(len(x) * 2, 4, -1) if folded else x.view(len(x), 2, 4, -1)
            weights = (heads.transpose(-1, -2) @ heads).softmax(-1)
            return self.last((heads @ weights).view(x.shape))

    module = Heads().eval()
    graph = analyse(module, torch.rand(2, 3, 16, 16))
    space = Space(graph)
    assert float(MemoryCost(space, state_shapes(module))(space.dense)) >= 4 * 2 * 256 * 256


# -- memory --------------------------------------------------------------------------------------------


class Skip(nn.Module):
    """A stem whose output waits until a wide branch has run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.wide, self.narrow = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.stem(image)
        return self.head(image + self.narrow(torch.relu(self.wide(image))))


def test_memory_is_what_waits_and_what_is_made() -> None:
    module = Skip().eval()
    space = Space(analyse(module, torch.rand(2, 3, 16, 16)), round_to=1)
    memory = MemoryCost(space, state_shapes(module))
    check_cost(memory, space)
    weights = sum(int(np.prod(shape)) for shape in state_shapes(module).values())
    pixels = 16 * 16
    assert float(memory(space.dense)) == 4 * (weights + pixels * (8 + 32 + 8)), "stem, wide and narrow; no image"
    names = [unit.name for unit in space.units]
    counts = space.dense.copy()
    counts[names.index("wide")] = 2
    narrow = materialised(module, space, counts)
    weights = sum(int(np.prod(shape)) for shape in state_shapes(narrow).values())
    assert float(memory(counts)) == 4 * (weights + pixels * (8 + 8 + 8)), "now the sum is the peak"


class Held(TorchDispatchMode):
    """Adds up the bytes of the tensors that are alive after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.first = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.first = self.first or sum(self.alive.values())
        self.peak = max(self.peak, sum(self.alive.values()))
        return found


def held_by_torch(module: nn.Module, image: torch.Tensor) -> int:
    """Return the most bytes that a forward pass holds, each tensor freed after its last reader, the input first."""
    module(image)  # a head keeps its anchors at the first run
    traced = torch.export.export(module, (image,), strict=False).module()
    assert isinstance(traced, torch.fx.GraphModule)
    with torch.no_grad(), Held() as held:
        torch.fx.Interpreter(traced).run(image)
    return max(held.peak, image.nbytes + held.first)


def test_memory_of_a_detector_is_what_torch_holds(tmp_path: Path) -> None:
    adapter = open_adapter(write_detector(tmp_path / "best.pt"), device="cpu")
    image = adapter.example(1)
    space = Space(analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs), round_to=1)
    memory = MemoryCost(space, state_shapes(adapter.module))
    for counts in (space.dense, space.round_down(np.full(len(space), 0.5))):
        pruned = adapter.deployable(materialised(adapter.module, space, counts))
        weights = sum(tensor.nbytes for tensor in pruned.state_dict().values())
        assert float(memory(counts)) == pytest.approx(weights + held_by_torch(pruned, image), rel=0.02)


def test_the_size_of_a_stage_is_that_of_its_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, file = open_world(tiny), tmp_path / "small.pt"
    lowest = network.space.allocation(network.space.lower)
    module = network.pruner.materialise(lowest)
    network.adapter.save(module, file)
    closed, alone, written = network.costs(lowest), network.costs(lowest, module), network.costs(lowest, module, file)
    assert alone["size"] == network.adapter.checkpoint_size(module)
    assert written["size"] == file.stat().st_size
    assert closed["params"] == sum(parameter.numel() for parameter in module.parameters())
    assert {**alone, "size": closed["size"]} == {**written, "size": closed["size"]} == closed
    monkeypatch.setattr(type(network.adapter), "checkpoint_size", None)
    assert network.costs(lowest) == closed, "what they are made from is computed once"
