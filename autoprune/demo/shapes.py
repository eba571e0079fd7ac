"""The "shapes" data set, drawn from a seed: circles, squares and triangles on noise, in Ultralytics' format.

Positions and lengths are in pixels, with the origin at the top left corner of the top left pixel. Pictures are uint8
arrays, shape (height, width, 3), in OpenCV's order (blue, green, red).
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from autoprune.errors import DataError

DEMO_IMAGE_SIZE = 288
DEMO_SIZES = range(64, 641, 32)
"""Image sizes that the demo detector can run at, pixels."""

CLASSES = ("circle", "square", "triangle")

_VERSION = 1  # raise when the pictures change, so that no stale copy is taken from the cache
_LEAST_SIZE = 64
_JPEG_QUALITY = 92
_YAML = "shapes.yaml"
_CORNERS = (48, 4, 3)
_SHIFT = 4  # fractional bits of the coordinates handed to OpenCV
_LEAST_VISIBLE = 0.65  # share of a shape's area that later shapes must leave uncovered
_LEAST_CONTRAST = 30.0  # grey levels between a shape and the background, over the three colours

Picture = NDArray[np.uint8]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """A regular polygon or a circle.

    Attributes:
        class_id: index into `CLASSES`.
        x: centre, pixels from the left.
        y: centre, pixels from the top.
        radius: distance from the centre to the outline's corners, pixels.
        angle: rotation, radians.
    """

    class_id: int
    x: float
    y: float
    radius: float
    angle: float = 0.0

    def outline(self) -> Points:
        """Return the corners of the outline as x, y, shape (corners, 2)."""
        corners = _CORNERS[self.class_id]
        angles = self.angle + 2.0 * math.pi * np.arange(corners) / corners
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return np.asarray(around * self.radius + [self.x, self.y], dtype=np.float64)

    def box(self, size: int) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom of the outline within a picture of size × size pixels."""
        points = self.outline().clip(0.0, float(size))
        left, top = points.min(axis=0)
        right, bottom = points.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


def random_picture(rng: np.random.Generator, *, size: int) -> tuple[Picture, list[Shape]]:
    """Draw a picture of size × size pixels and return it with its shapes; it depends on `rng`'s state alone."""
    picture = _background(rng, size)
    for _ in range(int(rng.integers(2, 6))):
        _draw_distractor(picture, rng)
    shapes = _random_shapes(rng, size)
    for shape in shapes:
        draw_shape(picture, shape, colour=_colour(rng, picture, shape), thickness=_thickness(rng, shape))
    return _camera(picture, rng), shapes


def draw_shape(picture: Picture, shape: Shape, *, colour: tuple[float, ...], thickness: int | None = None) -> None:
    """Draw a shape onto a picture, in place.

    Args:
        picture: picture or mask, shape (height, width) or (height, width, 3).
        shape: the shape.
        colour: one value per channel of the picture, 0 to 255.
        thickness: width of the outline in pixels, inside the shape; None fills the shape.
    """
    _fill(picture, shape.outline(), colour)
    if thickness is None:
        return
    inner_radius = shape.radius - thickness / math.cos(math.pi / _CORNERS[shape.class_id])
    inner = Shape(shape.class_id, shape.x, shape.y, inner_radius, shape.angle)
    shade = tuple((value + 128.0) % 256.0 for value in colour)
    _fill(picture, inner.outline(), shade)


