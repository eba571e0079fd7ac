"""Score channels by the norm of the weights that produce and consume them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from autoprune.criteria._base import ChannelScores, Importance, weights
from autoprune.errors import ConfigError
from autoprune.structure.graph import ChannelGraph


class MagnitudeImportance(Importance):
    """Lp norm of every filter and of every slice of a following layer that reads the channel.

    ‖w‖p over all dimensions but the channel's own (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017,
    section 3.1, for L1), summed over the group's convolutions and linear layers.

    Args:
        p: exponent of the norm, above 0.

    Raises:
        ConfigError: p is not above 0.
    """

    def __init__(self, p: float) -> None:
        if not 0 < p < float("inf"):
            raise ConfigError(f"The exponent of a norm must be a number above 0, got {p:g}")
        self.p = p
        self.name = f"l{p:g}"

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return ‖w‖p per channel for every weight."""
        return [
            ChannelScores(channels, torch.linalg.vector_norm(rows, self.p, dim=1))
            for channels, rows in weights(module, graph)
        ]
