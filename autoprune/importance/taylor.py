"""The first-order Taylor criterion: how much the loss would change without the channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from autoprune.graph import ChannelGraph
from autoprune.importance._base import Evidence, Importance, Member
from autoprune.importance.gradients import GradientSums


class TaylorImportance(Importance):
    """(Σ g·w)² over a channel's weights.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8, for
    every weight, bias and batch norm parameter of the channel; averaged over batches.

    Args:
        evidence: images that gradients are computed on.
    """

    name = "taylor"

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[Member]:
        """Return the squared first-order change per channel for every parameter."""
        sums = GradientSums(module, graph, lambda gradient, parameter: gradient * parameter, self._evidence)
        return sums.members(torch.square)
