"""Statistics of what layers read: their moments, sampled positions, constants that are shifted, recalibration."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.errors import TrainingError
from autoprune.statistics.layers import (
    activation_hooks,
    evaluating,
    mixing_layers,
    no_dropout,
    norms_behind,
    outputs_first,
    recalibrate,
    shift_output,
    summed_over_kernel,
    train_mode,
)
from autoprune.statistics.moments import RIDGE, _Sums, collect_moments, regression
from autoprune.statistics.sampling import SampledPositions
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.validation import analyse

IMAGES = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def seeded(build: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


# -- recalibration -----------------------------------------------------------------------------------------


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.03), nn.ReLU(), nn.BatchNorm2d(4)).eval()


def test_recalibrated_statistics_are_those_of_the_inputs() -> None:
    network = seeded(normed)
    weights = {name: value.clone() for name, value in network.named_parameters()}
    with torch.no_grad():
        read = [network[0](batch) for batch in IMAGES.split(4)]
        network.train()
        behind = [network[:3](batch) for batch in IMAGES.split(4)]
    recalibrate(network, IMAGES.split(4))
    for norm, batches in ((network[1], read), (network[3], behind)):
        mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
        variance = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)
    assert [network[1].momentum, network[3].momentum] == [0.03, 0.1]
    assert not any(child.training for child in network.modules())
    assert all(torch.equal(value, weights[name]) for name, value in network.named_parameters())


def test_recalibrating_again_or_in_another_order_changes_nothing() -> None:
    once, twice = seeded(normed), seeded(normed)
    recalibrate(once, IMAGES.split(4))
    recalibrate(twice, IMAGES.flip(0).split(4))
    recalibrate(twice, IMAGES.split(4)[::-1])
    for name, value in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], value, rtol=1e-5, atol=1e-6)


class Frozen(nn.Sequential):
    """Keeps its first norm in eval mode, as detection backbones do."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self[1].eval()
        return self


def test_norms_that_a_network_freezes_keep_their_statistics() -> None:
    network = seeded(lambda: Frozen(*normed()))
    network[1].running_mean.fill_(0.5)
    recalibrate(network, IMAGES.split(4))
    assert torch.equal(network[1].running_mean, torch.full((4,), 0.5))
    assert (network[1].momentum, network[3].momentum) == (0.03, 0.1)
    assert network[3].num_batches_tracked > 0


