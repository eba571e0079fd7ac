"""Compare the predictions of two networks, for all tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from autoprune.models._base import Difference, Predictions

_PIXELS = 100.0  # between rows, a difference of 0.01 in the score counts as one pixel of the box
_SURE = 0.05  # rows below this score may be missing in one of the networks
_ROW = 6  # numbers of a row before the extras: box, score, class


@dataclass(frozen=True)
class Layout:
    """The layout of a prediction's numbers.

    Without rows predictions have the shape (B, 4 + classes + extras, anchors): box, scores, and the task's extras
    (keypoints, an angle, coefficients of masks). With rows (B, rows, 6 + extras): box, score, class, extras, in any
    order of the rows. Without boxes (B, classes). An optional second tensor has the prototypes of masks.

    Attributes:
        boxes: whether there are boxes.
        rows: whether every object is one row.
        pixels: pixels per unit of the coordinates, of the longer side.
        extras: number of the task's extras, at the end.
        keypoint: numbers per keypoint, x and y first, if the extras are keypoints; else 0.
    """

    boxes: bool = True
    rows: bool = False
    pixels: float = 1.0
    extras: int = 0
    keypoint: int = 0

    def places(self, width: int) -> torch.Tensor:
        """Return a mask of the numbers that are coordinates, shape (width,)."""
        marked = torch.zeros(width, dtype=torch.bool)
        marked[:4] = True
        if self.keypoint:
            marked[-self.extras :] = torch.arange(self.extras) % self.keypoint < 2
        return marked


BOXES = Layout()
"""Layout of a detector: box and scores per anchor."""


def difference(expected: Predictions, found: Predictions, *, layout: Layout) -> Difference:
    """Return the largest differences between two predictions.

    Of rows only the confident ones are compared, each with the nearest one of its class.

    Args:
        expected: predictions in this layout.
        found: of the same shapes.
        layout: of both.
    """
    pairs = list(zip(_parts(expected), _parts(found), strict=True))
    if any(one.shape != other.shape or not (one.isfinite().all() and other.isfinite().all()) for one, other in pairs):
        return Difference(math.inf, math.inf)
    (one, other), *protos = pairs
    rest = max((float((left - right).abs().max()) for left, right in protos), default=0.0)
    if not layout.boxes:
        return Difference(0.0, float((one - other).abs().max()))
    if layout.rows:
        boxes, scores = _rows_differ(_in_pixels(one, layout), _in_pixels(other, layout), layout)
    else:
        apart, places = (one - other).abs(), layout.places(one.shape[1])
        boxes, scores = float(apart[:, places].max()), float(apart[:, ~places].max())
    return Difference(boxes, max(scores, rest))


def disagreement(expected: Predictions, found: Predictions, *, layout: Layout) -> float:
    """Return the mean difference of predictions in [0, 1], each prediction weighted by the higher of its scores.

    A difference of 0.01 in the score counts as one pixel of the box, and no prediction counts more than 1. Mask
    prototypes count by their relative error, if that is larger.

    Args:
        expected: predictions in this layout.
        found: of the same shapes.
        layout: of both.
    """
    (one, other), *protos = zip(_parts(expected), _parts(found), strict=True)
    if not all(part.isfinite().all() for part in _parts(found)):
        return 1.0
    rest = max((_relative(left, right) for left, right in protos), default=0.0)
    if not layout.boxes:
        return float((one - other).abs().amax(1).mean())
    if layout.rows:
        return max(_rows_apart(_in_pixels(one, layout), _in_pixels(other, layout)), rest)
    classes = slice(4, one.shape[1] - layout.extras)
    boxes = (one[:, :4] - other[:, :4]).abs().amax(1) / _PIXELS
    scores = (one[:, classes] - other[:, classes]).abs().amax(1)
    weights = torch.maximum(one[:, classes].amax(1), other[:, classes].amax(1))
    return max(_weighted((boxes + scores).clamp(max=1), weights), rest)


def _parts(predictions: Predictions) -> tuple[torch.Tensor, ...]:
    parts = predictions if isinstance(predictions, tuple) else (predictions,)
    return tuple(part.detach().cpu().float() for part in parts)


def _in_pixels(rows: torch.Tensor, layout: Layout) -> torch.Tensor:
    return torch.cat([rows[..., :4] * layout.pixels, rows[..., 4:]], -1)


def _rows_differ(expected: torch.Tensor, found: torch.Tensor, layout: Layout) -> tuple[float, float]:
    """Return the largest difference of coordinates and of other numbers; infinite if a row's class is missing."""
    places = layout.places(expected.shape[2])
    boxes = scores = 0.0
    for rows, others in zip(expected, found, strict=True):
        for row in rows[rows[:, 4] >= _SURE]:
            same = others[others[:, 5] == row[5]]
            if not len(same):
                return math.inf, math.inf
            apart = (same - row).abs()
            nearest = apart[(apart[:, :4].amax(1) + _PIXELS * apart[:, 4]).argmin()]
            boxes, scores = max(boxes, float(nearest[places].max())), max(scores, float(nearest[~places].max()))
    return boxes, scores


def _rows_apart(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Return the weighted mean distance of every row to the other network's nearest; other classes are 1 apart."""
    scale = torch.tensor([1 / _PIXELS] * 4 + [1.0, 1.0])
    apart = torch.cdist(expected[..., :_ROW] * scale, found[..., :_ROW] * scale, p=1).clamp(max=1)
    weights = torch.cat([expected[..., 4], found[..., 4]], 1)
    return _weighted(torch.cat([apart.amin(2), apart.amin(1)], 1), weights)


def _weighted(values: torch.Tensor, weights: torch.Tensor) -> float:
    """Return a weighted mean; 0 if all weights are 0, as then nothing is detected."""
    return float((values * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny))


def _relative(expected: torch.Tensor, found: torch.Tensor) -> float:
    error = (expected - found).abs().mean() / expected.abs().mean().clamp(min=torch.finfo(expected.dtype).tiny)
    return float(error.clamp(max=1))
