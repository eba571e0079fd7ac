"""Compute the memory that one forward pass holds at most."""

from __future__ import annotations

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.costs.static import CostSubject, Shapes, elements, state_shapes
from autoprune.structure.constraint import Cost
from autoprune.structure.space import Space

BYTES = 4
"""Of one number: fp32."""


class MemoryCost(Cost):
    """Peak of activations and weights for one image in fp32, in bytes.

    At every operation the tensors are added up that a later one still reads, its own output among them; batch norm is
    folded, and ReLU works in place. That is the least that a runtime with these operations holds. Buffers of its
    convolutions, copies in other layouts, tensors that are freed late (as by frames of Python in torch) and its own
    code come on top.

    Args:
        space: the space of allocations; its graph has the activations.
        shapes: shapes of the dense network's parameters and buffers, see ``state_shapes``.
    """

    metric = "memory"
    unit = "bytes"

    def __init__(self, space: Space, shapes: Shapes) -> None:
        graph = space.graph
        self._weights = elements(space, shapes)
        slopes = np.zeros((len(graph.groups), len(space)))
        fixed: Array = np.array([group.size for group in graph.groups], dtype=np.float64)
        for number, unit in enumerate(space.units):
            for index in unit.groups:
                slopes[index, number] = graph.groups[index].size / unit.width
                fixed[index] = 0.0
        steps = sorted({tensor.first for tensor in graph.activations}) or [0]
        per_group, constant = np.zeros((len(steps), len(graph.groups))), np.zeros(len(steps))
        for tensor in graph.activations:
            low, high = np.searchsorted(steps, tensor.first), np.searchsorted(steps, tensor.last, side="right")
            constant[low:high] += tensor.fixed
            for index, numbers in tensor.groups:
                per_group[low:high, index] += numbers
        self._slopes, self._constants = per_group @ slopes, constant + per_group @ fixed

    @classmethod
    def of(cls, subject: CostSubject) -> MemoryCost:
        """Make it for a network."""
        return cls(subject.space, state_shapes(subject.module))

    def __call__(self, counts: Counts) -> Array:
        """Return bytes; see ``Cost``."""
        held = (counts @ self._slopes.T + self._constants).max(axis=-1)
        return np.asarray(BYTES * (self._weights(counts) + held))