def test_every_image_counts_the_same_in_batches_of_any_size() -> None:
    """Also in a norm that runs several times, and that gets its input by name."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.norm(images) + self.norm(input=images + 1.0)

    network = Twice()
    recalibrate(network, [IMAGES[:5], IMAGES[5:6] + 9.0])
    seen = torch.cat([IMAGES[:5], IMAGES[5:6] + 9.0])
    torch.testing.assert_close(network.norm.running_mean, seen.mean((0, 2, 3)) + 0.5, rtol=1e-4, atol=1e-5)


def test_a_norm_behind_pooling_needs_two_images() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    with pytest.raises(TrainingError, match="Batch norm needs two values per channel"):
        recalibrate(network, [IMAGES[:1]])


# -- sampled positions -----------------------------------------------------------------------------------------

GEOMETRY = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.tuples(st.integers(1, 2), st.integers(1, 3)),
        "padding": st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid")),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "padding_mode": st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    }
)


@settings(max_examples=40)
@given(GEOMETRY, st.integers(0, 99))
def test_what_a_layer_reads_at_a_position_gives_what_it_computes_there(geometry: dict[str, Any], seed: int) -> None:
    layer = seeded(lambda: nn.Conv2d(3, 5, **geometry))
    image = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(seed))
    places = SampledPositions(seed=seed, points=7)
    with torch.no_grad():
        output = layer(image)
        patches, values = places.patches(layer, image), places.values(layer, image, output)
        again = patches.flatten(1) @ layer.weight.flatten(1).T + layer.bias
    assert patches.shape == (2 * 7, 3, layer.weight[0, 0].numel())
    torch.testing.assert_close(again, values, rtol=1e-4, atol=1e-5)


def test_a_linear_layer_is_read_everywhere() -> None:
    layer, rows = seeded(lambda: nn.Linear(4, 2)), torch.rand(3, 5, 4)
    places = SampledPositions(seed=0)
    with torch.no_grad():
        patches, values = places.patches(layer, rows), places.values(layer, rows, layer(rows))
        torch.testing.assert_close(layer(patches[..., 0]), values)
    assert values.shape == (15, 2)


def test_positions_differ_by_seed_and_images_keep_their_order() -> None:
    layer = nn.Conv2d(1, 1, 1)
    image = torch.arange(100.0).view(1, 1, 10, 10)
    both = torch.cat([image, image + 1000])
    first, second = (SampledPositions(seed=seed, points=50).patches(layer, both) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first[50:], first[:50] + 1000)


def test_hooks_see_every_run_and_are_taken_off() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)))
    seen: list[tuple[str, torch.Size]] = []
    with activation_hooks(network, ["1"], lambda name, layer, read, given: seen.append((name, read.shape))):
        network(IMAGES)
    network(IMAGES)
    assert seen == [("1", (12, 2, 6, 6))]


# -- layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(3, 4, 3),
        lambda: nn.Conv2d(3, 4, (1, 3), stride=2),
        lambda: nn.ConvTranspose2d(3, 4, 2, stride=2),
        lambda: nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
        lambda: nn.Linear(3, 4),
    ],
)
def test_what_a_layer_makes_of_constants(make: Any) -> None:
    """Away from the borders, and in the mean over the pattern that a transposed convolution makes."""
    layer = seeded(make)
    constants = torch.tensor([1.0, -2.0, 0.5])
    image = constants if isinstance(layer, nn.Linear) else constants.view(1, 3, 1, 1).expand(1, 3, 12, 12)
    with torch.no_grad():
        given = layer(image)
        found = given if given.ndim == 1 else given[0, :, 4:-4, 4:-4].mean((1, 2)) if given.shape[-1] > 9 else None
        found = given[0, :, 1:-1, 1:-1].mean((1, 2)) if found is None else found
        torch.testing.assert_close(
            summed_over_kernel(outputs_first(layer), layer) @ constants, found - layer.bias, rtol=1e-4, atol=1e-5
        )
    assert outputs_first(layer).shape[:2] == (4, 3)
    assert outputs_first(layer).data_ptr() == layer.weight.data_ptr(), "a view"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), None])
def test_outputs_are_shifted_if_something_takes_the_shift(bias: bool, norm: nn.BatchNorm2d | None) -> None:
    norm = copy.deepcopy(norm)
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1, bias=bias), norm or nn.Identity())).eval()
    with torch.no_grad():
        before = network(IMAGES)
        shift = torch.tensor([1.0, -1.0, 0.0, 2.0], dtype=torch.float64)
        shift_output(network[0], [norm] if norm else [], shift)
        scale = 1 / np.sqrt(1 + 1e-5) if norm else float(bias)
        torch.testing.assert_close(network(IMAGES), before + scale * shift.float().view(1, 4, 1, 1))
    assert all(tensor.dtype != torch.float64 for tensor in network.state_dict().values())
    assert (network[0].bias is None) == (not bias), "a pruned network has the parameters of the dense one"


class Branches(nn.Module):
    """Convolutions with their batch norm right behind, behind an activation, of another layer, and with none."""

    def __init__(self) -> None:
        super().__init__()
        self.direct, self.direct_norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.activated, self.activated_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.summed, self.summed_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.direct_norm(self.direct(x))
        x = self.activated_norm(torch.relu(self.activated(x)))
        x = self.summed_norm(self.summed(x) + x)
        return self.last(x)


def test_a_batch_norm_is_a_layers_own_if_it_reads_just_what_the_layer_gives() -> None:
    network = seeded(Branches).eval()
    with norms_behind(network, ["direct", "activated", "summed", "last"]) as found, torch.no_grad():
        network(IMAGES)
    assert found == {"direct": ["direct_norm"]}
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in network.modules())


class ReadElsewhere(nn.Module):
    """Layers whose outputs are changed in place before their norm, read by something else too, or handed out."""

    def __init__(self) -> None:
        super().__init__()
        names = ("added", "activated", "written", "twice", "given", "asked")
        self.layers = nn.ModuleDict({name: nn.Conv2d(4, 4, 1) for name in names})
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(4) for name in names})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([x, x[:, :1]], 1)
        out = self.layers["added"](x)
        out += x
        x = self.norms["added"](out)
        x = self.norms["activated"](torch.relu_(self.layers["activated"](x)))
        out = self.layers["written"](x)
        out[:, 0] = 0
        x = self.norms["written"](out)
        out = self.layers["twice"](x)
        x = self.norms["twice"](out) + out
        given = self.layers["given"](x)
        x = self.norms["given"](given)
        out = self.layers["asked"](x)
        assert out.shape[1] == out.size(1)
        return self.norms["asked"](out), given


def test_a_batch_norm_is_no_layers_own_if_something_else_reads_or_changes_what_the_layer_gives() -> None:
    network = seeded(ReadElsewhere).eval()
    names = [f"layers.{name}" for name in network.layers]
    with norms_behind(network, names) as found, torch.no_grad():
        network(IMAGES)
    assert found == {"layers.asked": ["norms.asked"]}


class Several(nn.Module):
    """Layers that run on two levels: with a norm for each, with one norm, with a norm on one level only; and a norm
    that reads two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.norms = nn.Conv2d(3, 4, 1), nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.one, self.one_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.some, self.some_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.left, self.right, self.both = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = [norm(self.each(level)) for norm, level in zip(self.norms, (x, 2 * x), strict=True)]
        levels = [self.one_norm(self.one(level)) for level in levels]
        first, second = self.some_norm(self.some(levels[0])), self.some(levels[1])
        return self.both(self.left(first)) + self.both(self.right(second))


