"""Compensation in closed form: what the kept channels can say of the removed ones, they say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.arrays import Mask
from autoprune.criteria._base import CalibrationData
from autoprune.criteria.registry import make_criterion
from autoprune.errors import ModelError
from autoprune.evaluation.compensation import compensate, fold_constants
from autoprune.evaluation.reconstruction import reconstruct
from autoprune.statistics.moments import RIDGE, Moments, collect_moments
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Pruner, Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers import darknet_networks
from tests.helpers.networks import compared
from tests.unit.test_folding import chosen, randomised

IMAGES = torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(3))


class Reader(nn.Module):
    """Channels made by ``make`` and read by a convolution, a transposed one and, after a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 8, 1, bias=False)
        self.plain_bn = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.make(x)))
        x = torch.relu(self.plain_bn(self.plain(x)))
        return self.head(self.up(x).mean((2, 3)))


@pytest.fixture(scope="module")
def analysed() -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    module = randomised(Reader(), 0).float()
    return module, analyse(module, torch.zeros(2, 3, 12, 12))


def removing(graph: ChannelGraph, **removed: tuple[int, ...]) -> Mask:
    """Return the mask that removes channels of the groups that are named after their layers."""
    keep = np.ones(graph.channels, dtype=np.bool_)
    for group in graph.groups:
        for channel in removed.get(group.name, ()):
            keep[group.offset + channel] = False
    return keep


