"""How far the predictions of two networks lie from each other, whatever their task predicts."""

from __future__ import annotations

import math
from typing import Any

import torch

from autoprune.models._base import Difference, Predictions
from autoprune.models.ultralytics import stock

_PIXELS = 100.0  # where rows are paired, a score that is off by 0.01 counts as much as a box that is off by a pixel
_SURE = 0.05  # rows below this score may be there in one network and not in the other
_ROW = 6  # numbers of a row before what its task adds: box, score, class


def difference(expected: Predictions, found: Predictions, *, head: Any, image_size: int = 1) -> Difference:
    """Return how far predictions lie from those expected.

    Args:
        expected: shape (B, 4 + classes + extras, anchors): box, scores, and what the task adds: keypoints, an angle,
            coefficients of masks. Of an end-to-end head (B, rows, 6 + extras): corners, score, class, extras; of an
            RT-DETR the same with the centre and size of a box as shares of the image; both in any order of the rows. Of
            those only rows that are sure enough to be there in both are compared, each with the nearest one of its
            class. Of a classifier (B, classes). A second tensor holds what masks are made of.
        found: of the same shapes.
        head: the network's head.
        image_size: of the square input, in pixels; only an RT-DETR's boxes need it.
    """
    pairs = list(zip(_parts(expected), _parts(found), strict=True))
    if any(one.shape != other.shape or not (one.isfinite().all() and other.isfinite().all()) for one, other in pairs):
        return Difference(math.inf, math.inf)
    (one, other), *protos = pairs
    rest = max((float((left - right).abs().max()) for left, right in protos), default=0.0)
    if isinstance(head, stock.Classify):
        return Difference(0.0, float((one - other).abs().max()))
    if _has_rows(head):
        scale = image_size if isinstance(head, stock.RTDETRDecoder) else 1
        places, scores = _rows_differ(_scaled(one, scale), _scaled(other, scale), head)
    else:
        apart, points = (one - other).abs(), _points(head, one.shape[1])
        places, scores = float(apart[:, points].max()), float(apart[:, ~points].max())
    return Difference(places, max(scores, rest))


def disagreement(expected: Predictions, found: Predictions, *, head: Any, image_size: int = 1) -> float:
    """Return the mean difference of predictions in [0, 1], each prediction weighted by the higher of its scores.

    A score that is off by 0.01 counts as much as a box that is off by a pixel, and nothing counts more than 1. What
    masks are made of counts by its relative error, where that is more.

    Args:
        expected: as for ``difference``.
        found: of the same shapes.
        head: the network's head.
        image_size: as for ``difference``.
    """
    (one, other), *protos = zip(_parts(expected), _parts(found), strict=True)
    if not all(part.isfinite().all() for part in _parts(found)):
        return 1.0
    rest = max((_relative(left, right) for left, right in protos), default=0.0)
    if isinstance(head, stock.Classify):
        return float((one - other).abs().amax(1).mean())
    if _has_rows(head):
        scale = image_size if isinstance(head, stock.RTDETRDecoder) else 1
        return max(_rows_apart(_scaled(one, scale), _scaled(other, scale)), rest)
    classes = slice(4, one.shape[1] - _extras(head))
    boxes = (one[:, :4] - other[:, :4]).abs().amax(1) / _PIXELS
    scores = (one[:, classes] - other[:, classes]).abs().amax(1)
    weights = torch.maximum(one[:, classes].amax(1), other[:, classes].amax(1))
    return max(_weighted((boxes + scores).clamp(max=1), weights), rest)


def _parts(predictions: Predictions) -> tuple[torch.Tensor, ...]:
    parts = predictions if isinstance(predictions, tuple) else (predictions,)
    return tuple(part.detach().cpu().float() for part in parts)


def _has_rows(head: Any) -> bool:
    return isinstance(head, stock.RTDETRDecoder) or bool(head.end2end)


def _extras(head: Any) -> int:
    """Return how many numbers a head predicts beside box and classes: of keypoints, masks or the angle."""
    return sum(int(getattr(head, name, 0)) for name in ("nk", "nm", "ne"))


def _points(head: Any, width: int) -> torch.Tensor:
    """Mark which numbers of a prediction are places in pixels: those of its box, and of keypoints x and y; (width,)."""
    marked = torch.zeros(width, dtype=torch.bool)
    marked[:4] = True
    if getattr(head, "nk", 0):  # the last ones: x, y, and maybe how visible it is
        numbers = torch.arange(head.nk) % head.kpt_shape[1]
        marked[-head.nk :] = numbers < 2
    return marked


def _scaled(rows: torch.Tensor, scale: int) -> torch.Tensor:
    return torch.cat([rows[..., :4] * scale, rows[..., 4:]], -1)


def _rows_differ(expected: torch.Tensor, found: torch.Tensor, head: Any) -> tuple[float, float]:
    """Return the largest difference of places and of other numbers; infinite where a class is not found at all."""
    points = _points(head, expected.shape[2])
    boxes = scores = 0.0
    for rows, others in zip(expected, found, strict=True):
        for row in rows[rows[:, 4] >= _SURE]:
            same = others[others[:, 5] == row[5]]
            if not len(same):
                return math.inf, math.inf
            apart = (same - row).abs()
            nearest = apart[(apart[:, :4].amax(1) + _PIXELS * apart[:, 4]).argmin()]
            boxes, scores = max(boxes, float(nearest[points].max())), max(scores, float(nearest[~points].max()))
    return boxes, scores


def _rows_apart(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Pair every row with the other network's nearest one; a row of another class is at least 1 apart."""
    scale = torch.tensor([1 / _PIXELS] * 4 + [1.0, 1.0])
    apart = torch.cdist(expected[..., :_ROW] * scale, found[..., :_ROW] * scale, p=1).clamp(max=1)
    weights = torch.cat([expected[..., 4], found[..., 4]], 1)
    return _weighted(torch.cat([apart.amin(2), apart.amin(1)], 1), weights)


def _weighted(values: torch.Tensor, weights: torch.Tensor) -> float:
    """Return a weighted mean; 0 where nothing has weight, as nothing is detected then."""
    return float((values * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny))


def _relative(expected: torch.Tensor, found: torch.Tensor) -> float:
    error = (expected - found).abs().mean() / expected.abs().mean().clamp(min=torch.finfo(expected.dtype).tiny)
    return float(error.clamp(max=1))
