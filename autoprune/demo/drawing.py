"""Draws the pictures of the "shapes" data set: what is in them, and where.

Positions and lengths are in pixels, with the origin at the top left corner of the top left pixel.
Pictures are uint8 arrays [height, width, 3] in OpenCV's order (blue, green, red).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES = ("circle", "square", "triangle")

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
        kind: Index into `CLASSES`.
        x: Centre, pixels from the left.
        y: Centre, pixels from the top.
        radius: Distance from the centre to the outline's corners, pixels.
        angle: Rotation, radians.
    """

    kind: int
    x: float
    y: float
    radius: float
    angle: float = 0.0

    def outline(self) -> Points:
        """Corners of the outline, [n, 2] as x, y."""
        corners = _CORNERS[self.kind]
        angles = self.angle + 2.0 * math.pi * np.arange(corners) / corners
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return np.asarray(around * self.radius + [self.x, self.y], dtype=np.float64)

    def box(self, size: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the outline within a picture of size x size pixels."""
        points = self.outline().clip(0.0, float(size))
        left, top = points.min(axis=0)
        right, bottom = points.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


def random_picture(rng: np.random.Generator, *, size: int) -> tuple[Picture, list[Shape]]:
    """A picture of size x size pixels and the shapes in it, a function of `rng`'s state alone."""
    picture = _background(rng, size)
    for _ in range(int(rng.integers(2, 6))):
        _draw_distractor(picture, rng)
    shapes = _random_shapes(rng, size)
    for shape in shapes:
        draw_shape(picture, shape, colour=_colour(rng, picture, shape), thickness=_thickness(rng, shape))
    return _camera(picture, rng), shapes


def draw_shape(picture: Picture, shape: Shape, *, colour: tuple[float, ...], thickness: int | None = None) -> None:
    """Draw onto `picture`, in place.

    Args:
        picture: Picture or mask, [height, width] or [height, width, 3].
        shape: What to draw.
        colour: One value per colour of the picture, 0 to 255.
        thickness: Width of the outline, pixels, laid inside the shape; None fills the shape.
    """
    _fill(picture, shape.outline(), colour)
    if thickness is None:
        return
    inner_radius = shape.radius - thickness / math.cos(math.pi / _CORNERS[shape.kind])
    inner = Shape(shape.kind, shape.x, shape.y, inner_radius, shape.angle)
    shade = tuple((value + 128.0) % 256.0 for value in colour)
    _fill(picture, inner.outline(), shade)


def _fill(picture: Picture, points: Points, colour: tuple[float, ...]) -> None:
    # OpenCV's coordinates name pixel centres; ours start at the corner of a pixel.
    fixed = np.round((points - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(picture, [fixed], colour, lineType=cv2.LINE_AA, shift=_SHIFT)


def _random_shapes(rng: np.random.Generator, size: int) -> list[Shape]:
    """Three to nine shapes, none of them mostly hidden, in the order in which they are drawn."""
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
    """A shape 1/25 to 2/5 of the picture wide, small ones more often; it may leave the picture a little."""
    radius = size * math.exp(rng.uniform(math.log(0.025), math.log(0.21)))
    x, y = rng.uniform(0.6 * radius, size - 0.6 * radius, size=2)
    return Shape(int(rng.integers(len(CLASSES))), float(x), float(y), radius, float(rng.uniform(0.0, 2.0 * math.pi)))


def _colour(rng: np.random.Generator, picture: Picture, shape: Shape) -> tuple[float, ...]:
    """A colour that differs from the picture around the shape's centre."""
    size = picture.shape[0]
    left, top, right, bottom = (int(value) for value in shape.box(size))
    around = picture[top : bottom + 1, left : right + 1].reshape(-1, 3).mean(axis=0)
    while True:
        colour = rng.uniform(0.0, 255.0, size=3)
        if np.linalg.norm(colour - around) >= _LEAST_CONTRAST:
            return tuple(float(value) for value in colour)


def _thickness(rng: np.random.Generator, shape: Shape) -> int | None:
    """A quarter of the shapes that are large enough have an inner part of another colour."""
    if shape.radius < 12.0 or rng.random() > 0.25:
        return None
    return int(rng.integers(2, max(3, int(shape.radius * 0.3))))


def _background(rng: np.random.Generator, size: int) -> Picture:
    """Smooth noise on several scales around a random colour."""
    field = np.zeros((size, size, 3), dtype=np.float32)
    for cells, strength in ((2, 40.0), (8, 22.0), (32, 12.0)):
        grid = rng.standard_normal((cells, cells, 3), dtype=np.float32) * np.float32(strength)
        field += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    field += rng.uniform(50.0, 205.0, size=3).astype(np.float32)
    return field.clip(0, 255).astype(np.uint8)


def _draw_distractor(picture: Picture, rng: np.random.Generator) -> None:
    """A line or a flat ellipse: something with edges that is no shape to be found."""
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
    """Blur and noise, of random strength."""
    blurred = cv2.GaussianBlur(picture, (0, 0), sigmaX=float(rng.uniform(0.3, 1.2)))
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(3.0, 16.0))
    return (blurred.astype(np.float32) + noise).clip(0, 255).astype(np.uint8)
