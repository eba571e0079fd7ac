"""Random allocations on the budget: what every agent must beat at an equal number of evaluations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.strategies._base import Strategy
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation


class RandomStrategy(Strategy):
    """Log keep ratios drawn uniformly, projected onto the budget (as Li et al., "EagleEye", ECCV 2020, section 3.1).

    Args:
        constraint: the limits.
        evaluations: how many allocations are drawn.
        seed: of the draws.
        spread: log-ratios are drawn from [−spread, spread].
    """

    def __init__(self, constraint: Constraint, *, evaluations: int, seed: int, spread: float = 1.0) -> None:
        self._constraint = constraint
        self._left = evaluations
        self._spread = spread
        self._rng = np.random.default_rng(seed)

    def ask(self, limit: int) -> Sequence[Allocation]:
        """Return one new allocation."""
        if self._left == 0:
            return ()
        space = self._constraint.space
        wish = self._rng.uniform(-self._spread, self._spread, size=len(space))
        return [space.allocation(self._constraint.project(wish))]

    def tell(self, allocations: Sequence[Allocation], scores: Sequence[float]) -> None:
        """Learn nothing."""
        self._left -= len(allocations)

    def close(self) -> None:
        """Nothing to release."""
