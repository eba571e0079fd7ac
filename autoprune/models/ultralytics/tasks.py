"""What differs between the tasks of Ultralytics' networks, as far as Ultralytics does not tell it itself.

What does come from Ultralytics: the loss (a network's own ``init_criterion``), the metric (a validator per task, in
`validators`), the labels (the data set takes the task's name, in `data`) and the training (a trainer per task, in
`autoprune.training.ultralytics.trainer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.models import stock
from autoprune.models._base import LossSum
from autoprune.models.detection.comparing import Layout
from autoprune.models.detection.metrics import Metric
from autoprune.models.ultralytics.loss_sums import boxes_sum, queries_sum
from autoprune.models.ultralytics.validators import KeypointsValidator, MasksValidator, RotatedValidator

Loss = Callable[[Any, nn.Module, Mapping[str, Any]], torch.Tensor]
"""Maps (criterion, network, batch) to the loss per image."""

Sum = Callable[[Any, nn.Module, Mapping[str, Any]], LossSum]
"""Maps (scoring criterion, network, batch) to the loss that is not divided yet, see `loss_sums`."""


@dataclass(frozen=True)
class Task:
    """A kind of network.

    Attributes:
        metric: judges its predictions.
        trainer: in `autoprune.training`, what keeps such a network pruned in stock training.
        loss: computes it.
        loss_sum: computes it undivided.
        suppresses: whether overlapping predictions have to be suppressed after the network, unless its head is
            end-to-end.
        opener: Ultralytics' class that opens a checkpoint.
    """

    metric: Metric
    trainer: str
    loss: Loss
    loss_sum: Sum
    suppresses: bool = True
    opener: str = "YOLO"

    @property
    def name(self) -> str:
        """Ultralytics' name of the task."""
        return self.metric.task


def task_of(module: nn.Module) -> Task:
    """Return the task of a supported network."""
    return TASKS[type(module)]


def classes_of(module: Any) -> int:
    """Return how many classes a network tells apart."""
    return len(module.names)


def end_to_end(module: Any) -> bool:
    """Return whether a head that is switched to end-to-end predicts each object once."""
    return bool(getattr(module.model[-1], "end2end", False))


def layout_of(module: Any, image_size: int) -> Layout:
    """Return how the predictions of a network are laid out whose input is a square of so many pixels."""
    head = module.model[-1]
    if isinstance(head, stock.Classify):
        return Layout(boxes=False)
    queries = isinstance(head, stock.RTDETRDecoder)
    return Layout(
        rows=queries or end_to_end(module),
        pixels=float(image_size) if queries else 1.0,
        extras=sum(int(getattr(head, name, 0)) for name in ("nk", "nm", "ne")),
        keypoint=head.kpt_shape[1] if getattr(head, "nk", 0) else 0,
    )


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


def _averaged_sum(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> LossSum:
    return LossSum.of_mean(_averaged(criterion, module, batch), len(batch["img"]))


def _of_queries(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Of an RT-DETR; a mean over objects.

    The queries made of labels and noise that Ultralytics' training adds (denoising) are left out: they are random.
    """
    return _matched(criterion, module, module(batch["img"]), batch)


def _of_queries_sum(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> LossSum:
    predictions = module(batch["img"])
    return queries_sum(_matched(criterion, module, predictions, batch), batch, queries=predictions[0].shape[2])


def _matched(criterion: Any, module: Any, predictions: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Let an RT-DETR itself bring labels and predictions into its criterion's form."""
    before, module.criterion = module.criterion, criterion
    try:
        loss, _ = module.loss(batch, predictions)
    finally:
        module.criterion = before
    found: torch.Tensor = loss
    return found


_MASKS = {"mask mAP50-95": "metrics/mAP50-95(M)", "mask mAP50": "metrics/mAP50(M)"}
_POSES = {"pose mAP50-95": "metrics/mAP50-95(P)", "pose mAP50": "metrics/mAP50(P)"}
_CLASSES = {"top-1": "metrics/accuracy_top1", "top-5": "metrics/accuracy_top5"}

TASKS: Mapping[type, Task] = {
    stock.DetectionModel: Task(Metric(), "PrunedTrainer", _summed, boxes_sum),
    stock.SegmentationModel: Task(
        Metric("segment", MasksValidator, _MASKS), "PrunedSegmentationTrainer", _summed, boxes_sum
    ),
    stock.PoseModel: Task(Metric("pose", KeypointsValidator, _POSES), "PrunedPoseTrainer", _summed, boxes_sum),
    stock.OBBModel: Task(Metric("obb", RotatedValidator), "PrunedOBBTrainer", _summed, boxes_sum),
    stock.ClassificationModel: Task(
        Metric("classify", stock.ClassificationValidator, _CLASSES),
        "PrunedClassificationTrainer",
        _averaged,
        _averaged_sum,
        suppresses=False,
    ),
    stock.RTDETRDetectionModel: Task(
        Metric(validator=stock.RTDETRValidator),
        "PrunedRTDETRTrainer",
        _of_queries,
        _of_queries_sum,
        suppresses=False,
        opener="RTDETR",
    ),
}
"""Network classes that are supported, with their task."""