def test_a_layer_has_a_batch_norm_for_each_of_its_runs_or_none() -> None:
    network = seeded(Several).eval()
    layers = ["each", "one", "some", "left", "right"]
    with norms_behind(network, layers) as found, torch.no_grad():
        network(IMAGES)
        network(IMAGES)
    assert found == {"each": ["norms.0", "norms.1"], "one": ["one_norm"]}


def test_layers_that_share_a_weight_or_a_bias_are_left_out() -> None:
    network = seeded(lambda: nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(6))))
    network[1].weight, network[3].bias, network[4] = network[0].weight, network[2].bias, network[5]
    graph = analyse(network.eval(), torch.zeros(2, 3, 6, 6))
    assert set(mixing_layers(network, graph)) == {"4"}, "a module with two names is one"


@pytest.mark.parametrize("mode", [True, False])
def test_evaluating_puts_the_mode_back(mode: bool) -> None:
    network = seeded(normed).train(mode)
    with evaluating(network):
        assert not network.training
        assert not network(IMAGES).requires_grad
    assert network.training is mode
    with pytest.raises(RuntimeError), evaluating(network):
        network(IMAGES[:, :1])
    assert network.training is mode
    assert torch.is_grad_enabled()


# -- moments -------------------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """Six channels, read by a convolution and in their mean by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.tanh(self.read(torch.tanh(self.make(x)))).mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def wide() -> tuple[Wide, ChannelGraph]:
    network = seeded(Wide).eval()
    return network, analyse(network, torch.zeros(2, 3, 6, 6))