def outputs(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(IMAGES)


def errors(dense: nn.Module, graph: ChannelGraph, keep: Mask) -> tuple[float, float]:
    """Return the squared error of the pruned network without and with compensation."""
    found = []
    for repaired in (False, True):
        smaller = Slicer(dense, graph).materialise(keep)
        if repaired:
            compensate(smaller, dense, graph, keep, collect_moments(dense, graph, [IMAGES]))
        found.append(float((outputs(smaller) - outputs(dense)).square().mean()))
    return found[0], found[1]


def test_a_channel_that_repeats_another_costs_nothing(analysed: tuple[nn.Module, ChannelGraph]) -> None:
    dense, graph = copy.deepcopy(analysed[0]), analysed[1]
    with torch.no_grad():
        for tensor in (dense.make.weight, *dense.bn.state_dict().values()):  # type: ignore[union-attr]
            if tensor.ndim:
                tensor[5] = tensor[2]
        dense.bn.weight[[2, 5]] = 3.0  # type: ignore[union-attr,index,operator]
        dense.plain.weight[:, 5] *= 10.0  # type: ignore[union-attr,index,operator]
    before, after = errors(dense, graph, removing(graph, make=(5,)))
    assert after < 0.02 * before


def test_a_constant_channel_costs_nothing(analysed: tuple[nn.Module, ChannelGraph]) -> None:
    """Its scale is 0, so it always gives act(β): the shift alone makes up for it, as the folding of constants does."""
    dense, graph = copy.deepcopy(analysed[0]), analysed[1]
    with torch.no_grad():
        dense.bn.weight[4], dense.bn.bias[4] = 0.0, 1.5  # type: ignore[union-attr,index,operator]
    before, after = errors(dense, graph, removing(graph, make=(4,)))
    assert before > 1e-4
    assert after < 1e-9


@settings(max_examples=10)
@given(st.integers(0, 2**16))
def test_compensation_brings_a_network_nearer_to_the_dense_one(
    analysed: tuple[nn.Module, ChannelGraph], seed: int
) -> None:
    dense, graph = analysed
    before, after = errors(dense, graph, chosen(graph, seed))
    assert after < 1.05 * before


def test_the_solution_is_ridge_regression(analysed: tuple[nn.Module, ChannelGraph]) -> None:
    """The weights of a 1×1 layer against the same regression solved by NumPy from all positions."""
    dense, graph = analysed
    keep = removing(graph, make=(1, 6))
    with torch.no_grad():
        read = torch.relu(dense.bn(dense.make(IMAGES)))  # type: ignore[operator]
    rows = read.transpose(0, 1).flatten(1).double().numpy()
    covariance = np.cov(rows, bias=True)
    stays, goes = [0, 2, 3, 4, 5, 7], [1, 6]
    inner = covariance[np.ix_(stays, stays)]
    inner += RIDGE * np.diag(inner).mean() * np.eye(len(stays))
    coefficients = np.linalg.solve(inner, covariance[np.ix_(stays, goes)]).T
    weight = dense.plain.weight.detach().double().numpy()[:, :, 0, 0]  # type: ignore[union-attr,operator]
    smaller = Slicer(dense, graph).materialise(keep)
    compensate(smaller, dense, graph, keep, collect_moments(dense, graph, [IMAGES]))
    found = smaller.plain.weight.detach().numpy()[:, :, 0, 0]  # type: ignore[union-attr,operator]
    np.testing.assert_allclose(found, weight[:, stays] + weight[:, goes] @ coefficients, rtol=1e-4, atol=1e-5)


def test_nothing_removed_nothing_changed(analysed: tuple[nn.Module, ChannelGraph]) -> None:
    dense, graph = analysed
    state = copy.deepcopy(dense.state_dict())
    keep = np.ones(graph.channels, dtype=np.bool_)
    same = Slicer(dense, graph).materialise(keep)
    compensate(same, dense, graph, keep, collect_moments(dense, graph, [IMAGES]))
    for name, tensor in same.state_dict().items():
        assert torch.equal(tensor, state[name])
        assert torch.equal(dense.state_dict()[name], state[name])


def test_weights_that_two_layers_share_stay() -> None:
    """What makes up for a channel of one tensor is wrong for another one."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.other.weight = self.one.weight
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.make(x))
            return self.head(self.one(x) + self.other(torch.sin(x)))

    dense = Shared().eval()
    graph = analyse(dense, torch.zeros(2, 3, 12, 12))
    assert set(collect_moments(dense, graph, [IMAGES]).mean) == {"head"}


def test_a_layer_that_runs_twice_is_solved_for_both_runs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.make(x))
            return self.head(x) + self.head(2 * x)

    dense = Twice().eval()
    graph = analyse(dense, torch.zeros(2, 3, 12, 12))
    with torch.no_grad():
        expected = 1.5 * torch.relu(dense.make(IMAGES)).mean((0, 2, 3))  # type: ignore[operator]
    found = collect_moments(dense, graph, [IMAGES]).mean["head"]
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-6)


class Levels(nn.Module):
    """One convolution with a batch norm for each of two levels, or with a bias for the levels that have none."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.make, self.bn, self.shared = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1, bias=norms < 2)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) if place < norms else nn.Identity() for place in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.make(x)))
        return sum(norm(self.shared(level)) for norm, level in zip(self.norms, (x, self.pool(x)), strict=True))


@pytest.mark.parametrize("norms", [0, 1, 2])
@pytest.mark.parametrize("way", ["compensated", "folded"])
def test_every_run_of_a_layer_gets_its_constants(norms: int, way: str) -> None:
    """Several channels are constant, γ = 0, so that nothing is lost with them."""
    torch.manual_seed(0)
    dense: Any = randomised(Levels(norms), 0)
    constant = (1, 3, 4, 6)
    dense.bn.weight.data[list(constant)], dense.bn.bias.data[list(constant)] = 0.0, 1.5
    graph = analyse(dense.float(), torch.zeros(2, 3, 12, 12))
    keep = removing(graph, make=constant)
    smaller = Slicer(dense, graph).materialise(keep)
    before = float((outputs(smaller) - outputs(dense)).abs().max())
    if way == "folded":
        fold_constants(smaller, dense, graph, keep, IMAGES[:1])
    else:
        compensate(smaller, dense, graph, keep, collect_moments(dense, graph, [IMAGES]))
    assert float((outputs(smaller) - outputs(dense)).abs().max()) < 1e-4 < 0.1 < before


class Auxiliary(nn.Module):
    """A network with a second head while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.head, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.make(x))
        return (self.head(x), self.second(x)) if self.training else self.head(x)


def test_a_layer_that_runs_in_training_only_is_left_out_with_a_word() -> None:
    dense = Auxiliary().eval()
    told: list[str] = []
    moments = collect_moments(dense, analyse(dense, torch.zeros(2, 3, 12, 12)), [IMAGES], notify=told.append)
    assert moments.mean.keys() == {"head"}
    assert told == ["Compensation leaves out 1 of 2 layers (second), which run only while the network trains."]


def test_fewer_positions_than_channels_have_an_answer(analysed: tuple[nn.Module, ChannelGraph]) -> None:
    dense, graph = analysed
    keep = removing(graph, make=(0,))
    smaller = Slicer(dense, graph).materialise(keep)
    told: list[str] = []
    moments = collect_moments(dense, graph, [torch.zeros(1, 3, 12, 12)], notify=told.append)
    compensate(smaller, dense, graph, keep, moments)
    assert told == [
        "1 of 3 layers (head) are read at fewer positions than they have channels, so that the ridge decides how they "
        "are compensated; with more images these decide."
    ]
    collect_moments(dense, graph, [IMAGES[:6]], notify=told.append)  # as many as channels
    assert len(told) == 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in smaller.state_dict().values())


def test_channels_that_are_always_zero_have_an_answer(analysed: tuple[nn.Module, ChannelGraph]) -> None:
    dense, graph = copy.deepcopy(analysed[0]), analysed[1]
    with torch.no_grad():
        dense.bn.weight[:], dense.bn.bias[:] = 0.0, -1.0  # type: ignore[union-attr,index,operator]
    before, after = errors(dense, graph, removing(graph, make=(0, 3)))
    assert before == after == 0


def test_covariances_that_do_not_fit_are_left_out_widest_first(analysed: tuple[nn.Module, ChannelGraph]) -> None:
    dense, graph = analysed
    told: list[str] = []
    moments = collect_moments(dense, graph, [IMAGES], limit=8 * 6 * 6, notify=told.append)
    assert set(moments.mean) == set(moments.covariance) == {"head"}
    assert told == [
        "Compensation leaves out 2 of 3 layers (plain, up): all channel covariances would take 0.0 GB, more than the "
        "limit of 0.0 GB."
    ]


def test_numbers_that_are_not_finite_name_their_layer(analysed: tuple[nn.Module, ChannelGraph]) -> None:
    dense, graph = analysed
    with pytest.raises(ModelError, match=r"^plain reads numbers that are not finite.*`compensate=False`"):
        collect_moments(dense, graph, [IMAGES.where(IMAGES < 0.99, torch.nan)])
    with pytest.raises(ModelError, match=r"^plain reads numbers that are not finite.*another `criterion`$"):
        collect_moments(dense, graph, [IMAGES.where(IMAGES < 0.99, torch.nan)], criterion="covariance")


# -- architectures ---------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """As in RT-DETR: positions become tokens, which attend to each other and pass a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.bn = nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16)
        self.proj, self.attention = nn.Conv2d(16, 8, 1), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.proj(torch.relu(self.bn(self.make(x)))).flatten(2).transpose(1, 2)
        tokens = self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return self.head(tokens + self.narrow(nn.functional.gelu(self.wide(tokens))))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "encoder": Encoder,
    "darknet": darknet_networks.build,
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 4, 3)
    ),
    "flattened": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(72, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compensation_brings_every_architecture_nearer(name: str) -> None:
    """On images that it was not computed from, with some channels of every unit removed."""
    torch.manual_seed(0)
    dense = randomised(ARCHITECTURES[name](), 0).float()
    size = 64 if name == "darknet" else 12
    seen, fresh = torch.rand(2, 16, 3, size, size, generator=torch.Generator().manual_seed(1))
    graph = analyse(dense, seen[:2])
    moments = collect_moments(dense, graph, [seen], notify=lambda _: None)

    def given(module: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([tensor.flatten(1) for tensor in compared(module.eval()(fresh))], dim=1)

    shares = []
    for seed in range(4):
        keep = chosen(graph, seed)
        bare, small = (Slicer(dense, graph).materialise(keep) for _ in range(2))
        compensate(small, dense, graph, keep, moments)
        # The median: a box is an exponential of what Darknet's last layer gives.
        gaps = [float((given(one) - given(dense)).abs().median()) for one in (bare, small)]
        shares.append(gaps[1] / gaps[0])
    assert max(shares) < 0.9, shares
    assert np.mean(shares) < 0.6, shares


# -- properties ------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Channels that are linear in the image, and are read by a layer of each kind."""

    def __init__(self, read: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.make, self.read, self.norm = nn.Conv2d(3, 6, 1), read, norm or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.make(x)
        return self.norm(self.read(x.mean((2, 3)) if isinstance(self.read, nn.Linear) else x))


READERS = {
    "convolution": lambda: Linear(nn.Conv2d(6, 4, 3)),
    "no bias": lambda: Linear(nn.Conv2d(6, 4, 3, stride=2, bias=False)),
    "batch norm": lambda: Linear(nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)),
    "transposed": lambda: Linear(nn.ConvTranspose2d(6, 4, 2, stride=2)),
    "transposed, no bias": lambda: Linear(nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False)),
    "linear": lambda: Linear(nn.Linear(6, 4)),
    "linear, no bias": lambda: Linear(nn.Linear(6, 4, bias=False)),
}


@cache
def linear(name: str) -> tuple[nn.Module, ChannelGraph]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = randomised(READERS[name](), 0).float()
    return dense, analyse(dense, torch.zeros(2, 3, 12, 12))


@pytest.mark.parametrize("removed", [(0,), (1, 4), (0, 2, 5)])
@pytest.mark.parametrize("name", READERS)
def test_what_is_linear_in_the_kept_channels_is_recovered_but_for_the_ridge(
    monkeypatch: pytest.MonkeyPatch, name: str, removed: tuple[int, ...]
) -> None:
    """Six channels of three colours: whichever three stay, they tell the others.

    Their means are 0, for behind a transposed convolution a mean is a pattern and what makes up for it a constant.
    """
    dense, graph = copy.deepcopy(linear(name)[0]), linear(name)[1]
    with torch.no_grad():
        dense.make.bias -= dense.make(IMAGES).mean((0, 2, 3))  # type: ignore[union-attr,operator]
    keep = removing(graph, make=removed)
    before, after = errors(dense, graph, keep)
    assert after < 0.2 * before
    monkeypatch.setattr("autoprune.statistics.moments.RIDGE", 1e-5)
    assert errors(dense, graph, keep)[1] < 1e-3 * after


@pytest.mark.parametrize("name", [name for name in READERS if "no bias" not in name])
def test_means_are_kept_whatever_takes_them(name: str) -> None:
    """By a bias or the batch norm behind: of a channel alone, nothing but its mean is known."""
    dense, graph = linear(name)
    keep = removing(graph, make=(0, 1, 2, 3, 4))
    small = Slicer(dense, graph).materialise(keep)
    compensate(small, dense, graph, keep, collect_moments(dense, graph, [IMAGES]))
    axes = (0,) if "linear" in name else (0, 2, 3)
    torch.testing.assert_close(outputs(small).mean(axes), outputs(dense).mean(axes), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["no bias", "transposed, no bias", "linear, no bias"])
def test_where_nothing_takes_means_the_kept_channels_do(name: str) -> None:
    """No parameter is added, and what is left is less than with the mean left out of the squares."""
    dense, graph = linear(name)
    keep = removing(graph, make=(0, 1, 2, 3))
    small, centred = (Slicer(dense, graph).materialise(keep) for _ in range(2))
    moments = collect_moments(dense, graph, [IMAGES])
    compensate(small, dense, graph, keep, moments)
    assert small.state_dict().keys() == dense.state_dict().keys()
    assert not moments.mean["read"].any()
    with torch.no_grad():
        read = dense.make(IMAGES)  # type: ignore[operator]
        rows = (read.mean((2, 3)) if "linear" in name else read.transpose(0, 1).flatten(1).T).double()
    compensate(centred, dense, graph, keep, Moments({"read": rows.mean(0)}, {"read": rows.T.cov(correction=0)}, {}))
    gaps = [float((outputs(one) - outputs(dense)).square().mean()) for one in (small, centred)]
    assert gaps[0] < 0.9 * gaps[1]


def test_a_layer_of_several_groups_stays_and_what_reads_it_makes_up() -> None:
    """Its filters go with the channels that they read, and no group may read another's."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Tanh(), nn.Conv2d(12, 2, 1)).eval()
    graph = analyse(dense, torch.zeros(2, 3, 12, 12))
    moments = collect_moments(dense, graph, [IMAGES])
    assert set(moments.mean) == {"3"}
    keep = chosen(graph, 1)
    bare, small = (Slicer(dense, graph).materialise(keep) for _ in range(2))
    compensate(small, dense, graph, keep, moments)
    assert torch.equal(small.get_submodule("1").weight, bare.get_submodule("1").weight)  # type: ignore[arg-type]
    assert torch.equal(small.get_submodule("1").bias, bare.get_submodule("1").bias)  # type: ignore[arg-type]
    gap = [float((outputs(one) - outputs(dense)).square().mean()) for one in (bare, small)]
    assert gap[1] < 0.5 * gap[0]


class PreActivation(nn.Module):
    """A residual sum in place, which a norm reads and others do too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1, bias=False)
        self.outer, self.norm, self.head = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        out: torch.Tensor = self.outer(torch.relu(self.inner(x)) + 1.0)
        out += x
        return self.head(torch.relu(self.norm(out))) + out[:, :2]  # type: ignore[no-any-return]


