"""Optimal brain damage with the Fisher information in place of the Hessian."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from autoprune.graph import ChannelGraph
from autoprune.importance._base import Evidence, Importance, Member
from autoprune.importance.gradients import GradientSums


class FisherImportance(Importance):
    """½ Σ F·w² with the diagonal of the empirical Fisher information, F = E[g²].

    LeCun et al., "Optimal Brain Damage", NeurIPS 1989, equation 5, with the Fisher information as in Theis et al.,
    "Faster gaze prediction with dense networks and Fisher pruning", 2018, section 2.1. Gradients are those of batches.

    Args:
        evidence: images that gradients are computed on.
    """

    name = "fisher"

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[Member]:
        """Return the second-order change per channel for every parameter."""
        sums = GradientSums(
            module, graph, lambda gradient, parameter: 0.5 * (gradient * parameter).square(), self._evidence
        )
        return sums.members()
