"""A detector together with its non-maximum suppression, as Ultralytics' ``export(nms=True)`` builds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autoprune.models import stock

CONFIDENCE = 0.25
"""Score below which a box is dropped; Ultralytics' default where it exports with ``nms=True``."""


def suppressed(network: nn.Module, *, task: str = "detect") -> nn.Module:
    """Return a fused detector whose output are the boxes left after non-maximum suppression.

    The output has shape (B, 300, 6): x1, y1, x2, y2 in pixels, score, class; rows beyond the detections are zero. How
    long it takes depends on the boxes, and on noise there are few: what is measured there is the least it costs.

    Args:
        network: fused, eval mode, with the ``names`` of its classes; it maps images to predictions of shape
            (B, 4 + classes + extras, anchors), x1, y1, x2, y2 in pixels and scores, and becomes part of what is
            returned.
        task: Ultralytics' name of it.
    """
    settings = stock.get_cfg(overrides={"format": "onnx", "nms": True, "conf": CONFIDENCE})
    whole: nn.Module = stock.NMSModel(_SinglePrecision(network, task), settings).eval()
    return whole


class _SinglePrecision(nn.Module):
    """A detector whose predictions are float32 whatever it computes in: suppression exists in nothing else on CPUs."""

    def __init__(self, network: Any, task: str) -> None:
        super().__init__()
        self.network = network
        self.names = network.names
        self.task = task

    def forward(self, image: torch.Tensor) -> Any:
        predictions = self.network(image)
        if isinstance(predictions, tuple):  # with what masks are made of
            return tuple(part.float() for part in predictions)
        return predictions.float()
