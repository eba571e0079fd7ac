"""Operations of networks of one's own pass channels on, or pin them: what is pruned equals what is zeroed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FrozenBatchNorm2d

from autoprune.costs import FlopsCost, undescribed_flops
from autoprune.criteria._base import CalibrationData
from autoprune.criteria.apoz import ApozImportance
from autoprune.structure.graph import MIXING
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers.networks import check_exact, random_keep, shaken

WIDTH = 8
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()

Operation = Callable[[torch.Tensor], torch.Tensor]


class Around(nn.Module):
    """Computes an operation on 8 channels, and goes on with 8."""

    def __init__(self, operation: nn.Module | Operation) -> None:
        super().__init__()
        self.stem, self.norm, self.operation = nn.Conv2d(3, WIDTH, 1), nn.BatchNorm2d(WIDTH), operation
        self.after, self.head = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.after(self.operation(self.norm(self.stem(images)).sigmoid())).relu())


class Squeeze(nn.Module):
    """Squeeze and excite by linear layers, in three spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling, self.down, self.up = spelling, nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, width, _, _ = x.shape
        pooled = F.adaptive_avg_pool2d(x, 1)
        pooled = {"view": lambda: pooled.view(batch, width), "squeeze": lambda: pooled.squeeze(-1).squeeze(-1)}.get(
            self.spelling, lambda: pooled.flatten(1)
        )()
        scale = self.up(self.down(pooled).relu()).sigmoid()
        if self.spelling == "view":
            return x * scale.view(batch, width, 1, 1).expand_as(x)
        return x * (scale.unsqueeze(-1).unsqueeze(-1) if self.spelling == "squeeze" else scale[:, :, None, None])


class Power(nn.Module):
    """Generalised mean pooling (GeM), with an exponent that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor([3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x.clamp(min=1e-6).pow(self.exponent), 2).pow(1 / self.exponent)


class Halves(nn.Module):
    """Cut into two by a number of channels that the network computes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(WIDTH, 2 * WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.wide(x)
        one, two = wide.split(wide.shape[1] // 2, 1)
        return torch.max(one, two) * torch.min(one, x)


PASSED_ON: dict[str, nn.Module | Operation] = {
    **{f"squeeze and excite: {spelling}": Squeeze(spelling) for spelling in ("view", "squeeze", "flatten")},
    "GeM": Power(),
    "halves": Halves(),
    "instance norm": nn.InstanceNorm2d(WIDTH, affine=True),
    "instance norm without weights": nn.InstanceNorm2d(WIDTH),
    "frozen batch norm": FrozenBatchNorm2d(WIDTH),
    "crops": lambda x: x[..., ::2, 1:] + x[..., 1::2, :-1],
    "squares": lambda x: (x**2 + 1).reciprocal() + x.square().log1p(),
    "nearest-exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "positions": lambda x: x.flatten(2).unflatten(2, (4, 16)),
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_channels_are_passed_on(name: str) -> None:
    module = shaken(Around(PASSED_ON[name]))
    graph = analyse(module, IMAGES)
    assert {group.pinned for group in graph.groups} <= {None, "network input", "network output"}
    assert len(graph.units) >= 2
    space = Space(graph, round_to=1, min_keep=1e-6)
    for seed in range(2):
        check_exact(module, graph, random_keep(space, seed), IMAGES)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x[:, :4].repeat(1, 2, 1, 1),
        lambda x: x.split(4, 1)[0].repeat(1, 2, 1, 1),
        lambda x: x * x.mean((2, 3)).view(-1, WIDTH, 1, 1),
        lambda x: x.max(1, keepdim=True).values + x,
        lambda x: x.view(len(x), 4, 2, 8, 8).flatten(1, 2),
    ],
    ids=["slice", "split", "view", "max", "groups"],
)
def test_numbers_of_channels_that_the_code_fixes_pin(operation: Operation) -> None:
    graph = analyse(shaken(Around(operation)), IMAGES)
    assert "stem" not in {unit.name for unit in graph.units}
    assert {unit.name for unit in graph.units} == {"after"}


class Quarters(nn.Module):
    """Two convolutions on four quarters of each image, one on the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.whole = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        quarters = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4)
        local = self.two(self.one(quarters).relu()).mean((2, 3)).view(len(images), 4, 4).mean(1)
        return local + self.whole(images).mean((2, 3))


def test_layers_that_compute_several_images_for_one_cost_as_often() -> None:
    module = shaken(Quarters())
    graph = analyse(module, IMAGES)
    space = Space(graph, round_to=1, min_keep=1e-6)
    cost = FlopsCost(space, fixed=undescribed_flops(module, graph, IMAGES))
    mixing = [layer for layer in graph.layers if layer.kind in MIXING]
    assert {layer.name: layer.images for layer in mixing} == {"one": 4.0, "two": 4.0, "whole": 1.0}
    for counts in (space.dense, space.lower):
        keep = space.kept_channels(counts, [np.arange(group.size) for group in graph.groups])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            Slicer(module, graph).materialise(keep).eval()(IMAGES[:1])
        assert float(cost(counts)) == counter.get_total_flops()


class Called(nn.Module):
    """Batch norm that is called as a function, by a module of another output."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("variance", torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normed = F.batch_norm(x, self.mean, self.variance, self.scale, None, self.training)
        return normed.relu(), normed


def test_zeros_are_counted_behind_convolutions_if_norms_are_functions() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.called, self.head = nn.Conv2d(3, WIDTH, 1), Called(), nn.Conv2d(WIDTH, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            one, two = self.called(self.stem(images))
            return self.head(one + two)

    network = Network().double().eval()
    data = CalibrationData([IMAGES], lambda batch: batch, lambda module, batch: module(batch).sum())
    scores = ApozImportance(data).members(network, analyse(network, IMAGES))
    assert [len(one.channels) for one in scores] == [WIDTH, 2]
    assert all(((one.scores > 0) & (one.scores <= 1)).all() for one in scores)
