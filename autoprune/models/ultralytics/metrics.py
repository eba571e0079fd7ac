"""Accuracy by Ultralytics' own code: its NMS, its matching, its average precision."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.models._base import Accuracy, Predict
from autoprune.models.ultralytics import stock
from autoprune.models.ultralytics.tasks import TASKS

CONFIDENCE = 0.001
"""Detections below this score are dropped before NMS; Ultralytics' ``val`` default."""
OVERLAP = 0.7
"""IoU threshold of the NMS; Ultralytics' ``val`` default."""
MAX_DETECTIONS = 300
"""Detections kept per image; as in Ultralytics, raised to the number of objects in the fullest image."""


class _Patient(stock.DetectionValidator):  # type: ignore[misc]
    """Ultralytics' validator, fed batch by batch, with an NMS that never gives up on time.

    The stock NMS leaves the rest of a batch without detections after 2 s + 0.05 s per image, so that on a busy
    machine the accuracy would depend on the load.
    """

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        """Return the detections of each image after NMS."""
        found = stock.non_max_suppression(
            preds,
            self.args.conf,
            self.args.iou,
            nc=0 if self.args.task == "detect" else self.nc,
            multi_label=True,
            max_det=self.args.max_det,
            max_time_img=3600.0,
            end2end=self.end2end,
            rotated=self.args.task == "obb",
        )
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in found]


class _Masks(stock.SegmentationValidator, _Patient):  # type: ignore[misc]
    """Its boxes come from the patient NMS."""


class _Keypoints(stock.PoseValidator, _Patient):  # type: ignore[misc]
    """Its boxes come from the patient NMS."""


class _Rotated(stock.OBBValidator, _Patient):  # type: ignore[misc]
    """Its boxes come from the patient NMS."""


_VALIDATORS: Mapping[type, type] = {
    stock.DetectionModel: _Patient,
    stock.SegmentationModel: _Masks,
    stock.PoseModel: _Keypoints,
    stock.OBBModel: _Rotated,
    stock.ClassificationModel: stock.ClassificationValidator,
    stock.RTDETRDetectionModel: stock.RTDETRValidator,
}
"""By the network's class."""

_FACTS = ("kpt_shape", "kpt_oks_sigmas")
"""Of a data set's description, what a validator reads."""


def measure(
    module: nn.Module, batches: Iterable[Mapping[str, Any]], *,
    kind: type, device: torch.device, objects: int, settings: Mapping[str, Any], predict: Predict | None = None,
) -> Accuracy:  # fmt: skip
    """Measure the accuracy of an eval-mode network on batches of labelled images.

    Args:
        module: the network; may be fused, and what runs in its stead needs its ``names`` and ``end2end`` only.
        kind: the network's class, which has the task.
        batches: as `images.Images` makes them.
        device: where both live.
        objects: labels in the fullest image.
        settings: the data set's description.
        predict: what predicts in the network's stead, such as itself on another runtime; None for the network.

    Returns:
        The task's figures; zero where nothing is detected.
    """
    with stock.quiet(), torch.no_grad():
        validator = _validator(module, kind, device=device, objects=objects, settings=settings)
        run = predict or module
        for batch in batches:
            validator.args.imgsz = batch["img"].shape[-1]  # RT-DETR's boxes are shares of it
            validator.update_metrics(validator.postprocess(run(batch["img"])), batch)
        results = validator.get_stats()
    main, lenient = (float(results[key]) for key in TASKS[kind].keys)
    return Accuracy(main, lenient)


def _validator(
    module: nn.Module, kind: type, *, device: torch.device, objects: int, settings: Mapping[str, Any]
) -> Any:
    arguments = {
        "task": TASKS[kind].name,
        "mode": "val",
        "conf": CONFIDENCE,
        "iou": OVERLAP,
        "max_det": max(MAX_DETECTIONS, objects),
        "plots": False,
    }
    # It writes nothing without plots.
    validator = _VALIDATORS[kind](save_dir=Path(tempfile.gettempdir()), args=arguments)
    validator.device, validator.data = device, {fact: settings[fact] for fact in _FACTS if fact in settings}
    validator.init_metrics(module)
    return validator
