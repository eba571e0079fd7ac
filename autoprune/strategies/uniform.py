"""One keep ratio for all units: what every search must beat."""

from __future__ import annotations

import numpy as np

from autoprune.strategies.rl.dialogue import Dialogue, DialogueStrategy
from autoprune.structure.constraint import Constraint


class UniformStrategy(DialogueStrategy):
    """The same keep ratio everywhere, as wide as the budget allows; one proposal.

    Args:
        constraint: the limits.
    """

    def __init__(self, constraint: Constraint) -> None:
        super().__init__(1)
        self._constraint = constraint

    def dialogue(self) -> Dialogue:
        """Propose the uniform ratio."""
        space = self._constraint.space
        yield [space.allocation(self._constraint.project(np.zeros(len(space))))]
