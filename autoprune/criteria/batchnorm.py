"""Score channels by the magnitude of their batch norm scale γ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Ids
from autoprune.criteria._base import ChannelScores, Importance
from autoprune.errors import ModelError
from autoprune.statistics.layers import Norm
from autoprune.structure.graph import ChannelGraph


class BatchNormImportance(Importance):
    """Mean |γ| of a channel's batch norms (Liu et al., "Network Slimming", ICCV 2017, section 3).

    Not divided by the layer's mean: γ scales what has unit variance in every layer, and of a layer that sparsity
    training has switched off all channels are to score low. The mean, as a sum would raise channels that several
    layers add up to above those of one layer.
    """

    name = "bn"
    normalised = False

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return |γ| of every affine batch norm."""
        scales = [
            ChannelScores(ids, module.get_parameter(f"{path}.weight").abs())
            for path, ids in scaled_channels(module, graph)
        ]
        if not scales:
            raise ModelError("The criterion bn needs batch norm layers and this network has none; use `criterion` l1")
        norms = np.bincount(np.concatenate([one.channels for one in scales]), minlength=graph.channels)
        return [
            ChannelScores(one.channels, one.scores / torch.from_numpy(norms[one.channels]).to(one.scores))
            for one in scales
        ]


def scaled_channels(module: nn.Module, graph: ChannelGraph) -> Iterator[tuple[str, Ids]]:
    """Yield every affine batch norm on channels of the graph: its path, and the number of the channel of each γ."""
    for path, child in module.named_modules():
        if isinstance(child, Norm) and child.affine:
            for _, axis in graph.tensors.get(f"{path}.weight", ()):
                yield path, graph.axes[axis]
