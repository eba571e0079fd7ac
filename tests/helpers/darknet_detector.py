"""A tiny Darknet detector for 64×64 images of ``detectors.write_data``, with two heads."""

from __future__ import annotations

from pathlib import Path

import torch

from autoprune.models.darknet import DarknetAdapter, DarknetNetwork, Header, parse_cfg, write
from tests.helpers.detectors import write_data

SIZE = 64
HEADER = Header(0, 2, 5, 32_000)
CFG = """\
[net]
# two levels
width=64
height=64
channels=3
learning_rate=0.01
decay=0.0005

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
batch_normalize=1
filters=16
size=3
stride=1
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=24
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=7
size=1
activation=linear

[yolo]
mask=1
anchors=14,14, 22,22
classes=2
num=2

[route]
layers=-3

[upsample]
stride=2

[route]
layers=-1,3

[convolutional]
filters=7
size=1
activation=linear

[yolo]
mask=0
anchors=14,14, 22,22
classes=2
num=2
iou_loss=ciou
iou_normalizer=0.07
scale_x_y=1.1
"""


def build(text: str = CFG, *, seed: int = 0) -> DarknetNetwork:
    """Build the detector with random numbers, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DarknetNetwork(parse_cfg(text, "tiny.cfg")).eval()


def write_detector(folder: Path, text: str = CFG) -> Path:
    """Write ``tiny.cfg`` and ``tiny.weights``; return the cfg."""
    cfg = folder / "tiny.cfg"
    write(build(text), HEADER, cfg=cfg, weights=folder / "tiny.weights")
    return cfg


def load(folder: Path) -> DarknetAdapter:
    """Write the detector and a data set of 6 training images; return its adapter."""
    return DarknetAdapter.load(write_detector(folder), data=write_data(folder / "data"))
