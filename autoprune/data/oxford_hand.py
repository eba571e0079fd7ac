"""Oxford Hand: Mittal, Zisserman and Torr, "Hand detection using multiple proposals", BMVC 2011.

Its archive unpacks to ``hand_dataset``. Every image has a MATLAB file with a cell array ``boxes``; each cell is a
struct whose fields a, b, c and d are the corners (y, x) of a box rotated with the hand. The boxes here are the
axis-aligned hulls of the rotated ones, as detectors need.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.arrays import Array
from autoprune.data._base import Box, Published
from autoprune.errors import DataError, first_line
from autoprune.io.files import saying_why

FOLDERS = {
    "train": Path("training_dataset", "training_data"),
    "val": Path("validation_dataset", "validation_data"),
    "test": Path("test_dataset", "test_data"),
}
"""The folder of each split, which has the folders ``images`` and ``annotations``."""

_IMAGES, _ANNOTATIONS = (".jpg", ".jpeg", ".png"), (".mat",)
_CORNERS = ("a", "b", "c", "d")
_REMARK = "YOLOv3-model-pruning trains on train and val together: train: [images/train, images/val], val: images/test"


def oxford_hand(source: Path) -> Published:
    """Find the images and annotations of Oxford Hand.

    Args:
        source: the folder ``hand_dataset`` of the archive, or its parent.

    Raises:
        DataError: the folder has another layout, or a split is empty.
        RunError: a folder cannot be listed.
    """
    with saying_why(source, "read"):
        root = _root(source)
        found = {split: _paired(root / folder) for split, folder in FOLDERS.items()}
    for split, (pairs, _) in found.items():
        if not pairs:
            raise DataError(f"{root / FOLDERS[split]} must hold images with annotations of the same name, but has none")
    return Published(
        title="Oxford Hand",
        file="oxford-hand.yaml",
        remark=_REMARK,
        classes=("hand",),
        splits={split: pairs for split, (pairs, _) in found.items()},
        unpaired=tuple(chain.from_iterable(unpaired for _, unpaired in found.values())),
        read=_boxes,
    )


def hull(corners: Array) -> Box:
    """Return the axis-aligned box around corners.

    Args:
        corners: (y, x), shape (corners, 2), in MATLAB's coordinates: the centre of the first pixel is 1, so the image
            begins at 0.5.
    """
    (top, left), (bottom, right) = corners.min(axis=0) - 0.5, corners.max(axis=0) - 0.5
    return Box(0, float(left), float(top), float(right), float(bottom))


def _root(source: Path) -> Path:
    """Return the folder with the layout: the source itself or one in it."""
    if not source.is_dir():
        raise DataError(f"{source} must be the folder that Oxford Hand was unpacked to, but is no folder")
    for root in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
        if all((root / folder / kind).is_dir() for folder in FOLDERS.values() for kind in ("images", "annotations")):
            return root
    raise DataError(
        f"{source} is not Oxford Hand as it is unpacked: neither it nor a folder in it has "
        f"{', '.join(map(str, FOLDERS.values()))}, each with images and annotations"
    )


def _paired(folder: Path) -> tuple[dict[Path, Path], list[Path]]:
    """Return the images of a split with their annotations, and the unpaired files."""
    images, annotations = _files(folder / "images", _IMAGES), _files(folder / "annotations", _ANNOTATIONS)
    both = sorted(images.keys() & annotations.keys())
    unpaired = [path for stem, path in (*images.items(), *annotations.items()) if stem not in both]
    return {images[stem]: annotations[stem] for stem in both}, unpaired


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the files with these suffixes by their stems, without macOS's ``._`` files."""
    listed = sorted(folder.iterdir())
    return {path.stem: path for path in listed if path.suffix.lower() in suffixes and not path.name.startswith(".")}


def _boxes(annotation: Path) -> list[Box]:
    """Return the boxes of an annotation; none for a background image."""
    from scipy.io import loadmat

    try:
        content = loadmat(annotation, variable_names=["boxes"])
        if "boxes" not in content:
            raise ValueError("it has no variable boxes")
        return [_box(cell) for cell in content["boxes"].flat]
    except Exception as error:  # scipy's parser raises many classes
        reason = first_line(error)
        raise DataError(f"The annotation {annotation} cannot be read: {reason}") from error


def _box(cell: Any) -> Box:
    """Return the hull of one cell: a 1×1 struct array, whose fields are arrays of two numbers."""
    names = getattr(getattr(cell, "dtype", None), "names", None) or ()
    if not set(_CORNERS) <= set(names):
        got = f"the fields {', '.join(names)}" if names else "no struct"
        raise ValueError(f"a box must be a struct with the corners {', '.join(_CORNERS)}, got {got}")
    corners = np.array([np.ravel(cell[name].item()) for name in _CORNERS], dtype=np.float64)
    if corners.shape != (len(_CORNERS), 2) or not np.isfinite(corners).all():
        raise ValueError(f"a corner must be two finite numbers, got {corners.tolist()}")
    return hull(corners)
