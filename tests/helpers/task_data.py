"""Small data sets for every task of Ultralytics: a drawn, turned rectangle per image, bright or dark by its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import yaml

NAMES = ("bright", "dark")
KEYPOINTS = [4, 3]
"""The corners, each with whether it can be seen."""

Corners = npt.NDArray[np.float64]
"""Shape (4, 2), as shares of the image."""


def write_task_data(folder: Path, task: str, *, images: int = 4, size: int = 64) -> Path:
    """Write a train and a val split, and return what ``--data`` takes.

    Args:
        folder: where to; it is made.
        task: Ultralytics' name of it.
        images: in each split, of which every other one is of the same class.
        size: of the images, in pixels.
    """
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(images):
            kind, corners = index % len(NAMES), _corners(rng)
            picture = _drawn(kind, corners, size, rng)
            if task == "classify":
                _write(picture, folder / split / NAMES[kind] / f"{index}.png")
            else:
                _write(picture, folder / "images" / split / f"{index}.png")
                label = folder / "labels" / split / f"{index}.txt"
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text(" ".join([str(kind), *(f"{value:.5f}" for value in LABELS[task](corners))]) + "\n")
    if task == "classify":
        return folder
    described = {"path": str(folder), "train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES))}
    extra = {"kpt_shape": KEYPOINTS, "flip_idx": [1, 0, 3, 2]} if task == "pose" else {}
    (folder / "data.yaml").write_text(yaml.safe_dump({**described, **extra}))
    return folder / "data.yaml"


def add_backgrounds(folder: Path, images: int, *, size: int = 64) -> None:
    """Add images of noise to the train split in a folder, with empty files of labels."""
    rng = np.random.default_rng(1)
    for index in range(images):
        picture = rng.integers(96, 160, (size, size, 3)).astype(np.uint8)
        _write(picture, folder / "images" / "train" / f"background{index}.png")
        (folder / "labels" / "train" / f"background{index}.txt").write_text("\n")


def _corners(rng: np.random.Generator) -> Corners:
    """Return a rectangle of any direction that lies within the image."""
    width, height = rng.uniform(0.3, 0.5, 2)
    angle, centre = rng.uniform(0, np.pi / 2), rng.uniform(0.42, 0.58, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    flat = np.array([[-width, -height], [width, -height], [width, height], [-width, height]]) / 2
    return np.clip(flat @ turn.T + centre, 0.02, 0.98)


def _drawn(kind: int, corners: Corners, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    picture = rng.integers(96, 160, (size, size, 3)).astype(np.uint8)
    cv2.fillPoly(picture, [np.round(corners * size).astype(np.int32)], [(230, 230, 230), (20, 20, 20)][kind])
    return picture


def _write(picture: npt.NDArray[np.uint8], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), picture)


def _box(corners: Corners) -> list[float]:
    low, high = corners.min(0), corners.max(0)
    return [*((low + high) / 2), *(high - low)]


def _polygon(corners: Corners) -> list[float]:
    return list(corners.flatten())


def _points(corners: Corners) -> list[float]:
    return [*_box(corners), *np.column_stack([corners, np.full(4, 2.0)]).flatten()]


LABELS: Mapping[str, Callable[[Corners], list[float]]] = {
    "detect": _box,
    "segment": _polygon,
    "pose": _points,
    "obb": _polygon,
}
"""By task, what follows the class in a line of labels."""
