"""Score channels as optimal brain damage does, with the Fisher information instead of the Hessian."""

from __future__ import annotations

import torch

from autoprune.criteria.gradients import GradientImportance


class FisherImportance(GradientImportance):
    """½ Σ F·w² with the diagonal of the empirical Fisher information, F = E[g²].

    LeCun et al., "Optimal Brain Damage", NeurIPS 1989, equation 5, with the Fisher information as in Theis et al.,
    "Faster gaze prediction with dense networks and Fisher pruning", 2018, section 2.1. Gradients are those of batches.
    """

    name = "fisher"

    def saliency(self, products: torch.Tensor) -> torch.Tensor:
        """Return the change of the loss to second order."""
        return 0.5 * products.square().sum(1)
