"""Magnitude criteria: the norm of the weights that produce and consume a channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from autoprune.graph import ChannelGraph
from autoprune.importance._base import Importance


class MagnitudeImportance(Importance):
    """Lp norm of every filter and of every slice of a following layer that reads the channel.

    ‖w‖p over all dimensions but the channel's own (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017,
    section 3.1, for L1), summed over the group's convolutions and linear layers.

    Args:
        p: exponent of the norm, above 0.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        self.name = f"l{p:g}"

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[tuple[int, torch.Tensor]]:
        """Return ‖w‖p per channel for every weight with at least two dimensions."""
        state = module.state_dict()
        return [
            (axis, torch.linalg.vector_norm(weight.float().transpose(0, dimension).flatten(1), self.p, dim=1))
            for name, pairs in graph.tensors.items()
            if (weight := state[name]).ndim >= 2
            for dimension, axis in pairs
        ]
