"""A bundled detector and its data set, to try autoprune without a download.

It does not import torch: the command line needs the paths only.
"""

from __future__ import annotations

from pathlib import Path

from autoprune.demo.shapes import DEMO_IMAGE_SIZE, DEMO_SIZES, shapes_dataset

__all__ = ["DEMO_IMAGE_SIZE", "DEMO_SIZES", "demo_weights", "shapes_dataset"]


def demo_weights() -> Path:
    """Return the path of the demo detector, a stock Ultralytics checkpoint trained on `shapes_dataset()`."""
    return Path(__file__).with_name("yolov8-demo.pt")
