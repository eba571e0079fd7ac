"""Collect gradient times weight per channel, one backward pass per batch, for first- and second-order criteria."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from autoprune.criteria._base import CalibrationData, ChannelScores, Importance, rows_of, trainable_copy
from autoprune.listener import tracked
from autoprune.structure.graph import ChannelGraph


class GradientImportance(Importance):
    """Scores every parameter of a channel by its gradients times its weights, averaged over batches.

    Args:
        evidence: images that gradients are computed on.
    """

    def __init__(self, evidence: CalibrationData) -> None:
        self._evidence = evidence

    @abstractmethod
    def saliency(self, products: torch.Tensor) -> torch.Tensor:
        """Return a score per channel, shape (n,), from one batch's gradients times weights, shape (n, rest)."""

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return the mean saliency per channel for every parameter that the loss depends on."""
        copied, parameters = trainable_copy(module)
        places = [
            (name, dimension, axis)
            for name, pairs in graph.tensors.items()
            if name in parameters
            for dimension, axis in pairs
        ]
        totals: dict[tuple[str, int, int], torch.Tensor] = {}
        for batch in tracked(self._evidence.batches, "Ranking channels"):
            loss = self._evidence.loss(copied, batch)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            gradients = dict(zip(parameters, found, strict=True))
            for place in places:
                name, dimension, _ = place
                gradient = gradients[name]
                if gradient is not None:
                    scores = self.saliency(rows_of(gradient * parameters[name].detach(), dimension))
                    totals[place] = totals.get(place, torch.zeros_like(scores)) + scores
        batches = len(self._evidence.batches)
        return [ChannelScores(graph.axes[axis], total / batches) for (_, _, axis), total in totals.items()]
