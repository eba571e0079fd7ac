"""The tasks of Ultralytics' networks: one record each, with the parts that Ultralytics does not define itself.

Ultralytics defines the loss (a network's own ``init_criterion``), the metric (a validator per task), the labels (the
data set takes the task's name) and the training (a trainer per task, in `autoprune.training.ultralytics.trainer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from autoprune.image_size import ImageSize
from autoprune.models import stock
from autoprune.models._base import LossSum
from autoprune.models.detection.comparing import Layout
from autoprune.models.detection.metrics import Metric, PatientValidator
from autoprune.models.ultralytics.images import FolderImages, Images, LabelledFiles, StretchedFiles
from autoprune.models.ultralytics.loss_sums import boxes_criterion, boxes_sum, queries_criterion, queries_sum


class MasksValidator(stock.SegmentationValidator, PatientValidator):  # type: ignore[misc]
    """Evaluates masks, with an NMS without a time limit."""


class KeypointsValidator(stock.PoseValidator, PatientValidator):  # type: ignore[misc]
    """Evaluates keypoints, with an NMS without a time limit."""


class RotatedValidator(stock.OBBValidator, PatientValidator):  # type: ignore[misc]
    """Evaluates rotated boxes, with an NMS without a time limit."""


Loss = Callable[[Any, nn.Module, Mapping[str, Any]], torch.Tensor]
"""Maps (criterion, network, batch) to the loss per image."""

Sum = Callable[[Any, nn.Module, Mapping[str, Any]], LossSum]
"""Maps (scoring criterion, network, batch) to the unnormalised loss, see `loss_sums`."""


def classes_of(module: Any) -> int:
    """Return the number of a network's classes."""
    return len(module.names)


def end_to_end(module: Any) -> bool:
    """Return whether the network's head is end-to-end: it predicts each object once."""
    return bool(getattr(module.model[-1], "end2end", False))


def _boxes_layout(module: Any, _: ImageSize) -> Layout:
    head = module.model[-1]
    return Layout(
        rows=end_to_end(module),
        extras=sum(int(getattr(head, name, 0)) for name in ("nk", "nm", "ne")),
        keypoint=head.kpt_shape[1] if getattr(head, "nk", 0) else 0,
    )


def _scores_layout(*_: Any) -> Layout:
    return Layout(boxes=False)


def _queries_layout(_: Any, image_size: ImageSize) -> Layout:
    return Layout(rows=True, pixels=float(image_size.longest))


