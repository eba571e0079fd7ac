"""What the criteria that need gradients share: one backward pass per batch, summed per channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from autoprune.graph import ChannelGraph
from autoprune.importance._base import Evidence, Member, rows_of, trainable_copy

Term = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(gradient, parameter) → a number per weight."""


class GradientSums:
    """Sums a term of gradients and weights over every channel's weights, batch by batch.

    Args:
        module: the network; a copy of it is used.
        graph: its channel groups.
        term: what is summed.
        evidence: the images.
    """

    def __init__(self, module: nn.Module, graph: ChannelGraph, term: Term, evidence: Evidence) -> None:
        self._module, self._graph, self._term, self._evidence = module, graph, term, evidence

    def members(self, per_batch: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums) -> Sequence[Member]:
        """Return per parameter and channel the mean over batches of the sums, each first put through ``per_batch``."""
        module, parameters = trainable_copy(self._module)
        places = [
            (name, dimension, axis)
            for name, pairs in self._graph.tensors.items()
            if name in parameters
            for dimension, axis in pairs
        ]
        totals: dict[tuple[str, int, int], torch.Tensor] = {}
        for batch in self._evidence.batches:
            loss = self._evidence.loss(module, batch)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            gradients = dict(zip(parameters, found, strict=True))
            for place in places:
                name, dimension, _ = place
                gradient = gradients[name]
                if gradient is not None:
                    sums = per_batch(rows_of(self._term(gradient, parameters[name].detach()), dimension).sum(1))
                    totals[place] = totals.get(place, torch.zeros_like(sums)) + sums
        batches = len(self._evidence.batches)
        return [Member(self._graph.axes[axis], total / batches) for (_, _, axis), total in totals.items()]
