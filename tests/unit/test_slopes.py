"""Slopes: what a pruned network's loss would be, were it wider, from one backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.arrays import Mask
from autoprune.criteria.registry import make_criterion
from autoprune.evaluation.compensation import compensate
from autoprune.evaluation.evaluator import Evaluator
from autoprune.evaluation.slopes import measure_slopes
from autoprune.journal import Journal
from autoprune.models import open_adapter
from autoprune.statistics.moments import Moments, collect_moments
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Pruner, Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers import world
from tests.unit.test_compensation import Reader
from tests.unit.test_folding import randomised

IMAGES = torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(3))
WEIGHTS = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(4)) - 0.5


class Depthwise(nn.Module):
    """Channels that pass a depthwise convolution before they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Conv2d(3, 8, 3)
        self.each = nn.Conv2d(8, 8, 3, groups=8)
        self.read = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(torch.relu(self.each(self.make(x))))


def loss_of(images: torch.Tensor) -> Callable[[nn.Module], torch.Tensor]:
    """Return a loss that is linear in what the last layer gives."""

    def loss(module: nn.Module) -> torch.Tensor:
        given = module(images)
        weights = WEIGHTS if given.dim() == 4 else WEIGHTS.mean((1, 2))
        return (given * weights).sum() / 10

    return loss


@pytest.fixture(params=[Reader, Depthwise])
def analysed(request: pytest.FixtureRequest) -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    dense = randomised(request.param(), 0).float()
    return dense, analyse(dense, torch.zeros(2, 3, 12, 12))


