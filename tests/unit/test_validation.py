"""What is pruned computes what the dense network does without reading the removed channels, or is pinned."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.structure import validation
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import CHANGES_SHAPE, USED_AS_NUMBER, analyse, unread
from tests.helpers.networks import check_exact, random_keep

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
SIZES = (12, 10, 8)


class Chain(nn.Module):
    """Convolutions, each with something behind it."""

    def __init__(self, *behind: Callable[[torch.Tensor, nn.Conv2d], torch.Tensor] | None) -> None:
        super().__init__()
        widths = (3, *SIZES[: len(behind)])
        self.convs = nn.ModuleList([nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths)])
        self.head, self._behind = nn.Conv2d(widths[-1], 2, 1), behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, behind in zip(self.convs, self._behind, strict=True):
            x = torch.relu(conv(x))
            x = x if behind is None else behind(x, conv)
        return self.head(x)


NUMBERS: dict[str, Callable[[torch.Tensor, nn.Conv2d], torch.Tensor]] = {
    "shape": lambda x, _: x * x.shape[1] ** -0.5,
    "out_channels": lambda x, conv: x / math.sqrt(conv.out_channels),
    "size of the weight": lambda x, conv: x + 1.0 / len(conv.weight),
    "numel": lambda x, _: x * (x.numel() / 1000),
    "steps": lambda x, _: x * (x.shape[1] // 8),
    "threshold": lambda x, _: torch.clamp(x, min=0.004 * x.size(1)),
}
"""A width that changes what is computed."""


def pins(graph: ChannelGraph) -> dict[str, str]:
    return {group.name: group.pinned for group in graph.groups if group.pinned and not group.pinned.startswith("net")}


def check_any_exact(network: nn.Module, graph: ChannelGraph) -> None:
    """Assert that some random allocations are exact."""
    for seed in range(4):
        check_exact(network, graph, random_keep(Space(graph, round_to=1, min_keep=1e-6), seed), IMAGES)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_width_used_as_a_number_pins_its_unit_alone(name: str) -> None:
    graph = analyse(Chain(None, NUMBERS[name], None), IMAGES)
    assert pins(graph) == {"convs.1": USED_AS_NUMBER}
    assert [unit.name for unit in graph.units] == ["convs.0", "convs.2"]


@settings(max_examples=8)
@given(st.lists(st.sampled_from([None, *NUMBERS]), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_any_mixture_is_exact_where_it_is_pruned(names: list[str | None], seed: int) -> None:
    torch.manual_seed(seed)
    network = Chain(*(None if name is None else NUMBERS[name] for name in names))
    graph = analyse(network, IMAGES)
    assert [unit.name for unit in graph.units] == [f"convs.{at}" for at, name in enumerate(names) if name is None]
    check_exact(network, graph, random_keep(Space(graph, round_to=1, min_keep=1e-6), seed), IMAGES)


class Hidden(nn.Module):
    """What uses the width as a number is switched off, as before training."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)
        self.norm, self.gate = nn.BatchNorm2d(8), nn.Parameter(torch.zeros(()))
        self.layer_scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.how = how
        if how == "norm":
            nn.init.zeros_(self.norm.weight)
        if how == "weight":
            nn.init.zeros_(self.mid.weight)
        if how == "input":
            self.norm = nn.Identity()
            self.stem.bias = self.mid.bias = self.head.bias = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        branch = self.norm(self.mid(x * x.shape[1] ** -0.5))
        if self.how == "gate":
            branch = branch * self.gate
        if self.how == "layer scale":
            branch = branch * self.layer_scale
        return self.head(branch)


