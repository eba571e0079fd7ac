"""Turn an action into an allocation that holds the budget; both rules are exact after rounding."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.envs.problem import PruningProblem

_SLACK = 1e-6
"""Added to a keep ratio before rounding down: actions are float32, and 24 / 40 must not become 23.99."""


class Rule(ABC):
    """Decides widths from actions, one unit at a time, and the allocation when the walk ends.

    Attributes:
        low: least action.
        high: greatest action.

    Example:
        >>> sorted(RULES)
        ['capped', 'projected']
        >>> class Halves(Projected):
        ...     span = float(np.log(2))
        >>> rule = Halves(problem)  # of the example in `PruningProblem`; an environment takes ``rule=Halves``
        >>> rule.finish(problem.space.dense, np.array([1.0, -1.0]))
        array([16, 12])
    """

    low: float
    high: float

    def __init__(self, problem: PruningProblem) -> None:
        self.problem = problem

    @abstractmethod
    def decide(self, narrowest: Counts, unit: int, action: float) -> tuple[int, float]:
        """Decide one unit.

        Args:
            narrowest: counts decided so far, later units at their lower bounds, shape (units,).
            unit: the unit to decide.
            action: within ``low`` and ``high``.

        Returns:
            The unit's count, and the action as it was executed.
        """

    @abstractmethod
    def finish(self, counts: Counts, executed: Array) -> Counts:
        """Return the allocation of one walk, which holds the constraint.

        Args:
            counts: as decided, shape (units,).
            executed: the actions of the walked units, shape (steps,).
        """

    @abstractmethod
    def actions_for(self, counts: Counts) -> Array:
        """Return the actions, shape (steps,), whose walk ends at an allocation or, in ``projected``, close to it."""

    @abstractmethod
    def prior_actions(self) -> Array:
        """Return the actions, shape (steps,), whose walk ends at the problem's prior."""

    def round_down(self, unit: int, ratio: float) -> int:
        """Return the unit's widest choice that is not above a keep ratio."""
        choices = self.problem.space.choices[unit]
        wanted = (ratio + _SLACK) * self.problem.space.dense[unit]
        return int(choices[max(np.searchsorted(choices, wanted, side="right") - 1, 0)])


class Projected(Rule):
    """The action, in [−1, 1] spans, is a log-ratio on top of the prior's; one common factor ends on the budget.

    Along the walk, counts are what the actions would give if the others stayed at the prior: provisional, for the
    state columns only.

    Attributes:
        span: at the edges of the box a unit keeps exp(±span) times what the prior would.

    Example:
        >>> rule = Projected(problem)  # of the example in `PruningProblem`
        >>> rule.finish(problem.space.dense, np.array([0.0, 0.0]))
        array([12, 20])
    """

    low, high = -1.0, 1.0
    span = 1.0

    def decide(self, narrowest: Counts, unit: int, action: float) -> tuple[int, float]:
        """Return a provisional count and the action as it is."""
        log_ratio = self.problem.start[unit] + self.span * action
        return self.round_down(unit, float(np.exp(min(log_ratio, 0.0)))), action

    def finish(self, counts: Counts, executed: Array) -> Counts:
        """Project prior plus actions onto the budget."""
        log_ratios = self.problem.prior.copy()
        log_ratios[list(self.problem.walked)] += self.span * executed
        return self.problem.constraint.project(log_ratios)

    def actions_for(self, counts: Counts) -> Array:
        """Return the log-ratios of the counts above the prior's, clipped to the box."""
        above = self.problem.space.log_ratios(counts) - self.problem.start
        return np.clip(above[list(self.problem.walked)] / self.span, self.low, self.high)

    def prior_actions(self) -> Array:
        """Return zeros."""
        return np.zeros(len(self.problem.walked))


class Capped(Rule):
    """The action is a keep ratio, capped so that the budget stays reachable (He et al., AMC, ECCV 2018, Algorithm 1).

    It is rounded first and then capped on the rounded cost, so that the end of the walk holds the budget exactly. The
    executed action is what came of it; 0 asks for the lower bound.

    Example:
        >>> rule = Capped(problem)  # of the example in `PruningProblem`
        >>> rule.decide(problem.space.lower, 1, 1.0)
        (32, 1.0)
    """

    low, high = 0.0, 1.0

    def decide(self, narrowest: Counts, unit: int, action: float) -> tuple[int, float]:
        """Return the capped count and its keep ratio."""
        count = min(self.round_down(unit, action), self.problem.constraint.cap(narrowest, unit))
        return count, float(count / self.problem.space.dense[unit])

    def finish(self, counts: Counts, executed: Array) -> Counts:
        """Return the counts: they hold the budget already."""
        return counts

    def actions_for(self, counts: Counts) -> Array:
        """Return the keep ratios of the counts."""
        walked = list(self.problem.walked)
        return np.asarray(self.problem.space.ratios(counts)[walked])

    def prior_actions(self) -> Array:
        """Return the keep ratios of the projected prior."""
        return self.actions_for(self.problem.constraint.project(self.problem.prior))


RULES: dict[str, type[Rule]] = {"projected": Projected, "capped": Capped}
"""Every rule by its name on the command line."""
