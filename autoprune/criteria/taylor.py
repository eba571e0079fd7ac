"""Score channels by the first-order Taylor estimate of how the loss changes without them."""

from __future__ import annotations

import torch

from autoprune.criteria.gradients import GradientImportance


class TaylorImportance(GradientImportance):
    """(Σ g·w)² over a channel's weights.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8, for
    every weight, bias and batch norm parameter of the channel; averaged over batches.
    """

    name = "taylor"

    def saliency(self, products: torch.Tensor) -> torch.Tensor:
        """Return the squared change of the loss to first order."""
        return products.sum(1).square()
