"""Score filters by their distance to all others (FPGM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from autoprune.criteria._base import ChannelScores, Importance, weights
from autoprune.structure.graph import ChannelGraph


class GeometricMedianImportance(Importance):
    """Sum of the distances to all other filters of the layer.

    He et al., "Filter Pruning via Geometric Median", CVPR 2019, equation 6: Σ_j ‖w_i − w_j‖₂.
    The filter with the least sum is nearest to the layer's geometric median.
    """

    name = "fpgm"

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return the summed distance per channel for every weight."""
        return [ChannelScores(channels, torch.cdist(rows, rows).sum(1)) for channels, rows in weights(module, graph)]
