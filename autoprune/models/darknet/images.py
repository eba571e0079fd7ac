"""Labelled images as Darknet gives them to a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import torch
from torch.nn import functional

from autoprune.models.detection.data_set import Label

_GREY = 0.5


def load_sample(label: Label, size: int) -> Mapping[str, Any]:
    """Load an image and its labels, letterboxed, as a sample of `detection.data_set.to_batch`.

    Raises:
        OSError: the image cannot be decoded.
    """
    pixels = cv2.imread(label["im_file"], cv2.IMREAD_COLOR)
    if pixels is None:
        raise OSError("its pixels cannot be decoded")
    image = torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(2, 0, 1).float() / 255
    boxed, (left, top, width, height) = letterbox(image, size)
    scale = torch.tensor([width, height, width, height]) / size
    boxes = torch.from_numpy(label["bboxes"]).float() * scale + torch.tensor([left, top, 0, 0]) / size
    return {
        "img": boxed * 255,
        "cls": torch.from_numpy(label["cls"]).float(),
        "bboxes": boxes,
        "batch_idx": torch.zeros(len(boxes)),
        "im_file": label["im_file"],
        "ori_shape": tuple(image.shape[1:]),
        "ratio_pad": ((height / image.shape[1], width / image.shape[2]), (left, top)),
    }


def letterbox(image: torch.Tensor, size: int) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
    """Scale an image into the middle of a grey square, as ``darknet detector valid`` does.

    Darknet, ``src/image.c``: ``letterbox_image``, ``resize_image`` (bilinear, corners on corners, sides rounded down).

    Args:
        image: shape (3, H, W), values in [0, 1].
        size: side of the square in pixels.

    Returns:
        The square, shape (3, size, size), and where the image lies in it: left, top, width, height in pixels.
    """
    height, width = image.shape[1:]
    longest = max(height, width)
    new_height, new_width = (max(1, side * size // longest) for side in (height, width))
    left, top = (size - new_width) // 2, (size - new_height) // 2
    boxed = torch.full((3, size, size), _GREY)
    boxed[:, top : top + new_height, left : left + new_width] = functional.interpolate(
        image[None], size=(new_height, new_width), mode="bilinear", align_corners=True
    )[0]
    return boxed, (left, top, new_width, new_height)
