"""Load labelled images as Darknet does: letterboxed, or augmented for training."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from autoprune.image_size import ImageSize
from autoprune.models import stock
from autoprune.models.darknet.cfg import Cfg
from autoprune.models.detection.channels import COLOUR, check_image, reading_flag
from autoprune.models.detection.data_set import Label, Sample

_GREY = 0.5
_LEAST = 0.001
"""Least width and height of a label in an augmented image, as shares of the image (``fill_truth_detection``)."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the training augmentations of a cfg.

    Attributes:
        jitter: of width and height, as a share of them.
        hue: largest shift, as a share of the colour circle.
        saturation: largest factor; the smallest is its inverse.
        exposure: largest factor; the smallest is its inverse.
    """

    jitter: float
    hue: float
    saturation: float
    exposure: float

    @classmethod
    def of(cls, cfg: Cfg) -> Augmentation:
        """Read a cfg; defaults are those of ``parser.c``."""
        head = next(section for section in cfg.layers if section.name == "yolo")
        colours = (cfg.net.number(key, default) for key, default in (("hue", 0), ("saturation", 1), ("exposure", 1)))
        return cls(head.number("jitter", 0.2), *colours)


def load_sample(label: Label, size: ImageSize, channels: int = COLOUR) -> Sample:
    """Load an image and its labels, letterboxed to a size.

    Raises:
        OSError: the image cannot be decoded.
        DataError: it does not have ``channels`` channels.
    """
    image = _read(label, channels)
    height, width = image.shape[:2]
    boxed, (left, top, new_width, new_height) = letterbox(torch.from_numpy(image).permute(2, 0, 1), size)
    sides = np.array([new_width, new_height, new_width, new_height])
    boxes = (label["bboxes"] * sides + (left, top, 0, 0)) / _corner(size)
    ratio_pad = ((new_height / height, new_width / width), (left, top))
    return _sample(label, boxed, boxes, label["cls"], (height, width), ratio_pad)


def load_augmented(
    label: Label, size: ImageSize, augmentation: Augmentation, *, random: np.random.Generator, channels: int = COLOUR
) -> Sample:
    """Load an image as Darknet trains on it: stretched, scaled, moved, recoloured if it has colours, mirrored.

    Darknet, ``src/data.c``: ``load_data_detection``; ``src/image.c``: ``random_distort_image``.

    Args:
        label: the image.
        size: of the result.
        augmentation: strengths.
        random: source of the random numbers.
        channels: of the image.

    Raises:
        OSError: the image cannot be decoded.
        DataError: it does not have ``channels`` channels.
    """
    image = _read(label, channels)
    height, width = image.shape[:2]
    jitter = 1 + random.uniform(-augmentation.jitter, augmentation.jitter, 2)
    aspect, scale = width * jitter[0] / (height * jitter[1]), random.uniform(0.25, 2)
    new_width, new_height = (side * scale for side in (size.width, size.height))
    sides = np.array([new_height * aspect, new_height] if aspect < 1 else [new_width, new_width / aspect])
    room = (size.width, size.height) - sides
    offset = random.uniform(np.minimum(0, room), np.maximum(0, room))
    placing = np.array([[sides[0] / width, 0, offset[0]], [0, sides[1] / height, offset[1]]])
    placed = np.asarray(cv2.warpAffine(image, placing, size[::-1], borderValue=(_GREY,) * 4), dtype=np.float32)
    placed = _recoloured(placed, augmentation, random) if channels == COLOUR else placed.reshape(*size, channels)
    corner = _corner(size)
    boxes = label["bboxes"] * np.tile(sides, 2) / corner + np.append(offset, (0, 0)) / corner
    if random.random() < 0.5:
        placed, boxes[:, 0] = placed[:, ::-1], 1 - boxes[:, 0]
    low, high = ((boxes[:, :2] + sign * boxes[:, 2:] / 2).clip(0, 1) for sign in (-1, 1))
    left = (high - low > _LEAST).all(1)
    boxes = np.concatenate([(low + high) / 2, high - low], 1)[left]
    pixels = torch.from_numpy(np.ascontiguousarray(placed)).permute(2, 0, 1)
    return _sample(label, pixels, boxes, label["cls"][left], (height, width), ((1.0, 1.0), (0, 0)))


def letterbox(image: torch.Tensor, size: ImageSize) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
    """Scale an image into the middle of a grey one, as ``darknet detector valid`` does.

    Darknet, ``src/image.c``: ``letterbox_image``, ``resize_image`` (bilinear, corners on corners, sides rounded down).

    Args:
        image: shape (C, H, W), values in [0, 1].
        size: of the result.

    Returns:
        The result, shape (C, *size), and the image's place in it: left, top, width, height in pixels.
    """
    channels, height, width = image.shape
    if size.width * height < size.height * width:
        new_width, new_height = size.width, max(1, height * size.width // width)
    else:
        new_width, new_height = max(1, width * size.height // height), size.height
    left, top = (size.width - new_width) // 2, (size.height - new_height) // 2
    boxed = torch.full((channels, *size), _GREY)
    boxed[:, top : top + new_height, left : left + new_width] = functional.interpolate(
        image[None], size=(new_height, new_width), mode="bilinear", align_corners=True
    )[0]
    return boxed, (left, top, new_width, new_height)


def _corner(size: ImageSize) -> npt.NDArray[np.int64]:
    """Return width, height, width, height: what boxes in pixels are divided by."""
    return np.array([size.width, size.height] * 2)


def _read(label: Label, channels: int) -> Floats:
    """Return an image, shape (H, W, channels), values in [0, 1]: grey, RGB, RGBA, or its bands in their order."""
    pixels = stock.imread(label["im_file"], reading_flag(channels))
    if pixels is None:
        raise OSError("its pixels cannot be decoded")
    check_image(label["im_file"], pixels.shape[2], channels)
    if channels in _REORDERED:
        pixels = cv2.cvtColor(pixels, _REORDERED[channels])
    return np.asarray(pixels, dtype=np.float32) / np.float32(255)


_REORDERED = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
"""Conversion from OpenCV's order of channels to Darknet's (``src/image_opencv.cpp``: ``load_image_mat_cv``)."""


def _recoloured(image: Floats, augmentation: Augmentation, random: np.random.Generator) -> Floats:
    """Shift the hue, scale saturation and exposure."""
    hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))  # hue in degrees, the others in [0, 1]
    hsv[..., 0] = (hsv[..., 0] + 360 * random.uniform(-augmentation.hue, augmentation.hue)) % 360
    for channel, most in ((1, augmentation.saturation), (2, augmentation.exposure)):
        factor = random.uniform(1, most)
        hsv[..., channel] = (hsv[..., channel] * (factor if random.random() < 0.5 else 1 / factor)).clip(0, 1)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.float32)


def _sample(
    label: Label,
    image: torch.Tensor,
    boxes: npt.NDArray[np.floating],
    class_ids: npt.NDArray[np.floating],
    shape: tuple[int, int],
    ratio_pad: tuple[tuple[float, float], tuple[int, int]],
) -> Sample:
    """Return a sample as `detection.data_set.to_batch` takes it."""
    return {
        "img": image * 255,
        "cls": torch.from_numpy(class_ids).float(),
        "bboxes": torch.from_numpy(boxes).float(),
        "batch_idx": torch.zeros(len(boxes)),
        "im_file": label["im_file"],
        "ori_shape": shape,
        "ratio_pad": ratio_pad,
    }
