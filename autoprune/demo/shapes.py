"""The "shapes" data set: drawn here from a seed, nothing to download.

Circles, squares and triangles of many sizes, colours and angles, some of them partly hidden, on
noisy backgrounds. Laid out as Ultralytics expects it: images and labels of a train and a val
split, and a YAML file next to them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

from autoprune.demo.drawing import CLASSES, Shape, random_picture
from autoprune.errors import DataError

DEMO_IMAGE_SIZE = 288

_VERSION = 1  # raise when the pictures change, so that no stale copy is taken from the cache
_LEAST_SIZE = 64
_JPEG_QUALITY = 92
_YAML = "shapes.yaml"


def shapes_dataset(
    root: Path | None = None, *, train: int = 256, val: int = 96, size: int = DEMO_IMAGE_SIZE, seed: int = 0
) -> Path:
    """The data set's YAML file; the data set is generated unless `root` holds it already.

    The same arguments give byte-identical files. A run that is killed leaves no half-written data
    set: everything is written to a temporary folder, which is renamed at the end.

    Args:
        root: Folder that holds generated data sets; None for `$AUTOPRUNE_CACHE`, or else
            `~/.cache/autoprune`. The data set goes into a sub-folder named after the arguments.
        train: Number of training images.
        val: Number of validation images.
        size: Height and width of an image, pixels.
        seed: Everything random follows from it.

    Returns:
        Path of `shapes.yaml`.

    Raises:
        DataError: A number is out of range, or the folder cannot be written.
    """
    _check(train=train, val=val, size=size, seed=seed)
    root = _default_root() if root is None else Path(root)
    final = root / f"shapes-v{_VERSION}-{train}-{val}-{size}px-seed{seed}"
    if not (final / _YAML).is_file():
        try:
            _generate(final, counts={"train": train, "val": val}, size=size, seed=seed)
        except OSError as error:
            raise DataError(
                f"the shapes data set must be writable, but {root} refused it ({error}); "
                "set AUTOPRUNE_CACHE to a folder that can be written"
            ) from error
    return final / _YAML


def _check(*, train: int, val: int, size: int, seed: int) -> None:
    for name, value, least in (("train", train, 1), ("val", val, 1), ("size", size, _LEAST_SIZE), ("seed", seed, 0)):
        if value < least:
            raise DataError(f"{name} of the shapes data set must be at least {least}, got {value}")


def _default_root() -> Path:
    cache = os.environ.get("AUTOPRUNE_CACHE")
    return Path(cache) if cache else Path.home() / ".cache" / "autoprune"


def _generate(final: Path, *, counts: dict[str, int], size: int, seed: int) -> None:
    """Write the data set into a temporary folder next to `final`, then put it in place."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
        folder = Path(scratch) / final.name
        for number, (split, count) in enumerate(counts.items()):
            _write_split(folder, split, (seed, number), count=count, size=size)
        (folder / _YAML).write_text(_yaml_text(), encoding="utf-8")
        _put_in_place(folder, final)


def _put_in_place(folder: Path, final: Path) -> None:
    """Rename `folder` to `final`; another process may have been faster, which is as good."""
    if final.exists() and not (final / _YAML).is_file():
        shutil.rmtree(final)  # not ours: this module never leaves a data set without its YAML
    try:
        folder.rename(final)
    except OSError:
        if not (final / _YAML).is_file():
            raise


def _write_split(folder: Path, split: str, stream: tuple[int, int], *, count: int, size: int) -> None:
    """Write images and labels of one split; image i depends on `stream` and i alone."""
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(count):
        picture, shapes = random_picture(np.random.default_rng([*stream, index]), size=size)
        done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        if not done:
            raise DataError(f"OpenCV must be able to write JPEG images, but refused {split} image {index}")
        (images / f"{index:05d}.jpg").write_bytes(data.tobytes())
        text = "".join(label_line(shape, size=size) + "\n" for shape in shapes)
        (labels / f"{index:05d}.txt").write_text(text, encoding="utf-8")


def label_line(shape: Shape, *, size: int) -> str:
    """YOLO's label of a shape: class, then centre x and y, width and height, as shares of the image."""
    left, top, right, bottom = shape.box(size)
    numbers = ((left + right) / 2.0, (top + bottom) / 2.0, right - left, bottom - top)
    return " ".join([str(shape.kind), *(f"{number / size:.6f}" for number in numbers)])


def _yaml_text() -> str:
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES))
    return f"# Generated by autoprune.demo.shapes\ntrain: images/train\nval: images/val\nnames:\n{names}"
