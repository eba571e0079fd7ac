"""A detector and a data set to try autoprune on, with nothing to download.

Imports no torch: the command line asks for paths only.
"""

from __future__ import annotations

from pathlib import Path

from autoprune.demo.shapes import DEMO_IMAGE_SIZE, shapes_dataset

__all__ = ["DEMO_IMAGE_SIZE", "demo_weights", "shapes_dataset"]


def demo_weights() -> Path:
    """Path of the demo detector: a stock Ultralytics checkpoint, trained on `shapes_dataset()`."""
    return Path(__file__).with_name("yolov8-demo.pt")
