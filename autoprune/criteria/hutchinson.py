"""Score channels by second order, with the Hessian's trace estimated by random probes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from autoprune.criteria._base import CalibrationData, ChannelScores, Importance, rows_of, trainable_copy
from autoprune.listener import tracked
from autoprune.structure.graph import ChannelGraph


class HutchinsonImportance(Importance):
    """Mean curvature of a channel's weights times their squared norm (Yu et al., "Hessian-Aware Pruning", WACV 2022).

    Equation 9: Tr(H_c) / (2 n_c) · ‖w_c‖², with Hutchinson's estimate Tr(H_c) = E[Σ z·(Hz)] over random signs z. A
    negative trace, which a network that is not at a minimum can have, counts as 0.

    Args:
        evidence: images that the Hessian is computed on; each batch is one probe.
    """

    name = "hutchinson"

    def __init__(self, evidence: CalibrationData) -> None:
        self._evidence = evidence

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return the saliency per channel for every weight of a convolution or linear layer."""
        copied, parameters = trainable_copy(module)
        weighty = {name: parameters[name] for name in graph.tensors if name in parameters and parameters[name].ndim > 1}
        generator = torch.Generator().manual_seed(0)
        diagonal = {name: torch.zeros_like(weight) for name, weight in weighty.items()}
        for batch in tracked(self._evidence.batches, "Ranking channels"):
            loss = self._evidence.loss(copied, batch)
            for name, product in _signed_products(loss, weighty, generator).items():
                diagonal[name] += product
        members = []
        for name, weight in weighty.items():
            for dimension, axis in graph.tensors[name]:
                curvature = rows_of(diagonal[name], dimension).mean(1) / len(self._evidence.batches)
                squares = rows_of(weight.detach(), dimension).square().sum(1)
                members.append(ChannelScores(graph.axes[axis], 0.5 * curvature.clamp(min=0) * squares))
        return members


def _signed_products(
    loss: torch.Tensor, weights: dict[str, nn.Parameter], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return z·(Hz) per weight for random signs z: an estimate of the Hessian's diagonal."""
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
    used = {name: gradient for name, gradient in zip(weights, gradients, strict=True) if gradient is not None}
    signs = {
        name: (torch.randint(0, 2, gradient.shape, generator=generator) * 2.0 - 1.0).to(gradient)
        for name, gradient in used.items()
    }
    along = torch.stack([(used[name] * signs[name]).sum() for name in used]).sum()
    products = torch.autograd.grad(along, [weights[name] for name in used], allow_unused=True)
    return {name: signs[name] * product for name, product in zip(used, products, strict=True) if product is not None}
