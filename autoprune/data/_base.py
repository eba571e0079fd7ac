"""Published data sets, and writing them in Ultralytics' format.

The labels of ``images/train/x.jpg`` are in ``labels/train/x.txt``, one line per object: class, centre x and y, width
and height, as shares of the image.
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
    """An object's axis-aligned box in pixels; the image spans 0 … width and 0 … height, so a pixel is 1 wide.

    Attributes:
        class_id: index of its class.
        left: smallest x.
        top: smallest y.
        right: largest x.
        bottom: largest y.
    """

    class_id: int
    left: float
    top: float
    right: float
    bottom: float

    def within(self, width: int, height: int) -> Box | None:
        """Return the part within an image of this size, or None if it is less than a pixel wide or high."""
        left, right = (min(max(edge, 0.0), float(width)) for edge in (self.left, self.right))
        top, bottom = (min(max(edge, 0.0), float(height)) for edge in (self.top, self.bottom))
        return Box(self.class_id, left, top, right, bottom) if min(right - left, bottom - top) >= 1 else None

    def label(self, width: int, height: int) -> str:
        """Return the line of a label file, for an image of this size."""
        across, down = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        shares = across / width, down / height, (self.right - self.left) / width, (self.bottom - self.top) / height
        return " ".join([str(self.class_id), *(f"{share:.6f}" for share in shares)])


@dataclass(frozen=True)
class Published:
    """A data set in its authors' layout.

    Attributes:
        title: its name in messages.
        file: name of the new YAML file.
        remark: comment for the YAML file, one line.
        classes: names of the classes, in the order of their indices.
        splits: for each of ``SPLITS`` the images with their annotations, sorted.
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
    """Counts of a written split.

    Attributes:
        images: number of images.
        objects: number of boxes.
        background: number of images without boxes; their label files are empty.
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
    """Write the YAML file, with relative paths, so that the data set can be moved."""
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
