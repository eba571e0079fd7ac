"""Prune all units by one keep ratio: the baseline of every search."""

from __future__ import annotations

import numpy as np

from autoprune.strategies._base import Evaluate, SearchTask, Strategy
from autoprune.structure.constraint import Constraint


class UniformStrategy(Strategy):
    """The same keep ratio everywhere, as wide as the budget allows; one proposal.

    Args:
        constraint: the limits.
    """

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint

    @classmethod
    def of(cls, task: SearchTask) -> UniformStrategy:
        """Make it for a task."""
        return cls(task.constraint)

    def run(self, evaluate: Evaluate) -> None:
        """Propose the uniform ratio."""
        space = self._constraint.space
        evaluate([self._constraint.allocation(np.zeros(len(space)))])
