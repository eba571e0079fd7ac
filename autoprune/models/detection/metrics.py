"""Detection accuracy by Ultralytics' own code: its NMS, its matching, its average precision."""

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


@dataclass(frozen=True)
class Suppression:
    """How detections are chosen, each class on its own; by default as Ultralytics' ``val`` does.

    Attributes:
        confidence: detections below this score are dropped before.
        overlap: IoU above which the one with the lower score is dropped.
    """

    confidence: float = 0.001
    overlap: float = 0.7


MAX_DETECTIONS = 300
"""Detections kept per image; as in Ultralytics, raised to the number of objects in the fullest image."""

_STOCK = Suppression()


class _Validator(stock.DetectionValidator):  # type: ignore[misc]
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
            multi_label=True,
            max_det=self.args.max_det,
            max_time_img=3600.0,
            end2end=self.end2end,
        )
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in found]


def measure(
    module: nn.Module, batches: Iterable[Mapping[str, Any]], *,
    device: torch.device, objects: int, predict: Predict | None = None, suppression: Suppression = _STOCK,
) -> Accuracy:  # fmt: skip
    """Measure the accuracy of an eval-mode network on batches of labelled images.

    Args:
        module: the network; may be fused.
        batches: as `detection.data_set.to_batch` makes them.
        device: where both live.
        objects: labels in the fullest image.
        predict: what predicts in the network's stead, such as itself on another runtime; None for the network.
        suppression: how detections are chosen.

    Returns:
        mAP at IoU 0.5 and averaged over IoU 0.5 to 0.95; zero where nothing is detected.
    """
    with stock.quiet(), torch.no_grad():
        validator = _validator(module, device=device, objects=objects, suppression=suppression)
        run = predict or module
        for batch in batches:
            validator.update_metrics(validator.postprocess(run(batch["img"])), batch)
        results = validator.get_stats()
    return Accuracy(main=float(results["metrics/mAP50-95(B)"]), lenient=float(results["metrics/mAP50(B)"]))


def _validator(module: nn.Module, *, device: torch.device, objects: int, suppression: Suppression) -> Any:
    settings = {
        "task": "detect",
        "mode": "val",
        "conf": suppression.confidence,
        "iou": suppression.overlap,
        "max_det": max(MAX_DETECTIONS, objects),
        "plots": False,
    }
    validator = _Validator(save_dir=Path(tempfile.gettempdir()), args=settings)  # writes nothing without plots
    validator.device, validator.data = device, {}
    validator.init_metrics(module)
    return validator
