"""Pruning criteria: their contract, their formulas, and that what is dead goes first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.criteria._base import CalibrationData
from autoprune.criteria.apoz import ApozImportance, activation_after
from autoprune.criteria.fisher import FisherImportance
from autoprune.criteria.hutchinson import HutchinsonImportance
from autoprune.criteria.registry import CRITERIA, CriterionSpec, make_criterion, spec_of
from autoprune.criteria.regression import contributions, eliminated
from autoprune.criteria.taylor import TaylorImportance
from autoprune.errors import AutopruneWarning, ConfigError
from autoprune.listener import PythonListener, hearing
from autoprune.statistics.sampling import SampledPositions
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.validation import analyse
from tests.contracts.importances import check_importance
from tests.helpers.world import analysed

FROM_IMAGES = [spec.name for spec in CRITERIA if spec.needs_images]
FROM_WEIGHTS = ["l1", "l2", *(spec.name for spec in CRITERIA if not spec.needs_images)]
NAMES = (*FROM_WEIGHTS, "l0.5", "l3", *FROM_IMAGES)
WIDTH, DEAD = 6, 2


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int = 1, act: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = act()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class Net(nn.Module):
    """A residual stream, a depthwise convolution and a head with four outputs."""

    def __init__(self, act: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.stem = Block(3, WIDTH, act=act)
        self.inner = Block(WIDTH, WIDTH, act=act)
        self.outer = Block(WIDTH, WIDTH, act=act)
        self.depthwise = Block(WIDTH, WIDTH, groups=WIDTH, act=act)
        self.head = nn.Conv2d(WIDTH, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.outer(self.inner(x))
        return self.head(self.depthwise(x))


def network(act: type[nn.Module] = nn.SiLU) -> tuple[Net, ChannelGraph]:
    return _module(act), _graph(act)


@cache
def _graph(act: type[nn.Module]) -> ChannelGraph:
    return analyse(_module(act), torch.zeros(2, 3, 8, 8))


def _module(act: type[nn.Module]) -> Net:
    torch.manual_seed(0)
    module = Net(act).eval()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.normal_(child.bias, std=0.3)
    return module


def evidence(batches: int = 3) -> CalibrationData:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(4, 3, 8, 8, generator=generator) for _ in range(batches)]

    def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        assert module.training
        return (module(batch) - 1).square().mean()

    return CalibrationData(images, lambda batch: batch, loss)


def unit_scores(scores: Sequence[Any], graph: ChannelGraph, name: str) -> np.ndarray:
    (unit,) = [unit for unit in graph.units if unit.name == name]
    return np.asarray(scores[unit.groups[0]])


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    module, graph = network()
    check_importance(make_criterion(name, evidence), module, graph)


@pytest.mark.parametrize("spec", CRITERIA, ids=lambda spec: spec.name)
def test_a_record_leads_to_the_criterion_of_its_name(spec: CriterionSpec) -> None:
    assert make_criterion(spec.name, evidence).name == spec.name


def test_batch_norm_scales_of_one_channel_are_averaged() -> None:
    module, graph = network()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.weight.data.fill_(0.5)
    for group, scores in zip(graph.groups, make_criterion("bn")(module, graph), strict=True):
        assert set(np.unique(scores.round(6))) <= {0.0, 0.5}, group.name


def test_a_layer_with_small_batch_norm_scales_scores_below_all_others() -> None:
    module, graph = network()
    module.inner.bn.weight.data *= 0.01
    scores = make_criterion("bn")(module, graph)
    assert unit_scores(scores, graph, "inner").max() < unit_scores(scores, graph, "stem").min()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("random", "fpgm")])
def test_a_dead_channel_goes_first(name: str) -> None:
    module, graph = network()
    with torch.no_grad():
        module.inner.conv.weight[DEAD] = 0
        module.inner.bn.weight[DEAD] = module.inner.bn.bias[DEAD] = 0
        module.outer.conv.weight[:, DEAD] = 0
    scores = unit_scores(make_criterion(name, evidence)(module, graph), graph, "inner")
    assert scores[DEAD] == scores.min()
    if name != "hutchinson":  # there a channel whose curvature is negative counts as little
        assert (np.delete(scores, DEAD) > scores[DEAD]).all()


class Unseen(nn.Module):
    """Channels without a batch norm that only a transposed convolution reads, and filters called by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 1), nn.BatchNorm2d(WIDTH)
        self.unseen, self.up = nn.Conv2d(WIDTH, WIDTH, 1), nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2)
        self.filters, self.head = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, 4, 1)
        self.register_buffer("gain", torch.ones(1, WIDTH, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.unseen(torch.relu(self.norm(self.stem(x))))
        x = torch.relu(self.up(x)) * self.gain
        return self.head(torch.relu(nn.functional.conv2d(x, self.filters.weight, self.filters.bias)))


@pytest.mark.parametrize("name", ["bn", "apoz", "regression", "covariance", "l1"])
def test_channels_that_a_criterion_does_not_see_are_ranked_by_their_weights(name: str) -> None:
    torch.manual_seed(0)
    network = Unseen().eval()
    with torch.no_grad():
        network.unseen.weight[0] *= 30
        network.unseen.bias[0] = network.unseen.bias[0].abs() + 1  # type: ignore[index]
        network.up.weight[0] *= 30
    graph = analyse(network, torch.rand(2, 3, 8, 8))
    images = torch.rand(4, 3, 8, 8)
    data = CalibrationData([images], lambda batch: batch, lambda module, batch: module(batch).square().mean())
    scores = make_criterion(name, lambda: data)(network, graph)
    names = [group.name for group in graph.groups]
    assert int(np.argmax(scores[names.index("unseen")])) == 0


def test_whole_layers_that_bn_does_not_see_are_not_the_first_to_go() -> None:
    network = Unseen().eval()
    graph = analyse(network, torch.rand(2, 3, 8, 8))
    says = r"bn says nothing of \d channel groups \(.*unseen.*ranked by l1"
    with hearing(PythonListener()), pytest.warns(AutopruneWarning, match=says):
        scores = make_criterion("bn")(network, graph)
    middles = [float(np.median(one)) for one, group in zip(scores, graph.groups, strict=True) if not group.pinned]
    assert max(middles) < 2 * min(middles)


def test_fpgm_drops_the_filter_among_the_others() -> None:
    module, graph = network()
    with torch.no_grad():
        for layer, dimension in ((module.inner.conv, 0), (module.outer.conv, 1)):
            others = layer.weight.detach().clone().transpose(0, dimension)
            layer.weight.transpose(0, dimension)[DEAD] = others[[i for i in range(WIDTH) if i != DEAD]].mean(0)
    scores = unit_scores(make_criterion("fpgm")(module, graph), graph, "inner")
    assert np.argmin(scores) == DEAD


def test_lamp_is_the_share_of_what_is_no_smaller() -> None:
    module, graph = network()
    with torch.no_grad():
        module.inner.conv.weight[:] = 0
        module.inner.conv.weight[:, 0, 0, 0] = torch.tensor([1.0, 3.0, 2.0, 1.0, 0.0, 5.0])
        module.outer.conv.weight[:] = 0
    squares = np.array([1.0, 9, 4, 1, 0, 25])
    scores = unit_scores(make_criterion("lamp")(module, graph), graph, "inner")
    assert scores[[5, 1, 2]] == pytest.approx([1.0, 9 / 34, 4 / 38])
    assert sorted(scores[[0, 3]]) == pytest.approx([1 / 40, 1 / 39])
    assert scores[4] == pytest.approx(squares[4])


def test_taylor_is_the_squared_sum_of_gradient_times_weight() -> None:
    """A loss that is linear in one layer's weights has the factors as its gradient."""
    module, graph = network()
    slope = torch.rand(module.inner.conv.weight.shape, generator=torch.Generator().manual_seed(2))

    def loss(net: nn.Module, _: object) -> torch.Tensor:
        assert isinstance(net, Net)
        return (slope * net.inner.conv.weight).sum()

    produced, read = TaylorImportance(CalibrationData([None], lambda batch: batch, loss)).members(module, graph)
    products = slope * module.inner.conv.weight.detach()
    assert torch.allclose(produced.scores, products.sum((1, 2, 3)).square())
    assert torch.allclose(read.scores, products.sum((0, 2, 3)).square())


def test_fisher_is_half_the_mean_squared_gradient_times_the_squared_weight() -> None:
    module, graph = network()
    seen = evidence(batches=2)
    squares = torch.zeros(WIDTH)
    for batch in seen.batches:
        module.zero_grad()
        seen.loss(module.train(), batch).backward()
        assert module.depthwise.bn.weight.grad is not None
        squares += (module.depthwise.bn.weight.grad * module.depthwise.bn.weight.detach()).square() / 4
    module.zero_grad()
    fresh, _ = network()
    members = FisherImportance(seen).members(fresh, graph)
    assert any(torch.allclose(member.scores, squares, rtol=1e-4) for member in members if len(member.scores) == WIDTH)


def test_hutchinson_finds_a_diagonal_hessian_exactly() -> None:
    """A loss that is a weighted square of one layer's weights has that weight as its curvature."""
    module, graph = network()
    curvature = torch.rand(module.inner.conv.weight.shape, generator=torch.Generator().manual_seed(2))

    def loss(net: nn.Module, _: object) -> torch.Tensor:
        assert isinstance(net, Net)
        return 0.5 * (curvature * net.inner.conv.weight.square()).sum()

    members = HutchinsonImportance(CalibrationData([None], lambda batch: batch, loss)).members(module, graph)
    weight = module.inner.conv.weight.detach()
    expected = 0.5 * curvature.flatten(1).mean(1) * weight.flatten(1).square().sum(1)
    assert any(torch.allclose(member.scores, expected, rtol=1e-5) for member in members if len(member.scores) == WIDTH)


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.Hardtanh])
def test_apoz_counts_exact_zeros_or_near_ones(act: type[nn.Module]) -> None:
    module, graph = network(act)
    with torch.no_grad():
        module.inner.bn.weight[DEAD], module.inner.bn.bias[DEAD] = 0.0, -30.0 if act is nn.ReLU else 1e-4
    scores = unit_scores(ApozImportance(evidence())(module, graph), graph, "inner")
    assert scores[DEAD] == 0
    assert scores.max() > 0


