"""A tiny Darknet network with a section of every kind, its numbers known without any file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from autoprune.models.darknet import DarknetNetwork, Header, parse_cfg, write
from autoprune.structure.graph import ChannelGraph

HEADER = Header(0, 2, 5, 64_000)

CFG = """\
[net]
# the tiny one
batch=1
width=96
height=64
channels=3
hue=.1

[convolutional]
batch_normalize=1
filters=16   # the first
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=16
size=3
pad=1
stride=1
activation=mish

# halves, as in YOLOv4-tiny
[route]
layers=-1
groups=2
group_id=1

[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=swish

[route]
layers = -1,-2

[convolutional]
batch_normalize=1
filters=16
size=1
stride=1
pad=1
activation=leaky

[route]
layers = -6,-1

[maxpool]
size=2
stride=2

[convolutional]
batch_normalize=1
filters=24
size=3
stride=2
pad=1
activation=relu

[convolutional]
batch_normalize=1
filters=24
groups=24
size=3
stride=1
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=24
size=1
stride=1
pad=1
activation=linear

[shortcut]
from=-3
activation=leaky

[maxpool]
size=2
stride=1

### SPP ###
[maxpool]
stride=1
size=3

[route]
layers=-2

[maxpool]
stride=1
size=5

[route]
layers=-1,-3,-4
### End SPP ###

[convolutional]
filters=21
size=1
stride=1
pad=1
activation=linear

[yolo]
mask = 1,2,3
anchors = 8,10,  12,20,  30,16,  40,44
classes=2
num=4
scale_x_y = 1.2
ignore_thresh = .7
beta_nms=0.6

[route]
layers = -3

[convolutional]
filters=16
size=1
stride=1
padding=0
activation=leaky

[upsample]
stride=2

[route]
layers = -1, 8

[convolutional]
size=3
stride=1
pad=1
filters=14
activation=logistic

[yolo]
mask = 0,1
anchors = 8,10,  12,20,  30,16,  40,44
classes=2
num=4
"""


def build(text: str = CFG) -> DarknetNetwork:
    """Build a network in eval mode; its numbers are exact in single precision and the same everywhere."""
    network = DarknetNetwork(parse_cfg(text, "tiny.cfg")).eval()
    start = 1
    with torch.no_grad():
        for _, layer in network.convolutions():
            for name, tensor in zip(("beta", "gamma", "mean", "variance", "weight"), layer.tensors(), strict=False):
                values = (torch.arange(start, start + tensor.numel()) * 7919 % 257 - 128) / 256  # in [-0.5, 0.5]
                if layer.norm is not None and name in ("gamma", "variance"):
                    values = values + 1
                tensor.copy_(values.view_as(tensor))
                start += tensor.numel()
    return network


def images(batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return images that are the same everywhere, values in [0, 1], shape (batch, 3, 64, 96)."""
    return (torch.arange(batch * 3 * 64 * 96) * 31 % 256).view(batch, 3, 64, 96).to(dtype) / 256


def write_files(network: DarknetNetwork, folder: Path, name: str = "tiny") -> tuple[Path, Path]:
    """Write a network; return the paths of cfg and weights."""
    paths = folder / f"{name}.cfg", folder / f"{name}.weights"
    write(network, HEADER, cfg=paths[0], weights=paths[1])
    return paths


def last_channels(module: nn.Module, graph: ChannelGraph) -> list[npt.NDArray[np.int64]]:
    """Hold the last channels of every group for the most important ones."""
    return [np.arange(group.size)[::-1] for group in graph.groups]