def last_unit_pruned(graph: ChannelGraph, kept: int) -> Mask:
    """Return the mask that keeps the first channels of the last unit's groups, and all others."""
    keep = np.ones(graph.channels, dtype=np.bool_)
    unit = graph.units[-1]
    for index in unit.groups:
        group = graph.groups[index]
        keep[group.offset + kept * group.size // unit.width : group.offset + group.size] = False
    return keep


def true_loss(dense: nn.Module, graph: ChannelGraph, keep: Mask, moments: Moments | None) -> float:
    smaller = Slicer(dense, graph).materialise(keep)
    if moments is not None:
        compensate(smaller, dense, graph, keep, moments)
    with torch.no_grad():
        return float(loss_of(IMAGES)(smaller.train()))


@pytest.mark.parametrize("compensated", [False, True])
def test_the_masked_network_computes_what_the_pruned_one_does(
    analysed: tuple[nn.Module, ChannelGraph], compensated: bool
) -> None:
    dense, graph = analysed
    moments = collect_moments(dense, graph, [IMAGES]) if compensated else None
    for unit in graph.units:
        keep = np.ones(graph.channels, dtype=np.bool_)
        for index in unit.groups:
            group = graph.groups[index]
            keep[group.offset + group.size // 2 : group.offset + group.size] = False
        found: list[float] = []

        def loss(module: nn.Module, found: list[float] = found) -> torch.Tensor:
            value = loss_of(IMAGES)(module)
            found.append(float(value.detach()))
            return value

        measure_slopes(dense, graph, keep, moments, [loss])
        assert found == [pytest.approx(true_loss(dense, graph, keep, moments), abs=2e-4)]


def test_where_the_loss_is_linear_the_change_is_exact(analysed: tuple[nn.Module, ChannelGraph]) -> None:
    dense, graph = analysed
    keep, wider = last_unit_pruned(graph, 2), last_unit_pruned(graph, 4)
    slopes = measure_slopes(dense, graph, keep, None, [loss_of(IMAGES[:10]), loss_of(IMAGES[10:])])
    expected = true_loss(dense, graph, wider, None) - true_loss(dense, graph, keep, None)
    assert abs(expected) > 1e-4
    assert slopes.change(wider) == pytest.approx(expected, rel=0.01, abs=2e-6)
    assert slopes.change(keep) == 0


def test_a_layer_that_is_not_compensated_takes_no_matrix_of_its_inputs() -> None:
    """A classifier like VGG's reads 25088 channels; of layers whose channels predict nothing a diagonal is enough."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(64), nn.Flatten(), nn.Linear(32768, 2))
    graph = analyse(dense.eval(), torch.zeros(2, 3, 12, 12))
    keep, wider = last_unit_pruned(graph, 2), last_unit_pruned(graph, 4)
    moments = collect_moments(dense, graph, [IMAGES], limit=1000, notify=lambda _: None)
    assert not moments.mean

    def loss(module: nn.Module) -> torch.Tensor:
        return module(IMAGES).sum()

    found = measure_slopes(dense, graph, keep, moments, [loss]).change(wider)  # 4 GB for each matrix
    with torch.no_grad():
        expected = [loss(Slicer(dense, graph).materialise(mask)) for mask in (keep, wider)]
    assert found == pytest.approx(float(expected[1] - expected[0]), rel=1e-3)


def test_what_becomes_predictable_counts_too() -> None:
    """With compensation, added channels also say something of those that stay removed."""
    torch.manual_seed(0)
    dense = randomised(Reader(), 0).float()
    graph = analyse(dense, torch.zeros(2, 3, 12, 12))
    moments = collect_moments(dense, graph, [IMAGES])
    keep, wider = last_unit_pruned(graph, 1), last_unit_pruned(graph, 3)
    slopes = measure_slopes(dense, graph, keep, moments, [loss_of(IMAGES)])
    expected = true_loss(dense, graph, wider, moments) - true_loss(dense, graph, keep, moments)
    assert slopes.change(wider) == pytest.approx(expected, rel=0.05)


def test_the_network_is_left_as_it_was(analysed: tuple[nn.Module, ChannelGraph]) -> None:
    dense, graph = analysed
    before = copy.deepcopy(dense.state_dict())
    required = [parameter.requires_grad for parameter in dense.parameters()]
    measure_slopes(dense, graph, last_unit_pruned(graph, 2), None, [loss_of(IMAGES)])
    assert [parameter.requires_grad for parameter in dense.parameters()] == required
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert not dense.training
    assert all(not module._forward_pre_hooks for module in dense.modules())


@pytest.mark.shared
@pytest.mark.parametrize("compensate", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_units_with_high_gains_really_gain_more(shared: Path, tmp_path: Path, compensate: bool) -> None:
    adapter = open_adapter(
        shared / "models" / "bccd-yolov8n-320.pt", data=shared / "data" / "bccd" / "bccd.yaml", image_size=160
    )
    graph = world.analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    space = Space(graph)
    pruner = Pruner(adapter.module, space, make_criterion("l1").order(adapter.module, graph))

    def evaluator() -> Evaluator:
        path = tmp_path / "journal.jsonl"
        journal = Journal.open(path) if path.exists() else Journal.create(path, {})
        return Evaluator(adapter, pruner, images=8, batch=4, seed=0, journal=journal, compensate=compensate)

    scorer = evaluator()
    base = space.allocation(space.round_down(np.full(len(space), 0.6)))
    units = range(0, len(space), 2)
    widths = [
        [int(space.dense[unit])] if unit in units and base[unit] < space.dense[unit] else []
        for unit in range(len(space))
    ]
    gains = scorer.gains(base, widths)
    (score,) = scorer([base])
    asked = [unit for unit, wider in enumerate(widths) if wider]
    wider = [(*base[:unit], widths[unit][0], *base[unit + 1 :]) for unit in asked]
    true = [one.score - score.score for one in scorer(wider)]
    order = np.argsort([gains[unit][0] for unit in asked])
    third = len(order) // 3
    least, most = (float(np.mean(np.array(true)[part])) for part in (order[:third], order[-third:]))
    assert most > 0.002
    assert most > 3 * least
    scorer.journal.close()
    again = evaluator()
    again._slopes = None  # type: ignore[assignment,method-assign]  # what is journalled is not measured anew
    assert again.gains(base, widths) == gains


@pytest.mark.parametrize("added", [[12], [12, 13], [8, 12]])
def test_constant_channels_gain_next_to_nothing(added: list[int]) -> None:
    """Sparsity training leaves batch norm scales of zero; nothing is divided by what rounding leaves of a variance."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 16, 5, bias=False), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 4, 1)).eval()
    with torch.no_grad():
        dense[1].weight[12:] = 0
        dense[1].bias[12:] = torch.randn(4)
    graph = analyse(dense, torch.zeros(2, 3, 12, 12))
    keep, wider = last_unit_pruned(graph, 8), last_unit_pruned(graph, 8)
    offset = graph.groups[graph.units[-1].groups[0]].offset
    wider[[offset + index for index in added]] = True
    moments = collect_moments(dense, graph, [IMAGES])
    slopes = measure_slopes(dense, graph, keep, moments, [loss_of(IMAGES)])
    expected = true_loss(dense, graph, wider, moments) - true_loss(dense, graph, keep, moments)
    assert slopes.change(wider) == pytest.approx(expected, rel=0.2, abs=0.05)
