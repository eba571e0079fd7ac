"""Accuracy, measured by Ultralytics' own NMS, matching and average precision."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.models import stock
from autoprune.models._base import Predict
from autoprune.results import Detection, Metrics

MAX_DETECTIONS = 300
"""Detections kept per image; as in Ultralytics, raised to the number of objects in the fullest image."""


SHOWN_CONFIDENCE = 0.25
"""Detections below it are not shown, as in Ultralytics' ``predict``."""


class PatientValidator(stock.DetectionValidator):  # type: ignore[misc]
    """Ultralytics' validator, called batch by batch, with an NMS without a time limit.

    The stock NMS skips the rest of a batch after 2 s + 0.05 s per image, so the accuracy would depend on the machine's
    load.
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
    """How accuracy is measured; by default of boxes as in Ultralytics' ``val``.

    Attributes:
        task: Ultralytics' name of the task.
        validator: Ultralytics' class that evaluates predictions.
        keys: of its results, by the metric's name; the first one is the primary metric.
        confidence: detections below this score are dropped before suppression.
        overlap: IoU threshold of suppression.
        suppressed: whether predictions are rows of suppressed detections already.
    """

    task: str = "detect"
    validator: type = PatientValidator
    keys: Mapping[str, str] = field(
        default_factory=lambda: {"mAP50-95": "metrics/mAP50-95(B)", "mAP50": "metrics/mAP50(B)"}
    )
    confidence: float = 0.001
    overlap: float = 0.7
    suppressed: bool = False


_FACTS = ("kpt_shape", "kpt_oks_sigmas")
"""Entries of a data set's description that validators read."""


def measure(
    module: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    metric: Metric,
    device: torch.device,
    objects: int,
    settings: Mapping[str, Any],
    predict: Predict | None = None,
) -> Metrics:
    """Measure the accuracy of an eval-mode network on batches of labelled images.

    Args:
        module: the network, fused or not. With ``predict`` only its ``names`` and ``end2end`` are used.
        batches: images and labels as Ultralytics collates them, on the device.
        metric: the measure.
        device: of network and batches.
        objects: labels in the fullest image.
        settings: the data set's description.
        predict: predicts instead of the network, such as its exported file; None for the network.

    Returns:
        The task's metrics, zero if nothing is detected, and those of each class with labels.
    """
    with stock.quiet(), torch.no_grad():
        validator = _validator(module, metric, device=device, objects=objects, settings=settings)
        run = predict or module
        for batch in batches:
            validator.args.imgsz = list(batch["img"].shape[-2:])  # RT-DETR's boxes are shares of it
            validator.update_metrics(validator.postprocess(run(batch["img"])), batch)
        results = validator.get_stats()
    return Metrics({name: float(results[key]) for name, key in metric.keys.items()}, _per_class(validator, metric))


def detected(
    module: nn.Module, batch: Mapping[str, Any], *, metric: Metric, device: torch.device, predict: Predict | None = None
) -> list[list[Detection]]:
    """Return what an eval-mode detector finds in each image of a batch, the surest first.

    Args:
        module: fused, with its classes' ``names``.
        batch: images as Ultralytics collates them, on the device.
        metric: of its task; boxes must be upright.
        device: of network and batch.
        predict: predicts instead of the network, as for `measure`.
    """
    shown = replace(metric, confidence=SHOWN_CONFIDENCE)
    with stock.quiet(), torch.no_grad():
        validator = _validator(module, shown, device=device, objects=0, settings={})
        validator.args.imgsz = list(batch["img"].shape[-2:])
        found = validator.postprocess((predict or module)(batch["img"]))
    return [_listed(one["bboxes"], one["conf"], one["cls"], validator.names) for one in found]


def labelled_objects(batch: Mapping[str, Any], names: Mapping[int, str]) -> list[list[Detection]]:
    """Return the labelled objects of each image of a batch as Ultralytics collates it."""
    height, width = batch["img"].shape[-2:]
    centre, size = batch["bboxes"][:, :2], batch["bboxes"][:, 2:]
    corners = torch.cat([centre - size / 2, centre + size / 2], 1).cpu() * torch.tensor([width, height] * 2)
    classes, image = batch["cls"].view(-1), batch["batch_idx"].view(-1)
    return [
        _listed(corners[rows], torch.ones(int(rows.sum())), classes[rows], names)
        for rows in (image.cpu() == number for number in range(len(batch["img"])))
    ]


def _listed(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, names: Mapping[int, str]
) -> list[Detection]:
    rows = zip(boxes.tolist(), scores.tolist(), classes.tolist(), strict=True)
    found = [Detection(str(names[int(label)]), tuple(box), score) for box, score, label in rows]
    found = [one for one in found if one.score >= SHOWN_CONFIDENCE]
    return sorted(found, key=lambda one: -one.score)


def _per_class(validator: Any, metric: Metric) -> Mapping[str, Mapping[str, float]]:
    """Return the metrics of each class that has labels, by its name."""
    found = validator.metrics
    if isinstance(validator, stock.ClassificationValidator):
        return _per_label(validator, metric)
    places = {name: list(found.keys).index(key) for name, key in metric.keys.items()}
    return {
        str(found.names[int(number)]): {name: float(found.class_result(row)[place]) for name, place in places.items()}
        for row, number in enumerate(found.ap_class_index)
    }


def _per_label(validator: Any, metric: Metric) -> Mapping[str, Mapping[str, float]]:
    """Return a classifier's top-1 and top-5 accuracy of each class, by class name."""
    labels, predicted = torch.cat(validator.targets), torch.cat(validator.pred)
    right = labels[:, None] == predicted
    shares = torch.stack([right[:, 0], right.any(1)], dim=1).double()
    return {
        str(validator.names[label]): dict(zip(metric.keys, shares[labels == label].mean(0).tolist(), strict=True))
        for label in sorted(set(labels.tolist()))
    }


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
    if metric.suppressed:
        validator.end2end = True  # rows of masks and keypoints are longer than those that it knows by their length
    return validator
