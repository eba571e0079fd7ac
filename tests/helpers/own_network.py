"""A network of one's own with its data: the example in docs/guides/modules.md, kept small."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu

from autoprune.models._base import Predict
from autoprune.models.module import ModuleAdapter, Sgd

SHAPE = (2, 24, 32)
"""Channels, height and width: no square, and no RGB."""

KINDS = ("square", "cross", "bars")


class Shapes(torch.utils.data.Dataset[Any]):
    """Pictures of a bright shape on noise in one channel, and where it is not in the other."""

    def __init__(self, count: int, first: int) -> None:
        self._numbers = range(first, first + count)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        number = self._numbers[index]
        random = torch.Generator().manual_seed(number)
        kind = number % len(KINDS)
        shape = torch.zeros(SHAPE[1:])
        top, left = (int(torch.randint(0, most, (), generator=random)) for most in (12, 20))
        patch = shape[top : top + 12, left : left + 12]
        if KINDS[kind] == "square":
            patch[:] = 1
        elif KINDS[kind] == "cross":
            patch[5:7], patch[:, 5:7] = 1, 1
        else:
            patch[::3] = 1
        noise = 0.3 * torch.rand(SHAPE, generator=random)
        return noise + 0.7 * torch.stack([shape, 1 - shape]), kind


class Block(nn.Module):
    """A residual block: its channels go together with those that it is added to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return relu(x + self.second(relu(self.first(x))))


class Net(nn.Module):
    """A stem, residual blocks, a concatenation of two branches, and a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(SHAPE[0], width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block = Block(width)
        self.left = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(2 * width, len(KINDS))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.block(self.stem(image))
        joined = torch.cat([self.left(x), self.right(x)], 1)
        logits: torch.Tensor = self.head(joined.mean((2, 3)))
        return logits


def loss(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    return cross_entropy(module(images), kinds)


def top1(predict: Predict, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    right = [predict(images).argmax(1) == kinds for images, kinds in batches]
    return float(torch.cat(right).float().mean())


def adapter(module: nn.Module, **changes: Any) -> ModuleAdapter:
    options = {
        "example": torch.zeros(1, *SHAPE),
        "loss": loss,
        "train": Shapes(24, 0),
        "val": Shapes(12, 1000),
        "metric": top1,
        "sgd": Sgd(lr=0.1),
    }
    return ModuleAdapter(module, **{**options, **changes})


def trained(module: nn.Module, *, steps: int = 20) -> nn.Module:
    """Train a little, so that a loss means something; the same every time."""
    images, kinds = torch.utils.data.default_collate(list(Shapes(24, 0)))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module, images, kinds).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module.eval()


def make() -> ModuleAdapter:
    """Return the trained network with its data: what ``--model tests/helpers/own_network.py:make`` runs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return adapter(trained(Net()))
