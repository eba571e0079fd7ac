"""Propose random allocations on the budget: the baseline of every agent at an equal number of evaluations."""

from __future__ import annotations

import numpy as np

from autoprune.strategies._base import Evaluate, SearchTask, Strategy
from autoprune.structure.constraint import Constraint


class RandomStrategy(Strategy):
    """Log keep ratios drawn from [−1, 1], projected onto the budget (Li et al., "EagleEye", ECCV 2020, section 3.1).

    Args:
        constraint: the limits.
        seed: of the draws.
    """

    def __init__(self, constraint: Constraint, *, seed: int) -> None:
        self._constraint = constraint
        self._rng = np.random.default_rng(seed)

    @classmethod
    def of(cls, task: SearchTask) -> RandomStrategy:
        """Make it for a task."""
        return cls(task.constraint, seed=task.seed)

    def run(self, evaluate: Evaluate) -> None:
        """Draw one allocation after the other, without end."""
        space = self._constraint.space
        while True:
            log_ratios = self._rng.uniform(-1, 1, size=len(space))
            evaluate([self._constraint.allocation(log_ratios)])