def _fill(picture: Picture, points: Points, colour: tuple[float, ...]) -> None:
    # OpenCV's coordinates are of pixel centres, ours of pixel corners.
    fixed = np.round((points - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(picture, [fixed], colour, lineType=cv2.LINE_AA, shift=_SHIFT)


def _random_shapes(rng: np.random.Generator, size: int) -> list[Shape]:
    """Return three to nine shapes in drawing order, none of them mostly hidden."""
    owner = np.full((size, size), -1, dtype=np.int16)
    areas: list[int] = []
    shapes: list[Shape] = []
    wanted = int(rng.integers(3, 10))
    for _ in range(4 * wanted):
        shape = _random_shape(rng, size)
        mask = np.zeros((size, size), dtype=np.uint8)
        _fill(mask, shape.outline(), (255,))
        covers = mask > 127
        candidate = np.where(covers, np.int16(len(shapes)), owner)
        visible = np.bincount(candidate.ravel() + 1, minlength=len(shapes) + 2)[1:]
        if all(visible[i] >= _LEAST_VISIBLE * area for i, area in enumerate(areas)):
            owner = candidate
            areas.append(int(covers.sum()))
            shapes.append(shape)
        if len(shapes) == wanted:
            break
    return shapes


def _random_shape(rng: np.random.Generator, size: int) -> Shape:
    """Return a shape 1/25 to 2/5 of the picture wide, small ones more often, partly outside the picture at times."""
    radius = size * math.exp(rng.uniform(math.log(0.025), math.log(0.21)))
    x, y = rng.uniform(0.6 * radius, size - 0.6 * radius, size=2)
    return Shape(int(rng.integers(len(CLASSES))), float(x), float(y), radius, float(rng.uniform(0.0, 2.0 * math.pi)))


def _colour(rng: np.random.Generator, picture: Picture, shape: Shape) -> tuple[float, ...]:
    """Return a colour with contrast to the picture around the shape's centre."""
    size = picture.shape[0]
    left, top, right, bottom = (int(value) for value in shape.box(size))
    around = picture[top : bottom + 1, left : right + 1].reshape(-1, 3).mean(axis=0)
    while True:
        colour = rng.uniform(0.0, 255.0, size=3)
        if np.linalg.norm(colour - around) >= _LEAST_CONTRAST:
            return tuple(float(value) for value in colour)


def _thickness(rng: np.random.Generator, shape: Shape) -> int | None:
    """Return the width of the outline for a quarter of the large shapes; None for filled ones."""
    if shape.radius < 12.0 or rng.random() > 0.25:
        return None
    return int(rng.integers(2, max(3, int(shape.radius * 0.3))))


def _background(rng: np.random.Generator, size: int) -> Picture:
    """Return smooth noise on several scales around a random colour."""
    field = np.zeros((size, size, 3), dtype=np.float32)
    for cells, strength in ((2, 40.0), (8, 22.0), (32, 12.0)):
        grid = rng.standard_normal((cells, cells, 3), dtype=np.float32) * np.float32(strength)
        field += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    field += rng.uniform(50.0, 205.0, size=3).astype(np.float32)
    return field.clip(0, 255).astype(np.uint8)


def _draw_distractor(picture: Picture, rng: np.random.Generator) -> None:
    """Draw a line or a flat ellipse: edges that belong to no object."""
    size = picture.shape[0]
    ends = [(int(x), int(y)) for x, y in rng.integers(0, size, size=(2, 2))]
    colour = tuple(float(value) for value in rng.uniform(0.0, 255.0, size=3))
    if rng.random() < 0.5:
        cv2.line(picture, ends[0], ends[1], colour, int(rng.integers(1, 5)), cv2.LINE_AA)
        return
    long = int(rng.integers(size // 20, size // 6))
    short = max(2, int(long * rng.uniform(0.15, 0.4)))
    cv2.ellipse(picture, ends[0], (long, short), float(rng.uniform(0.0, 180.0)), 0.0, 360.0, colour, -1, cv2.LINE_AA)


def _camera(picture: Picture, rng: np.random.Generator) -> Picture:
    """Return the picture with blur and noise of random strength."""
    blurred = cv2.GaussianBlur(picture, (0, 0), sigmaX=float(rng.uniform(0.3, 1.2)))
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(3.0, 16.0))
    return (blurred.astype(np.float32) + noise).clip(0, 255).astype(np.uint8)


def shapes_dataset(
    root: Path | None = None, *, train: int = 256, val: int = 96, size: int = DEMO_IMAGE_SIZE, seed: int = 0
) -> Path:
    """Return the path of the data set's YAML file; the data set is generated unless `root` has it already.

    The same arguments give byte-identical files. An interrupted run leaves no partial data set: everything is written
    to a temporary folder, which is renamed at the end.

    Args:
        root: folder of generated data sets; None for `$AUTOPRUNE_CACHE`, or else `~/.cache/autoprune`. The data set
            goes into a sub-folder named after the arguments.
        train: number of training images.
        val: number of validation images.
        size: height and width of an image, pixels.
        seed: of all random numbers.

    Raises:
        DataError: a number is out of range, or the folder cannot be written.
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
    """Rename `folder` to `final`, unless another process has done so already."""
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
    """Return YOLO's label of a shape: class, then centre x and y, width and height, as shares of the image."""
    left, top, right, bottom = shape.box(size)
    numbers = ((left + right) / 2.0, (top + bottom) / 2.0, right - left, bottom - top)
    return " ".join([str(shape.class_id), *(f"{number / size:.6f}" for number in numbers)])


def _yaml_text() -> str:
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES))
    return f"# Generated by autoprune.demo.shapes\ntrain: images/train\nval: images/val\nnames:\n{names}"
