"""Networks that the structure tests run on, built without weights: stock Ultralytics YAMLs and torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import nn
from ultralytics.nn.tasks import DetectionModel, PoseModel, SegmentationModel

FREE_OUTPUTS = frozenset({"feats"})

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: partial(DetectionModel, f"{name}.yaml", verbose=False)
        for name in (
            "yolov3-tiny", "yolov3", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n",
            "yolo26n",
        )
    },
    "yolov8n-seg": partial(SegmentationModel, "yolov8n-seg.yaml", verbose=False),
    "yolov8n-pose": partial(PoseModel, "yolov8n-pose.yaml", verbose=False),
    "resnet18": partial(torchvision.models.resnet18, num_classes=10),
    "mobilenet_v2": partial(torchvision.models.mobilenet_v2, num_classes=10),
}  # fmt: skip


def build(name: str) -> nn.Module:
    """Return a network in float64 whose batch norms are far from neutral, so that mistakes show."""
    torch.manual_seed(0)
    module = NETWORKS[name]().double().eval()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.normal_(child.bias, std=0.3)
            nn.init.normal_(child.running_mean, std=0.3)
            nn.init.uniform_(child.running_var, 0.5, 1.5)
    return module


def example(size: int = 64) -> torch.Tensor:
    """Return two images in float64."""
    return torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def compared(output: object) -> list[torch.Tensor]:
    """Return the tensors of an eval-mode output that pruning must not change in shape.

    A detector returns (decoded, raw): the raw ones are compared where there are any, since decoding end-to-end heads
    ends in a top-k whose order may flip on equal scores.
    """
    if isinstance(output, tuple) and isinstance(output[-1], dict):
        output = output[-1]
    if isinstance(output, dict):
        return [tensor for key, value in output.items() if key not in FREE_OUTPUTS for tensor in compared(value)]
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for value in output for tensor in compared(value)]  # type: ignore[attr-defined]
