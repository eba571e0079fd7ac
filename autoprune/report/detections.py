"""Detections of several networks on a few images: which images, their file, and how they reach a page."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Predicate
from typing_extensions import TypedDict

from autoprune.errors import RunError
from autoprune.io.fields import parse_strictly
from autoprune.io.files import read_bytes, write_atomic
from autoprune.io.records import fits
from autoprune.results import Detection, Result

FILE = "detections.json"

SHOWN = 8
"""Images that are shown."""

LOOKED_AT = 64
"""Validation images among which they are looked for."""

SAME = 0.5
"""Boxes of one class that overlap by at least this IoU are the same object."""

Box = tuple[float, float, float, float]

_Finite = Annotated[float, Predicate(math.isfinite)]
_Mark = tuple[str, _Finite, _Finite, _Finite, _Finite, _Finite]
"""Label, score, and left, top, right and bottom edge of an object in the file."""


class _Image(TypedDict):
    """An image in the file."""

    width: int
    height: int
    jpeg: str
    truth: Sequence[_Mark]
    found: Mapping[str, Sequence[_Mark]]


@dataclass(frozen=True)
class Shown:
    """An image with what is in it.

    Attributes:
        width: in pixels.
        height: in pixels.
        jpeg: the image.
        truth: labelled objects.
        found: what each network detects, by its name.
    """

    width: int
    height: int
    jpeg: bytes
    truth: Sequence[Detection]
    found: Mapping[str, Sequence[Detection]]

    @property
    def source(self) -> str:
        """The image as an address that holds it."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


@dataclass(frozen=True)
class Gallery:
    """Detections of networks side by side.

    Attributes:
        name: its anchor in a page.
        title: stands above it.
        images: those that differ most first.
        caption: one sentence that says how to read it.
    """

    name: str
    title: str
    images: Sequence[Shown]
    caption: str = ""


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes.

    Example:
        >>> overlap((0, 0, 2, 2), (1, 0, 3, 2))
        0.3333333333333333
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def differing(ours: Sequence[Detection], theirs: Sequence[Detection]) -> float:
    """Return how far two lists of detections differ: the scores of all that only one of them has.

    Detections of the same class whose boxes overlap by `SAME` are paired, the surest first; a pair counts by the
    difference of its scores.

    Example:
        >>> cell = Detection("cell", (0, 0, 10, 10), 0.75)
        >>> differing([cell], [cell]), differing([cell], [])
        (0.0, 0.75)
    """
    left, total = sorted(theirs, key=lambda one: -one.score), 0.0
    for mark in sorted(ours, key=lambda one: -one.score):
        same = [one for one in left if one.label == mark.label and overlap(one.box, mark.box) >= SAME]
        if not same:
            total += mark.score
            continue
        partner = max(same, key=lambda one: overlap(one.box, mark.box))
        left.remove(partner)
        total += abs(partner.score - mark.score)
    return total + sum(one.score for one in left)


def write_detections(images: Sequence[Shown], folder: Path) -> None:
    """Write images with their detections into a run's folder.

    Raises:
        RunError: the file cannot be written.
    """
    write_atomic(folder / FILE, json.dumps([_to_json(image) for image in images]) + "\n")


def read_detections(folder: Path) -> list[Shown]:
    """Return the images of a run's folder; empty if it has none.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        images = parse_strictly(read_bytes(path).decode())
        if not fits(images, Sequence[_Image]):
            raise ValueError("it does not hold what autoprune writes there")
        return [_from_json(one) for one in images]
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it, the report is then made without it") from error


def _to_json(image: Shown) -> dict[str, Any]:
    return {
        "width": image.width,
        "height": image.height,
        "jpeg": base64.b64encode(image.jpeg).decode(),
        "truth": _marks_to_json(image.truth),
        "found": {name: _marks_to_json(marks) for name, marks in image.found.items()},
    }


def _from_json(values: _Image) -> Shown:
    return Shown(
        width=values["width"],
        height=values["height"],
        jpeg=base64.b64decode(values["jpeg"], validate=True),
        truth=_marks_from_json(values["truth"]),
        found={name: _marks_from_json(marks) for name, marks in values["found"].items()},
    )


def _marks_to_json(marks: Sequence[Detection]) -> list[list[Any]]:
    return [[mark.label, round(mark.score, 3), *(round(edge, 1) for edge in mark.box)] for mark in marks]


def _marks_from_json(rows: Sequence[_Mark]) -> list[Detection]:
    return [Detection(label, (left, top, right, bottom), score) for label, score, left, top, right, bottom in rows]


def detections_gallery(result: Result, folder: Path) -> Gallery | None:
    """Return what the dense network and the one that ships detect on the images on which they differ most."""
    try:
        images = read_detections(folder)
    except RunError:  # a damaged file costs this section, not the report
        return None
    if not images:
        return None
    caption = (
        f"The {len(images)} of up to {LOOKED_AT} validation images on which the two differ most, the most different "
        "first; "
        "confidence from 0.25."
    )
    return Gallery("detections", "Detections", images, caption)