def test_a_norm_behind_a_sum_in_place_takes_no_constants() -> None:
    torch.manual_seed(0)
    dense = randomised(PreActivation(), 0).float().eval()
    with torch.no_grad():
        dense.inner.weight[3:] = 0  # channels that give 1 wherever they are
    graph = analyse(dense, torch.zeros(2, 3, 12, 12))
    keep = removing(graph, inner=(3, 4, 5))
    smaller = Slicer(dense, graph).materialise(keep)
    before = float((outputs(smaller) - outputs(dense)).square().mean())
    compensate(smaller, dense, graph, keep, collect_moments(dense, graph, [IMAGES]))
    assert torch.equal(smaller.norm.running_mean, dense.norm.running_mean)  # type: ignore[union-attr,arg-type]
    assert float((outputs(smaller) - outputs(dense)).square().mean()) < 0.1 * before


class Activated(nn.Conv2d):
    """A convolution with its activation inside."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(input))


class Padded(nn.Conv2d):
    """A convolution that pads at the right and below only, as for TensorFlow's weights."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(input, (0, 2, 0, 2)))


class Named(nn.Conv2d):
    """A convolution that hands its input on by name."""

    def __call__(self, x: torch.Tensor) -> Any:
        return super().__call__(input=x)


OWN: dict[str, Callable[[], nn.Module]] = {
    "activation inside": lambda: Activated(8, 8, 1),
    "activation inside, other widths": lambda: Activated(8, 12, 1),
    "padding inside": lambda: Padded(8, 8, 3),
    "called by name": lambda: Named(8, 8, 1),
}


