"""Networks of torchvision on drawn shapes: ``--model tests/helpers/torchvision_networks.py:resnet18``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy

from autoprune.models._base import Predict
from autoprune.models.module import ModuleAdapter, Sgd

SIZE, CLASSES = 64, 4


class Drawn(torch.utils.data.Dataset[Any]):
    """A bright square, cross, frame or comb on noise: its kind, or where it is."""

    def __init__(self, first: int, count: int, *, masks: bool = False) -> None:
        self._numbers, self._masks = range(first, first + count), masks

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        number = self._numbers[index]
        kind, random = number % CLASSES, torch.Generator().manual_seed(number)
        top, left = (int(torch.randint(0, SIZE - 24, (), generator=random)) for _ in range(2))
        shape = torch.zeros(24, 24)
        if kind == 0:
            shape[:] = 1
        elif kind == 1:
            shape[9:15], shape[:, 9:15] = 1, 1
        elif kind == 2:
            shape[:], shape[5:-5, 5:-5] = 1, 0
        else:
            shape[::6], shape[1::6], shape[:, :4] = 1, 1, 1
        mask = torch.zeros(SIZE, SIZE)
        mask[top : top + 24, left : left + 24] = shape
        colour = 0.5 + 0.5 * torch.rand(3, 1, 1, generator=random)
        image = 0.4 * torch.rand(3, SIZE, SIZE, generator=random) * (1 - mask) + colour * mask
        return image, mask.long() if self._masks else kind


def classify_loss(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    return cross_entropy(module(images), kinds)


def segment_loss(module: nn.Module, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return cross_entropy(module(images)["out"], masks)


def top1(predict: Predict, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    right = [predict(images).argmax(1) == kinds for images, kinds in batches]
    return float(torch.cat(right).float().mean())


def overlap(predict: Predict, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Intersection over union of what is drawn."""
    both = either = 0
    for images, masks in batches:
        found = predict(images).argmax(1) == 1
        both += int((found & (masks == 1)).sum())
        either += int((found | (masks == 1)).sum())
    return both / max(either, 1)


def _trained(module: nn.Module, train: Drawn, loss: Any, *, epochs: int) -> nn.Module:
    """Train from nothing, the same every time."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    images, targets = torch.utils.data.default_collate(list(train))
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(16):
            optimizer.zero_grad()
            loss(module, images[chosen], targets[chosen]).backward()
            optimizer.step()
    return module.eval()


def _made(name: str, build: Any, loss: Any, metric: Any, *, masks: bool, epochs: int) -> ModuleAdapter:
    train, val = Drawn(0, 192, masks=masks), Drawn(10_000, 96, masks=masks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _trained(build(), train, loss, epochs=epochs)
    return ModuleAdapter(
        module,
        example=torch.zeros(1, 3, SIZE, SIZE),
        loss=loss,
        train=train,
        val=val,
        metric=metric,
        name=name,
        sgd=Sgd(lr=0.05),
    )


MODELS = torchvision.models
resnet18 = partial(
    _made, "resnet18", partial(MODELS.resnet18, num_classes=CLASSES), classify_loss, top1, masks=False, epochs=6
)
mobilenet = partial(
    _made,
    "mobilenet_v3_small",
    partial(MODELS.mobilenet_v3_small, num_classes=CLASSES),
    classify_loss,
    top1,
    masks=False,
    epochs=12,
)
segmenter = partial(
    _made,
    "lraspp",
    partial(MODELS.segmentation.lraspp_mobilenet_v3_large, weights_backbone=None, num_classes=2),
    segment_loss,
    overlap,
    masks=True,
    epochs=6,
)
