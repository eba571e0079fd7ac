"""Accuracy by Ultralytics' own code: its NMS, its matching, its average precision."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.models import stock
from autoprune.models._base import Accuracy, Predict

MAX_DETECTIONS = 300
"""Detections kept per image; as in Ultralytics, raised to the number of objects in the fullest image."""


class PatientValidator(stock.DetectionValidator):  # type: ignore[misc]
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


@dataclass(frozen=True)
class Metric:
    """How a network's predictions become an accuracy; by default boxes as Ultralytics' ``val`` judges them.

    Attributes:
        task: Ultralytics' name of the task.
        validator: Ultralytics' class that judges predictions.
        keys: of its results, the main figure's and the lenient one's.
        confidence: detections below this score are dropped before suppression …
        overlap: … and of two of a class with a higher IoU than this the one with the lower score.
    """

    task: str = "detect"
    validator: type = PatientValidator
    keys: tuple[str, str] = ("metrics/mAP50-95(B)", "metrics/mAP50(B)")
    confidence: float = 0.001
    overlap: float = 0.7


_FACTS = ("kpt_shape", "kpt_oks_sigmas")
"""Of a data set's description, what a validator reads."""


def measure(
    module: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    metric: Metric,
    device: torch.device,
    objects: int,
    settings: Mapping[str, Any],
    predict: Predict | None = None,
) -> Accuracy:
    """Measure the accuracy of an eval-mode network on batches of labelled images.

    Args:
        module: the network; may be fused. Where something runs in its stead, its ``names`` and ``end2end`` are enough.
        batches: images and labels as Ultralytics collates them, on the device.
        metric: judges.
        device: where both live.
        objects: labels in the fullest image.
        settings: the data set's description.
        predict: what predicts in the network's stead, such as itself on another runtime; None for the network.

    Returns:
        The task's figures; zero where nothing is detected.
    """
    with stock.quiet(), torch.no_grad():
        validator = _validator(module, metric, device=device, objects=objects, settings=settings)
        run = predict or module
        for batch in batches:
            validator.args.imgsz = batch["img"].shape[-1]  # RT-DETR's boxes are shares of it
            validator.update_metrics(validator.postprocess(run(batch["img"])), batch)
        results = validator.get_stats()
    main, lenient = (float(results[key]) for key in metric.keys)
    return Accuracy(main, lenient)


def _validator(
    module: nn.Module, metric: Metric, *, device: torch.device, objects: int, settings: Mapping[str, Any]
) -> Any:
    arguments = {
        "task": metric.task,
        "mode": "val",
        "conf": metric.confidence,
        "iou": metric.overlap,
        "max_det": max(MAX_DETECTIONS, objects),
        "plots": False,
    }
    # It writes nothing without plots.
    validator = metric.validator(save_dir=Path(tempfile.gettempdir()), args=arguments)
    validator.device, validator.data = device, {fact: settings[fact] for fact in _FACTS if fact in settings}
    validator.init_metrics(module)
    return validator
