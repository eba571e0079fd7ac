"""Darknet's loss as its C code has it: loops over cells that write down gradients, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoprune.image_size import ImageSize
from autoprune.models.darknet.loss import Head

Box = Sequence[float]
"""Centre x, y, width, height."""
Truth = tuple[int, int, Box]
"""Image, class, box."""


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def box_at(
    head: Head,
    cell: npt.NDArray[np.float64],
    *,
    anchor: int,
    row: int,
    column: int,
    shape: tuple[int, int],
    size: ImageSize,
) -> Box:
    """The box that a cell's numbers tell, as parts of the image."""
    height, width = shape
    scale, (across, down) = head.scale_x_y, head.anchors[head.mask[anchor]].tolist()
    x = (logistic(cell[0]) * scale - (scale - 1) / 2 + column) / width
    y = (logistic(cell[1]) * scale - (scale - 1) / 2 + row) / height
    return x, y, math.exp(cell[2]) * across / size.width, math.exp(cell[3]) * down / size.height


def overlap(one: Box, two: Box) -> float:
    sides = [
        min(one[axis] + one[axis + 2] / 2, two[axis] + two[axis + 2] / 2)
        - max(one[axis] - one[axis + 2] / 2, two[axis] - two[axis + 2] / 2)
        for axis in (0, 1)
    ]
    if min(sides) <= 0:
        return 0.0
    common = sides[0] * sides[1]
    return common / (one[2] * one[3] + two[2] * two[3] - common)


def complete_overlap(one: Box, two: Box) -> float:
    """Zheng et al., "Distance-IoU loss", AAAI 2020, equations 8 to 11."""
    iou = overlap(one, two)
    outer = sum(
        (
            max(one[axis] + one[axis + 2] / 2, two[axis] + two[axis + 2] / 2)
            - min(one[axis] - one[axis + 2] / 2, two[axis] - two[axis + 2] / 2)
        )
        ** 2
        for axis in (0, 1)
    )
    apart = (one[0] - two[0]) ** 2 + (one[1] - two[1]) ** 2
    aspect = 4 / math.pi**2 * (math.atan(two[2] / two[3]) - math.atan(one[2] / one[3])) ** 2
    weight = aspect / (1 - iou + aspect) if aspect else 0.0
    return iou - apart / outer - weight * aspect


def places(head: Head, truth: Truth, shape: tuple[int, int], size: ImageSize) -> list[tuple[int, int, int]]:
    """Anchors of the head with row and column that are to find a truth."""
    _, _, (x, y, width, height) = truth
    fits = [
        overlap((0, 0, width, height), (0, 0, across / size.width, down / size.height))
        for across, down in head.anchors.tolist()
    ]
    best = int(np.argmax(fits))
    return [
        (head.mask.index(anchor), int(y * shape[0]), int(x * shape[1]))
        for anchor in head.mask
        if anchor == best or fits[anchor] > head.iou_thresh
    ]


def deltas(
    head: Head, raw: npt.NDArray[np.float64], truths: Sequence[Truth], size: ImageSize
) -> npt.NDArray[np.float64]:
    """What Darknet subtracts from the numbers of a map, shape (B, anchors, H, W, 5 + classes); squared error only."""
    found = np.zeros_like(raw)
    shape = raw.shape[2:4]
    for image, anchor, row, column in np.ndindex(raw.shape[:4]):
        cell = raw[image, anchor, row, column]
        box = box_at(head, cell, anchor=anchor, row=row, column=column, shape=shape, size=size)
        best = max((overlap(box, truth[2]) for truth in truths if truth[0] == image), default=0.0)
        if best <= head.ignore_thresh:
            found[image, anchor, row, column, 4] = head.object_gain * (0 - logistic(cell[4]))
    for truth in truths:
        image, kind, (x, y, width, height) = truth
        for anchor, row, column in places(head, truth, shape, size):
            cell, delta = raw[image, anchor, row, column], found[image, anchor, row, column]
            across, down = head.anchors[head.mask[anchor]].tolist()
            wanted = (
                x * shape[1] - column,
                y * shape[0] - row,
                math.log(width * size.width / across),
                math.log(height * size.height / down),
            )
            scale = head.scale_x_y
            given = [logistic(cell[axis]) * scale - (scale - 1) / 2 for axis in (0, 1)] + [cell[2], cell[3]]
            for place in range(4):
                delta[place] += (2 - width * height) * head.box_gain * (wanted[place] - given[place])
            delta[4] = head.object_gain * (1 - logistic(cell[4]))
            first = not delta[5:].any()
            for other in range(head.classes):
                if first or other == kind:
                    delta[5 + other] = head.class_gain * ((other == kind) - logistic(cell[5 + other]))
    return found