@pytest.mark.parametrize("criterion", ["covariance", "regression"])
@pytest.mark.parametrize("name", OWN)
def test_layers_of_own_classes_are_compensated_and_no_worse_than_cut(name: str, criterion: str) -> None:
    torch.manual_seed(0)
    layer = OWN[name]()
    dense = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), layer, nn.Conv2d(layer.out_channels, 2, 1)).eval()  # type: ignore[arg-type]
    graph = analyse(dense, torch.zeros(2, 3, 12, 12))
    evidence = CalibrationData([IMAGES], lambda batch: batch, lambda network, batch: network(batch).square().mean())
    order = make_criterion(criterion, lambda: evidence).order(dense, graph)
    space = Space(graph, round_to=1)
    pruner, half = Pruner(dense, space, order), tuple(unit.width // 2 for unit in space.units)
    keep = pruner.kept(half)
    cut, closed, solved = (pruner.materialise(half) for _ in range(3))
    for small in (closed, solved):
        compensate(small, dense, graph, keep, collect_moments(dense, graph, [IMAGES]))
    reconstruct(solved, dense, graph, keep, IMAGES)
    gaps = [float((outputs(one) - outputs(dense)).square().mean()) for one in (cut, closed, solved)]
    assert gaps[1] < 0.8 * gaps[0]
    assert gaps[2] < 1.1 * gaps[1]
