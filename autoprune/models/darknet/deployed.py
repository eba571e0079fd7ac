"""A Darknet network as it is deployed: its batch norms folded, its boxes in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from autoprune.models.darknet.build import input_shape
from autoprune.models.darknet.network import DarknetNetwork


class Deployed(nn.Module):
    """A fused network in eval mode whose predictions have the layout of Ultralytics' detectors.

    Its attributes are what Ultralytics' exporter and validator read of a network.

    Args:
        network: copied.
        names: of its classes.
        stride: pixels per cell of its coarsest map.
        corners: whether boxes are corners, or else centre, width and height.
    """

    def __init__(self, network: DarknetNetwork, *, names: Sequence[str], stride: int, corners: bool = False) -> None:
        super().__init__()
        self.network = _fused(network)
        self.names = dict(enumerate(names))
        self.stride = torch.tensor([float(stride)])
        self.task = "detect"
        self.yaml: Mapping[str, Any] = {"yaml_file": network.cfg.file, "channels": input_shape(network.cfg).channels}
        self._corners = corners
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return box, in pixels of the input, and class scores: (B, C, H, W) → (B, 4 + classes, boxes)."""
        found = self.network(images)
        height, width = images.shape[2:]
        centre, extent = (part * part.new_tensor([width, height]) for part in (found[..., :2], found[..., 2:4]))
        pair = [centre - extent / 2, centre + extent / 2] if self._corners else [centre, extent]
        return torch.cat([*pair, found[..., 5:]], -1).transpose(1, 2)

    def fuse(self, *_: object, **__: object) -> Deployed:
        """Return the network, which is fused; Ultralytics' exporter calls this."""
        return self


def _fused(network: DarknetNetwork) -> DarknetNetwork:
    copy = deepcopy(network).eval()
    for _, layer in copy.convolutions():
        if layer.norm is not None:
            layer.conv, layer.norm = fuse_conv_bn_eval(layer.conv, layer.norm), None
    return copy