def test_the_activation_behind_a_layer() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    assert isinstance(activation_after(module, "1"), nn.ReLU)
    assert isinstance(activation_after(module, "4"), nn.Identity)
    assert isinstance(activation_after(Net(nn.ReLU), "inner.bn"), nn.ReLU)


# -- regression ------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.sampled_from([(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 1, 2), (1, 1, 0, 2)]), st.integers(0, 100))
def test_contributions_make_up_the_output(shape: tuple[int, int, int, int], seed: int) -> None:
    kernel, stride, padding, groups = shape
    torch.manual_seed(seed)
    layer = (
        nn.Conv2d(4, 6, kernel, stride=stride, padding=padding, groups=groups, bias=False)
        .double()
        .requires_grad_(False)
    )
    images = torch.rand(2, 4, 7, 7, dtype=torch.float64)
    places = SampledPositions(seed=seed)
    patches, values = places.patches(layer, images), places.values(layer, images, layer(images))
    rows = patches.flatten(1)
    gram = contributions(layer, rows.T @ rows)
    assert gram == pytest.approx(gram.T)
    assert float(gram.sum()) == pytest.approx(float(values.square().sum()))
    for channel in range(4):
        alone = torch.zeros_like(images)
        alone[:, channel] = images[:, channel]
        part = places.values(layer, images, layer(alone))
        assert float(gram[channel, channel]) == pytest.approx(float(part.square().sum()))