class Deep(nn.Module):
    """Its signal dies away through many layers, as long as nothing is trained."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        blocks = [(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU()) for _ in range(30)]
        self.blocks = nn.Sequential(*[layer for block in blocks for layer in block])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.blocks(x * x.shape[1] ** -0.5))


@pytest.mark.parametrize("how", ["norm", "gate", "weight", "layer scale", "input", "depth"])
def test_a_dead_layer_hides_nothing(how: str) -> None:
    module = (Deep if how == "depth" else Hidden)(how).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    assert pins(analyse(module, torch.zeros_like(IMAGES)))["stem"] == USED_AS_NUMBER
    assert torch.equal(torch.get_rng_state(), state)
    assert not module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


class Kept(nn.Module):
    """Networks that are exact, though naive comparisons would say that they are not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.mid, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.norm, self.slope = nn.BatchNorm2d(8), nn.PReLU(8)
        self.register_buffer("table", torch.rand(1, 1, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.how == "constants behind removed channels":
            return self.head(torch.sigmoid(self.slope(self.norm(self.mid(x))) + 3))
        if self.how == "quotient":
            return self.head(self.mid(x) / (self.mid(x) + 1e-30))
        if self.how == "float32 inside":
            return self.head(torch.relu(self.mid(x).float()).to(x.dtype))
        if self.how == "float32 only":
            return self.head(self.mid((x + self.table).to(torch.float32)).to(x.dtype))
        if self.how == "random":
            return self.head(torch.dropout(self.mid(x), 0.5, True))
        if self.how == "infinite":
            return self.head(self.mid(x)).clamp(max=0).log()
        if self.how == "order":
            return self.head(self.mid(x)).flatten(1).sort(dim=1, descending=True).values[:, :9]
        return self.head(self.mid(x)) * self.table.shape[-1]  # a number, but of no width


@pytest.mark.parametrize(
    "how",
    [
        "constants behind removed channels",
        "quotient",
        "float32 inside",
        "float32 only",
        "random",
        "infinite",
        "order",
        "number",
    ],
)
def test_exact_networks_are_not_pinned(how: str) -> None:
    torch.manual_seed(0)
    graph = analyse(Kept(how).eval(), IMAGES)
    assert {unit.name for unit in graph.units} == {"stem", "mid"}


class Gate(nn.Module):
    """Multiplies two halves of what it reads, without weights of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.split([self.c, self.c], 1)
        return left * torch.sigmoid(right)


class Compared(nn.Module):
    """Networks that are the dense one only for some widths of their layers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        if self.how == "maximum in eval mode" and not self.training:
            x = x - x.amax(1, keepdim=True)
        if self.how == "maximum of maxima":
            x = x / (1 + nn.functional.adaptive_max_pool2d(x, 1).amax(1, keepdim=True))
        y = self.second(x)
        if self.how == "equal shapes" and y.shape == x.shape:
            y = y + x
        if self.how == "equal widths" and self.second.in_channels == self.second.out_channels:
            y = y + x
        return self.head(y)


@pytest.mark.parametrize("how", ["maximum in eval mode", "maximum of maxima", "equal shapes", "equal widths"])
def test_what_only_some_channels_or_widths_show_is_pinned(how: str) -> None:
    torch.manual_seed(0)
    network = Compared(how).eval()
    graph = analyse(network, IMAGES)
    assert "first" in pins(graph)
    check_any_exact(network, graph)


def test_units_that_one_number_counts_stay_equal() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 2, 1)
            self.gate = Gate(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.gate(self.second(self.gate(self.first(x)))))

    network = Gated().eval()
    graph = analyse(network, IMAGES)
    assert [unit.width for unit in graph.units] == [8]
    check_any_exact(network, graph)


class Tokens(nn.Module):
    """Operations on tensors that are no images."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1), nn.LazyLinear(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        if self.how == "padded":
            return self.head(nn.functional.pad(x.mean((2, 3)), (-1, 1)))
        if self.how == "cut":
            return self.head(nn.functional.pad(x.mean((2, 3)), (0, -2)))
        pooled = nn.functional.max_pool2d if self.how == "maxima" else nn.functional.avg_pool2d
        return self.head(pooled(x.mean(3), 3, 1, 1).flatten(1))


@pytest.mark.parametrize("how", ["padded", "cut", "maxima", "averages"])
def test_operations_over_channels_pin_them(how: str) -> None:
    network = Tokens(how).eval()
    network(IMAGES)
    graph = analyse(network, IMAGES)
    assert [unit.name for unit in graph.units] == ["first"]
    check_any_exact(network, graph)


def test_channels_pass_through_adaptive_maxima() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.squeeze, self.expand = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
            self.maximum, self.average, self.head = (
                nn.AdaptiveMaxPool2d(1),
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(12, 2, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            weights = [self.expand(torch.relu(self.squeeze(pooled(x)))) for pooled in (self.maximum, self.average)]
            return self.head(x * torch.sigmoid(sum(weights)))

    network = Attention().eval()
    graph = analyse(network, IMAGES)
    assert {unit.name for unit in graph.units} == {"conv", "squeeze"}
    check_any_exact(network, graph)


def test_an_output_of_eval_mode_alone_counts() -> None:
    class Both(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
            x = self.convs[0](x)
            out = self.head(x)
            return out if self.training else {"out": out, "free": x, "seen": x.mean((2, 3))}

    assert pins(analyse(Both(None), IMAGES, free_outputs={"free"})) == {"convs.0": CHANGES_SHAPE}
    assert not pins(analyse(Both(None), IMAGES, free_outputs={"free", "seen"}))


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0 + 1e-12], [1.0, 2.0], True),
        ([1.0, 2.0 + 1e-5], [1.0, 2.0], False),
        ([1e-9, 2.0], [2e-9, 2.0], True),  # far below the largest
        ([1.0, math.inf], [1.0, math.inf], True),
        ([2.0, math.inf], [1.0, math.inf], False),
        ([1.0, 2.0], [1.0, math.inf], False),
        ([1.0, math.nan], [1.0, 2.0], False),
        ([math.nan], [math.nan], True),
        ([True, False], [True, False], True),
        ([True, True], [True, False], False),
        ([1 + 2j], [1 + 2j], True),
        ([1 + 2j], [1 - 2j], False),
        ([], [], True),
    ],
)
def test_outputs_agree_in_half_of_their_digits(found: list[complex], expected: list[complex], equal: bool) -> None:
    one, other = (torch.tensor(values) if values else torch.zeros(0) for values in (found, expected))
    if one.is_floating_point():
        one, other = torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    assert validation._agree(one, other, 1.5e-8) is equal


def test_zeros_are_taken_back() -> None:
    network = Chain(None, None).eval()
    graph = analyse(network, IMAGES)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    keep = random_keep(Space(graph, round_to=1, min_keep=1e-6), 0)
    with unread(network, graph, keep), torch.no_grad():
        expected = network(IMAGES)
        assert float(network.convs[1].weight[:, ~keep[graph.axes[dict(graph.tensors["convs.1.weight"])[1]]]].sum()) == 0
    with torch.no_grad():
        torch.testing.assert_close(Slicer(network, graph).materialise(keep)(IMAGES), expected)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_without_the_comparison_widths_used_as_numbers_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds them is the comparison of values, and nothing else."""
    monkeypatch.setattr(validation, "_agree", lambda *_: True)
    for name in ("shape", "out_channels"):
        network = Chain(NUMBERS[name])
        graph = analyse(network, IMAGES)
        assert [unit.name for unit in graph.units] == ["convs.0"]
        keep = np.ones(graph.channels, dtype=np.bool_)
        keep[graph.groups[graph.units[0].groups[0]].offset] = False
        with pytest.raises(AssertionError, match="not close"):
            check_exact(network, graph, keep, IMAGES)


def test_a_batch_norm_that_averages_over_all_batches_can_be_analysed() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None), nn.Conv2d(4, 2, 1)).eval()
    assert [unit.name for unit in analyse(network, torch.rand(2, 3, 8, 8)).units] == ["0"]
    assert network[1].momentum is None
