"""Fused copies of Ultralytics' networks as they are exported, and their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from autoprune.listener import tracked
from autoprune.models import stock
from autoprune.models._base import Batch, Predict
from autoprune.models.detection.exporting import suppressed
from autoprune.models.detection.metrics import measure
from autoprune.models.ultralytics.data import random_state_kept
from autoprune.models.ultralytics.images import Images
from autoprune.models.ultralytics.tasks import TaskSpec, end_to_end
from autoprune.results import Metrics

VALIDATION_BATCH = 16

_HEADS = (stock.Detect, stock.Classify, stock.RTDETRDecoder)


def deployed(module: nn.Module, task: TaskSpec, *, with_nms: bool) -> nn.Module:
    """Return a fused copy in eval mode without gradients, as Ultralytics exports it.

    Args:
        module: the dense network or a pruned one.
        task: its task.
        with_nms: add non-maximum suppression, unless the task or an end-to-end head (YOLOv10, YOLO26) needs none.
    """
    copy: Any = deepcopy(module).eval().requires_grad_(False)
    with stock.quiet():
        copy.fuse(verbose=False)
        for head in (part for part in copy.modules() if isinstance(part, _HEADS)):
            head.export = True  # returns the predictions alone, without the maps they come from
        if not (with_nms and task.suppresses) or end_to_end(copy):
            return copy  # type: ignore[no-any-return]
        copy.model[-1].xyxy = True  # suppression reads corners
        return suppressed(copy, task=task.name)


def measure_batches(
    module: nn.Module,
    batches: Sequence[Batch],
    *,
    images: Images,
    task: TaskSpec,
    device: torch.device,
    predict: Predict | None,
) -> Metrics:
    """Measure the accuracy of a deployed network on held batches; parameters as for `measure_split`."""
    # A classifier's batches have no index of objects.
    counts = (batch["batch_idx"].int().bincount().max() for batch in batches if len(batch.get("batch_idx", ())))
    objects = max(map(int, counts), default=0)
    settings = images.data.settings
    shown = tracked(batches, "Measuring")
    return measure(
        module, shown, metric=task.metric, device=device, objects=objects, settings=settings, predict=predict
    )


def measure_split(
    module: nn.Module,
    *,
    images: Images,
    task: TaskSpec,
    device: torch.device,
    rectangular: bool,
    predict: Predict | None = None,
) -> Metrics:
    """Measure the accuracy of a deployed network on the validation split.

    Args:
        module: of `deployed`.
        images: read the data set.
        task: of the network.
        device: of the network.
        rectangular: see `Images.validation`.
        predict: predicts instead of the network, such as its exported file; None for the network.
    """
    workers = 0 if device.type == "cpu" else min(4, torch.get_num_threads())
    with stock.quiet(), random_state_kept():
        parts, objects = images.validation(batch=VALIDATION_BATCH, rectangular=rectangular, workers=workers)
        batches = (images.collate(samples, device) for samples in tracked(parts, "Validating"))
        settings = images.data.settings
        return measure(
            module, batches, metric=task.metric, device=device, objects=objects, settings=settings, predict=predict
        )
