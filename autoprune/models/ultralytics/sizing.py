"""Training images of any height and width; Ultralytics' own training makes squares."""

from __future__ import annotations

from typing import Any

import cv2

from autoprune.image_size import ImageSize
from autoprune.models import stock


def fit(image: Any, size: ImageSize) -> Any:
    """Return an image, shape (H, W, channels), scaled down to fit into a size; it is not padded."""
    height, width, channels = image.shape
    ratio = min(size.height / height, size.width / width)
    if ratio >= 1:
        return image
    sides = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return cv2.resize(image, sides, interpolation=cv2.INTER_LINEAR).reshape(*sides[::-1], channels)


def augment_to(size: ImageSize, transform: Any) -> None:
    """Let Ultralytics' augmentations of a square, whose side is the size's longer one, give images of the size.

    The four images of a mosaic meet in a point of the canvas. It lies as far from the centre as in a mosaic of the
    size: up to half its height and half its width. The affine transformation then cuts the size out.

    Args:
        size: of the images.
        transform: of Ultralytics' ``v8_transforms``; changed in place.
    """
    if isinstance(transform, stock.Mosaic):
        transform.border = tuple(side // 2 - size.longest for side in size)
    if isinstance(transform, stock.RandomPerspective):
        transform.size = (size.width, size.height)
    if isinstance(transform, stock.Compose):
        for part in transform.transforms:
            augment_to(size, part)
    if getattr(transform, "pre_transform", None) is not None:
        augment_to(size, transform.pre_transform)
