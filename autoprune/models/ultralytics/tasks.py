"""What differs between the tasks of Ultralytics' networks, as far as Ultralytics does not tell it itself.

What does come from Ultralytics: the loss (a network's own ``init_criterion``), the metric (a validator per task, in
`metrics`), the labels (the data set takes the task's name, in `data`) and the training (a trainer per task, in
`autoprune.training.trainer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.models._base import AccuracyNames
from autoprune.models.ultralytics import stock

Loss = Callable[[Any, nn.Module, Mapping[str, Any]], torch.Tensor]
"""Maps (criterion, network, batch) to the loss per image."""


@dataclass(frozen=True)
class Task:
    """A kind of network.

    Attributes:
        name: Ultralytics' name of the task.
        trainer: in `autoprune.training`, what keeps such a network pruned in stock training.
        figures: what the accuracy is called.
        keys: of Ultralytics' results, the main figure's and the lenient one's.
        loss: computes it.
        suppresses: whether overlapping predictions have to be suppressed after the network, unless its head is
            end-to-end.
        opener: Ultralytics' class that opens a checkpoint.
    """

    name: str
    trainer: str
    figures: AccuracyNames
    keys: tuple[str, str]
    loss: Loss
    suppresses: bool = True
    opener: str = "YOLO"


def task_of(module: nn.Module) -> Task:
    """Return the task of a supported network."""
    return TASKS[type(module)]


def classes_of(module: Any) -> int:
    """Return how many classes a network tells apart."""
    return len(module.names)


def end_to_end(module: Any) -> bool:
    """Return whether a head that is switched to end-to-end predicts each object once."""
    return bool(getattr(module.model[-1], "end2end", False))


def _summed(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Of a criterion that multiplies by the batch's size, as those with boxes do."""
    total, _ = criterion(module(batch["img"]), batch)
    loss: torch.Tensor = total.sum() / len(batch["img"])
    return loss


def _averaged(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Of cross-entropy, which is a mean already."""
    loss, _ = criterion(module(batch["img"]), batch)
    found: torch.Tensor = loss
    return found


def _of_queries(criterion: Any, module: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Of an RT-DETR, which itself brings labels and predictions into its criterion's form; a mean over objects.

    The queries made of labels and noise that Ultralytics' training adds (denoising) are left out: they are random.
    """
    before, module.criterion = module.criterion, criterion
    try:
        loss, _ = module.loss(batch, module(batch["img"]))
    finally:
        module.criterion = before
    found: torch.Tensor = loss
    return found


_BOXES = ("metrics/mAP50-95(B)", "metrics/mAP50(B)")
_MASKS = ("metrics/mAP50-95(M)", "metrics/mAP50(M)")
_POSES = ("metrics/mAP50-95(P)", "metrics/mAP50(P)")
_CLASSES = ("metrics/accuracy_top1", "metrics/accuracy_top5")

TASKS: Mapping[type, Task] = {
    stock.DetectionModel: Task("detect", "PrunedTrainer", AccuracyNames(), _BOXES, _summed),
    stock.SegmentationModel: Task(
        "segment", "PrunedSegmentationTrainer", AccuracyNames("mask mAP50-95", "mask mAP50"), _MASKS, _summed
    ),
    stock.PoseModel: Task(
        "pose", "PrunedPoseTrainer", AccuracyNames("pose mAP50-95", "pose mAP50"), _POSES, _summed
    ),
    stock.OBBModel: Task("obb", "PrunedOBBTrainer", AccuracyNames(), _BOXES, _summed),
    stock.ClassificationModel: Task(
        "classify", "PrunedClassificationTrainer", AccuracyNames("top-1", "top-5"), _CLASSES, _averaged,
        suppresses=False,
    ),
    stock.RTDETRDetectionModel: Task(
        "detect", "PrunedRTDETRTrainer", AccuracyNames(), _BOXES, _of_queries, suppresses=False, opener="RTDETR"
    ),
}  # fmt: skip
"""Network classes that are supported, with their task."""