@given(st.integers(0, 200))
def test_elimination_is_greedy(seed: int) -> None:
    parts = np.random.default_rng(seed).normal(size=(5, 4))
    products = parts @ parts.T
    order = np.argsort(eliminated(products))
    removed: list[int] = []
    for channel in order:
        errors = {
            other: float(np.sum(parts[[*removed, other]].sum(0) ** 2)) for other in range(5) if other not in removed
        }
        assert errors[int(channel)] == pytest.approx(min(errors.values()))
        removed.append(int(channel))


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [("l-1", "above 0 .*, got 'l-1'"), ("l0", "above 0 .*, got 'l0'"), ("tailor", "one of l1, l2, .*got 'tailor'")],
)
def test_a_criterion_that_is_none(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        spec_of(name)
    with pytest.raises(ConfigError, match=says):
        make_criterion(name)


@pytest.mark.parametrize("name", FROM_IMAGES)
def test_without_images(name: str) -> None:
    with pytest.raises(ConfigError, match=f"The criterion {name} looks at training images"):
        make_criterion(name)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_IMAGES)
def test_on_a_real_detector(shared: Path, name: str) -> None:
    from autoprune.evaluation.pruning import evidence_of
    from autoprune.models import open_adapter

    adapter = open_adapter(
        shared / "models" / "bccd-yolov5nu-320.pt", data=shared / "data" / "bccd" / "bccd.yaml", image_size=96
    )
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    scores = make_criterion(name, lambda: evidence_of(adapter))(adapter.module, graph)
    assert all(np.isfinite(values).all() for values in scores)
    assert all(np.ptp(scores[index]) > 0 for unit in graph.units for index in unit.groups)