def _summed(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the loss per image of a criterion that multiplies by the batch size, as those of boxes do."""
    total, _ = criterion(module(batch["img"]), batch)
    loss: torch.Tensor = total.sum() / len(batch["img"])
    return loss


def _averaged(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the loss of a criterion that is a mean, such as cross-entropy."""
    loss, _ = criterion(module(batch["img"]), batch)
    found: torch.Tensor = loss
    return found


def _averaged_sum(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> LossSum:
    return LossSum.of_mean(_averaged(criterion, module, batch), len(batch["img"]))


def _of_queries(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the loss of an RT-DETR, a mean over objects.

    The random denoising queries of Ultralytics' training are left out.
    """
    return _matched(criterion, module, module(batch["img"]), batch)


def _of_queries_sum(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> LossSum:
    predictions = module(batch["img"])
    return queries_sum(_matched(criterion, module, predictions, batch), batch, queries=predictions[0].shape[2])


def _matched(criterion: Any, module: Any, predictions: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return an RT-DETR's loss with a given criterion; the network itself converts labels and predictions."""
    before, module.criterion = module.criterion, criterion
    try:
        loss, _ = module.loss(batch, predictions)
    finally:
        module.criterion = before
    found: torch.Tensor = loss
    return found


@dataclass(frozen=True)
class TaskSpec:
    """The record of a task.

    Attributes:
        network: Ultralytics' class of such networks.
        heads: last layers of such networks in Ultralytics' YAMLs.
        metric: how accuracy is measured.
        images: reads its data set.
        trainer: name of the class in `autoprune.training` that keeps such a network pruned in stock training.
        session: ``module:class`` of its fine-tuning, an `autoprune.training.ultralytics.session.Session`.
        loss: computes the loss per image.
        loss_sum: computes the unnormalised loss.
        scoring: makes the criterion of that, see `loss_sums`.
        layout: (network, image size) → the layout of its predictions.
        upright: whether objects have upright boxes.
        suppresses: whether predictions need non-maximum suppression, unless the head is end-to-end.
        opener: Ultralytics' class that opens a checkpoint.
        muon: whether its pruned networks are fine-tuned by Muon, or else by the optimizer of the dense training.
    """

    network: type
    heads: tuple[str, ...]
    metric: Metric
    trainer: str
    session: str
    images: type[Images] = LabelledFiles
    loss: Loss = _summed
    loss_sum: Sum = boxes_sum
    scoring: Callable[[Any], Any] = boxes_criterion
    layout: Callable[[Any, ImageSize], Layout] = _boxes_layout
    upright: bool = True
    suppresses: bool = True
    opener: str = "YOLO"
    muon: bool = True

    @property
    def name(self) -> str:
        """Ultralytics' name of the task."""
        return self.metric.task

    def suppressed(self) -> TaskSpec:
        """Return the record for predictions that are suppressed already."""
        return replace(self, metric=replace(self.metric, suppressed=True))


_MASKS = {"mask mAP50-95": "metrics/mAP50-95(M)", "mask mAP50": "metrics/mAP50(M)"}
_POSES = {"pose mAP50-95": "metrics/mAP50-95(P)", "pose mAP50": "metrics/mAP50(P)"}
_CLASSES = {"top-1": "metrics/accuracy_top1", "top-5": "metrics/accuracy_top5"}

_SESSIONS = "autoprune.training.ultralytics.sessions"
_SPECS = (
    TaskSpec(stock.DetectionModel, ("Detect", "v10Detect"), Metric(), "PrunedTrainer", f"{_SESSIONS}:DetectionSession"),
    TaskSpec(
        stock.SegmentationModel,
        ("Segment", "Segment26"),
        Metric("segment", MasksValidator, _MASKS),
        "PrunedSegmentationTrainer",
        f"{_SESSIONS}:SegmentationSession",
    ),
    TaskSpec(
        stock.PoseModel,
        ("Pose", "Pose26"),
        Metric("pose", KeypointsValidator, _POSES),
        "PrunedPoseTrainer",
        f"{_SESSIONS}:PoseSession",
    ),
    TaskSpec(
        stock.OBBModel,
        ("OBB", "OBB26"),
        Metric("obb", RotatedValidator),
        "PrunedOBBTrainer",
        f"{_SESSIONS}:OBBSession",
        upright=False,
    ),
    TaskSpec(
        stock.ClassificationModel,
        ("Classify",),
        Metric("classify", stock.ClassificationValidator, _CLASSES),
        "PrunedClassificationTrainer",
        f"{_SESSIONS}:ClassificationSession",
        images=FolderImages,
        loss=_averaged,
        loss_sum=_averaged_sum,
        scoring=lambda module: module.init_criterion(),
        layout=_scores_layout,
        upright=False,
        suppresses=False,
        muon=False,
    ),
    TaskSpec(
        stock.RTDETRDetectionModel,
        ("RTDETRDecoder",),
        Metric(validator=stock.RTDETRValidator),
        "PrunedRTDETRTrainer",
        f"{_SESSIONS}:RTDETRSession",
        images=StretchedFiles,
        loss=_of_queries,
        loss_sum=_of_queries_sum,
        scoring=queries_criterion,
        layout=_queries_layout,
        suppresses=False,
        opener="RTDETR",
        muon=False,
    ),
)

TASKS: Mapping[type, TaskSpec] = {spec.network: spec for spec in _SPECS}
"""Network classes that are supported, with their task."""

HEADS: Mapping[str, type] = {head: spec.network for spec in _SPECS for head in spec.heads}
"""The class of a network by that of its last layer, as YAMLs name it."""


def task_of(module: nn.Module) -> TaskSpec:
    """Return the task of a supported network."""
    return TASKS[type(module)]
