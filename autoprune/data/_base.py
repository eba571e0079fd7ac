"""What a published data set holds, and how it is written as Ultralytics reads it.

Ultralytics looks for the labels of ``images/train/x.jpg`` in ``labels/train/x.txt``: one line per object, class, centre
x and y, width and height, as shares of the image.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from autoprune.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Box:
    """An object's upright box in pixels; the image spans 0 … width and 0 … height, so a pixel is 1 wide.

    Attributes:
        kind: index of its class.
        left: its least x.
        top: its least y.
        right: its largest x.
        bottom: its largest y.
    """

    kind: int
    left: float
    top: float
    right: float
    bottom: float

    def within(self, width: int, height: int) -> Box | None:
        """Return the part that lies in an image of this size, or None where that is less than a pixel wide or high."""
        left, right = (min(max(edge, 0.0), float(width)) for edge in (self.left, self.right))
        top, bottom = (min(max(edge, 0.0), float(height)) for edge in (self.top, self.bottom))
        return Box(self.kind, left, top, right, bottom) if min(right - left, bottom - top) >= 1 else None

    def label(self, width: int, height: int) -> str:
        """Return the line of a label file, for an image of this size."""
        across, down = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        shares = across / width, down / height, (self.right - self.left) / width, (self.bottom - self.top) / height
        return " ".join([str(self.kind), *(f"{share:.6f}" for share in shares)])


@dataclass(frozen=True)
class Published:
    """A data set as its authors publish it.

    Attributes:
        title: its name, for users.
        file: name of the YAML file that will describe it.
        remark: what a user who opens that file should know, one line.
        classes: names of the classes, in the order of their indices.
        splits: for each of ``SPLITS`` the images with the annotation of each, sorted.
        unpaired: images without an annotation, and annotations without an image; they are left out.
        read: returns the boxes of an annotation, or raises ``DataError``.
    """

    title: str
    file: str
    remark: str
    classes: tuple[str, ...]
    splits: Mapping[str, Mapping[Path, Path]]
    unpaired: Sequence[Path]
    read: Callable[[Path], Sequence[Box]]


@dataclass(frozen=True)
class Written:
    """What became of a split.

    Attributes:
        images: how many there are.
        objects: how many boxes they have.
        background: how many of the images have none; their label files are empty.
        dropped: boxes left out because less than a pixel of them lies within the image.
    """

    images: int
    objects: int
    background: int
    dropped: int


def write_split(published: Published, split: str, folder: Path, *, on_image: Callable[[], None]) -> Written:
    """Copy the images of a split into a folder and write their labels.

    Args:
        published: the data set.
        split: one of ``SPLITS``.
        folder: of the new data set.
        on_image: called after every image.

    Raises:
        DataError: an image or an annotation cannot be read.
        OSError: a file cannot be written.
    """
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    objects = background = dropped = 0
    for image, annotation in published.splits[split].items():
        size = _size(image)
        boxes = published.read(annotation)
        kept = [part for box in boxes if (part := box.within(*size)) is not None]
        shutil.copyfile(image, images / image.name)
        (labels / f"{image.stem}.txt").write_text("".join(part.label(*size) + "\n" for part in kept), encoding="utf-8")
        objects += len(kept)
        background += not kept
        dropped += len(boxes) - len(kept)
        on_image()
    return Written(len(published.splits[split]), objects, background, dropped)


def write_description(published: Published, folder: Path) -> None:
    """Write the YAML file; without a path of its own the data set may be moved."""
    lines = [f"# {published.title}, written by autoprune data.", f"# {published.remark}"]
    lines += [f"{split}: images/{split}" for split in SPLITS]
    lines += ["names:", *(f"  {index}: {name}" for index, name in enumerate(published.classes))]
    (folder / published.file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _size(image: Path) -> tuple[int, int]:
    """Return width and height of an image, in pixels."""
    try:
        with PIL.Image.open(image) as opened:
            return opened.size
    except OSError as error:
        reason = error.strerror or "it is of no known format"
        raise DataError(f"The image {image} cannot be read ({reason}); unpack the data set again") from error
