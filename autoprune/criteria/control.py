"""Score channels at random, as a control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from autoprune.criteria._base import ChannelScores, Importance
from autoprune.structure.graph import ChannelGraph


class RandomImportance(Importance):
    """Random scores: what every criterion must beat (Mittal et al., "Recovering from Random Pruning", WACV 2018)."""

    name = "random"

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return one random score per channel of every group."""
        generator = torch.Generator().manual_seed(0)
        return [
            ChannelScores(
                np.arange(group.offset, group.offset + group.size), torch.rand(group.size, generator=generator)
            )
            for group in graph.groups
        ]
