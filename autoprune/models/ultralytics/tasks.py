"""Ultralytics' validators of the tasks that add something to a box."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.models import stock
from autoprune.models._base import LossSum
from autoprune.models.detection.comparing import Layout
from autoprune.models.detection.metrics import Metric, PatientValidator
from autoprune.models.ultralytics.images import FolderImages, Images, LabelledFiles, StretchedFiles
from autoprune.models.ultralytics.loss_sums import boxes_sum, queries_sum


class MasksValidator(stock.SegmentationValidator, PatientValidator):  # type: ignore[misc]
    """Its boxes come from the patient NMS."""


class KeypointsValidator(stock.PoseValidator, PatientValidator):  # type: ignore[misc]
    """Its boxes come from the patient NMS."""


class RotatedValidator(stock.OBBValidator, PatientValidator):  # type: ignore[misc]
    """Its boxes come from the patient NMS."""


Loss = Callable[[Any, nn.Module, Mapping[str, Any]], torch.Tensor]
"""Maps (criterion, network, batch) to the loss per image."""

Sum = Callable[[Any, nn.Module, Mapping[str, Any]], LossSum]
"""Maps (scoring criterion, network, batch) to the loss that is not divided yet, see `loss_sums`."""


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


@dataclass(frozen=True)
class TaskSpec:
    """All that differs between a kind of network and the others.

    Attributes:
        network: Ultralytics' class of such networks.
        heads: the layers of Ultralytics' YAMLs that such a network ends with.
        metric: judges its predictions.
        images: reads its data set.
        trainer: in `autoprune.training`, what keeps such a network pruned in stock training.
        session: ``module:class`` of what fine-tunes it, an `autoprune.training.ultralytics.session.Session`.
        loss: computes it.
        loss_sum: computes it undivided.
        suppresses: whether overlapping predictions have to be suppressed after the network, unless its head is
            end-to-end.
        opener: Ultralytics' class that opens a checkpoint.
    """

    network: type
    heads: tuple[str, ...]
    metric: Metric
    trainer: str
    session: str
    images: type[Images] = LabelledFiles
    loss: Loss = _summed
    loss_sum: Sum = boxes_sum
    suppresses: bool = True
    opener: str = "YOLO"

    @property
    def name(self) -> str:
        """Ultralytics' name of the task."""
        return self.metric.task


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
        stock.OBBModel, ("OBB", "OBB26"), Metric("obb", RotatedValidator), "PrunedOBBTrainer", f"{_SESSIONS}:OBBSession"
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
        suppresses=False,
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
        suppresses=False,
        opener="RTDETR",
    ),
)

TASKS: Mapping[type, TaskSpec] = {spec.network: spec for spec in _SPECS}
"""Network classes that are supported, with their task."""

HEADS: Mapping[str, type] = {head: spec.network for spec in _SPECS for head in spec.heads}
"""The class of a network by that of its last layer, as YAMLs name it."""


def task_of(module: nn.Module) -> TaskSpec:
    """Return the task of a supported network."""
    return TASKS[type(module)]
