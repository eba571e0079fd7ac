"""A tiny detector with stock classes and a data set of coloured boxes, both made in a moment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import yaml

from autoprune.models.ultralytics import stock
from autoprune.models.ultralytics.checkpoint import write_checkpoint

NAMES = {0: "green", 1: "blue"}
IMAGE_SIZE = 64


def tiny_yaml(width: int = 16, **extra: object) -> dict[str, Any]:
    """A two-level YOLOv8 in miniature; stride 16."""
    return {
        "nc": len(NAMES),
        "backbone": [
            [-1, 1, "Conv", [8, 3, 2]],
            [-1, 1, "Conv", [width, 3, 2]],
            [-1, 1, "C2f", [width, True]],
            [-1, 1, "Conv", [width, 3, 2]],
            [-1, 1, "Conv", [width + 8, 3, 2]],
            [-1, 1, "SPPF", [width + 8, 5]],
        ],
        "head": [
            [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
            [[-1, 3], 1, "Concat", [1]],
            [-1, 1, "C2f", [width]],
            [[8, 5], 1, "Detect", ["nc"]],
        ],
        **extra,
    }


def build(width: int = 16, *, seed: int = 0, channels: int = 3, **extra: object) -> Any:
    """Build the tiny detector with random weights, in eval mode."""
    with torch.random.fork_rng(), stock.quiet():
        torch.manual_seed(seed)
        network = stock.DetectionModel(tiny_yaml(width, **extra), ch=channels, verbose=False)
    network.names = dict(NAMES)
    network.args = stock.get_cfg()
    return network.eval()


def write_detector(path: Path, network: Any = None, *, train_args: Mapping[str, object] | None = None) -> Path:
    """Write a stock checkpoint of the tiny detector."""
    network = build() if network is None else network
    write_checkpoint(network, path, train_args=train_args or {"imgsz": IMAGE_SIZE, "task": "detect"})
    return path


def write_data(
    folder: Path,
    *,
    images: int = 6,
    suffix: str = ".png",
    splits: tuple[str, ...] = ("train", "val"),
    channels: int = 3,
) -> Path:
    """Write a data set of 64×48 images with two boxes each, laid out as Ultralytics expects; return its YAML file.

    Images of other channels than 3 and 1 have those of the colour image over and over; above 4 their suffix is .tiff.
    """
    random = np.random.default_rng(0)
    for split in splits:
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(images):
            image, rows = np.full((48, 64, 3), 40, np.uint8), []
            for kind in (0, 1):
                width, height = (int(side) for side in random.integers(12, 24, 2))
                x, y = int(random.integers(64 - width)), int(random.integers(48 - height))
                image[y : y + height, x : x + width] = (60, 255, 60) if kind == 0 else (255, 60, 60)
                rows.append(f"{kind} {(x + width / 2) / 64} {(y + height / 2) / 48} {width / 64} {height / 48}")
            write_image(folder / "images" / split / f"{index}{suffix}", image, channels)
            (folder / "labels" / split / f"{index}.txt").write_text("\n".join(rows) + "\n")
    named = {} if channels == 3 else {"channels": channels}
    return write_yaml(folder / "data.yaml", {**{split: f"images/{split}" for split in splits}, "names": NAMES, **named})


def write_image(file: Path, image: npt.NDArray[np.uint8], channels: int) -> None:
    """Write a colour image with as many channels; more than 4 are the pages of a TIFF file."""
    if channels == 1:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    elif channels != 3:
        image = image[..., np.arange(channels) % 3]
    pages = [np.ascontiguousarray(page) for page in image.transpose(2, 0, 1)] if channels > 4 else [image]
    assert cv2.imwritemulti(str(file), pages) if channels > 4 else cv2.imwrite(str(file), image)


def write_yaml(path: Path, content: Mapping[str, object]) -> Path:
    """Write a data set's YAML file."""
    path.write_text(yaml.safe_dump(dict(content)))
    return path
