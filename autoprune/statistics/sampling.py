"""Sample what a layer reads at random positions of its output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from autoprune.statistics.layers import Reader

POINTS = 10
"""Places per image (Luo et al., "ThiNet", ICCV 2017, section 4; He et al., "Channel Pruning", ICCV 2017, section 4)."""


class SampledPositions:
    """Draws the same places of a layer's output for the same shapes.

    Args:
        seed: of the places.
        points: places per image.
    """

    def __init__(self, *, seed: int, points: int = POINTS) -> None:
        self._seed, self._points = seed, points

    def patches(self, layer: Reader, inputs: torch.Tensor) -> torch.Tensor:
        """Return what a layer reads at the places, shape (images × points, channels, kernel positions)."""
        if isinstance(layer, nn.Linear):
            return inputs.reshape(-1, inputs.shape[-1], 1)
        rows, columns = self._drawn(layer, inputs)
        stride, dilation = layer.stride, layer.dilation
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
        found = [
            padded[..., rows * stride[0] + y * dilation[0], columns * stride[1] + x * dilation[1]]
            for y in range(layer.kernel_size[0])
            for x in range(layer.kernel_size[1])
        ]
        stacked = torch.stack(found, dim=-1)  # images, channels, points, kernel positions
        return stacked.transpose(1, 2).flatten(0, 1)

    def values(self, layer: Reader, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return what a layer gives at the same places, shape (images × points, out channels)."""
        if isinstance(layer, nn.Linear):
            return output.reshape(-1, output.shape[-1])
        rows, columns = self._drawn(layer, inputs)
        return output[:, :, rows, columns].transpose(1, 2).flatten(0, 1)

    def _drawn(self, layer: nn.modules.conv._ConvNd, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right, top, bottom = layer._reversed_padding_repeated_twice
        height, width = inputs.shape[-2] + top + bottom, inputs.shape[-1] + left + right
        tall = (height - layer.dilation[0] * (layer.kernel_size[0] - 1) - 1) // layer.stride[0] + 1
        wide = (width - layer.dilation[1] * (layer.kernel_size[1] - 1) - 1) // layer.stride[1] + 1
        generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.randint(0, tall * wide, (self._points,), generator=generator).to(inputs.device)
        return drawn // wide, drawn % wide