def test_moments_are_those_of_what_layers_read(wide: tuple[Wide, ChannelGraph]) -> None:
    network, graph = wide
    with torch.no_grad():
        first = torch.tanh(network.make(IMAGES))
        second = torch.tanh(network.read(first)).mean((2, 3))
    rows = {"read": first.transpose(0, 1).flatten(1).double().numpy(), "head": second.T.double().numpy()}
    moments = collect_moments(network, graph, [IMAGES])
    assert set(moments.mean) == set(rows) == set(moments.covariance)
    for name, values in rows.items():
        np.testing.assert_allclose(moments.mean[name], values.mean(1), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(moments.covariance[name], np.cov(values, bias=True), rtol=1e-3, atol=1e-7)


def test_moments_do_not_depend_on_how_images_fall_into_batches(wide: tuple[Wide, ChannelGraph]) -> None:
    network, graph = wide
    whole, split = (collect_moments(network, graph, IMAGES.split(batch)) for batch in (12, 5))
    for name in whole.mean:
        torch.testing.assert_close(whole.mean[name], split.mean[name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(whole.covariance[name], split.covariance[name], rtol=1e-3, atol=1e-7)


def test_fewer_bytes_than_all_covariances_twice_are_held() -> None:
    """The sums become the covariances, and are not kept next to them."""
    network = seeded(lambda: nn.Sequential(*(nn.Conv2d(3 if not place else 64, 64, 1) for place in range(9)))).eval()
    sums = _Sums()
    with activation_hooks(network, [str(place) for place in range(1, 9)], sums.add), torch.no_grad():
        network(IMAGES)
    before = {matrix.data_ptr() for matrix in sums._product.values()}
    assert {matrix.data_ptr() for matrix in sums.moments()[1].values()} == before


def test_a_large_mean_costs_the_covariance_no_digits(wide: tuple[Wide, ChannelGraph]) -> None:
    """In float32, squares of numbers near 1000 are known to 0.06 only."""
    network, graph = copy.deepcopy(wide[0]), wide[1]
    near = collect_moments(network, graph, [IMAGES]).covariance["read"]
    network.read.register_forward_pre_hook(lambda layer, read: (read[0] + 1000,))
    found = collect_moments(network, graph, [IMAGES])
    torch.testing.assert_close(found.covariance["read"], near, rtol=0.02, atol=1e-5)
    assert (found.mean["read"] > 990).all()


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.integers(1, 4))
def test_a_regression_leaves_over_what_kept_channels_do_not_tell(seed: int, kept: int) -> None:
    """What is left is uncorrelated with the kept channels but for the ridge, and its mean is the shift."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(200, 6, generator=generator, dtype=torch.float64) @ torch.randn(
        6, 6, generator=generator, dtype=torch.float64
    )
    rows += torch.arange(6)
    mean, covariance = rows.mean(0), torch.cov(rows.T, correction=0)
    order = torch.randperm(6, generator=generator)
    stays, goes = order[:kept], order[kept:]
    coefficients, shift = regression(mean, covariance, stays, goes)
    left = rows[:, goes] - rows[:, stays] @ coefficients.T
    torch.testing.assert_close(left.mean(0), shift)
    centred = rows[:, stays] - rows[:, stays].mean(0)
    ridge = RIDGE * float(covariance[stays, stays].mean())
    torch.testing.assert_close((left - shift).T @ centred / len(rows), ridge * coefficients, rtol=1e-6, atol=1e-9)


class Functional(nn.Module):
    """Calls a function of a tensor, a probability and the mode."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, 0.5, self.training)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True),
        nn.RReLU,
        lambda: Functional(F.dropout),
        lambda: Functional(F.dropout1d),
        lambda: Functional(F.alpha_dropout),
        lambda: Functional(lambda x, p, training: F.scaled_dot_product_attention(x, x, x, None, p * training)),
        lambda: Functional(lambda x, p, training: F.scaled_dot_product_attention(x, x, x, dropout_p=p * training)),
    ],
)
def test_what_functions_do_at_random_is_switched_off(make: Callable[[], nn.Module]) -> None:
    network, tokens = train_mode(make()), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    dropping = make().train()
    assert not torch.equal(dropping(tokens), dropping(tokens))
    with no_dropout():
        given = network(tokens)
        assert torch.equal(network(tokens), given)
    torch.testing.assert_close(network.eval()(tokens), given)


def test_a_network_gets_every_mode_back() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval(), nn.Dropout()).train()
    network[1].eval()
    with evaluating(network):
        assert not any(child.training for child in network.modules())
    assert [child.training for child in network] == [True, False, True]
    assert network.training
