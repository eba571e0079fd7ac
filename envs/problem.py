"""Define the problem that an environment solves; it is handed in, so that `envs` imports neither networks nor data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from autoprune.arrays import Array
from autoprune.errors import ConfigError
from autoprune.io.finite import check_finite
from autoprune.structure.constraint import Constraint, Cost
from autoprune.structure.space import Allocation, Space

Score = Callable[[Sequence[Allocation]], Sequence[float]]
"""Scores allocations, higher is better; all candidates of one call may be computed together."""


@dataclass(frozen=True)
class PruningProblem:
    """A budgeted search for the best allocation of a space.

    It can be pickled if its score can, so that stable-baselines3's ``SubprocVecEnv`` may hand it to other processes.

    Attributes:
        space: all allocations.
        constraint: the limits that an allocation must hold.
        cost: the cost whose shares the agent sees in its state: the budgeted one, or the first of several.
        score: scores allocations; without it whoever walks the environment has them scored.
        sensitivity: how much the network suffers when a unit is pruned, each in [0, 1], shape (units,).
        prior: where the search starts, natural logarithm of a keep ratio per unit, shape (units,). Only differences
            matter: zeros are the uniform ratio.
        columns: further state columns, name → one value per unit, shape (units,); scaled to [0, 1] when observed.

    Raises:
        ConfigError: a part is of another type, a shape does not fit, a sensitivity lies outside [0, 1], or no unit has
            more than one choice.

    Example:
        >>> from torch import nn, zeros
        >>> from autoprune.costs import FlopsCost
        >>> from autoprune.structure.constraint import CostLimit
        >>> from autoprune.structure.validation import analyse
        >>> network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 4, 1))
        >>> space = Space(analyse(network.eval(), zeros(1, 3, 32, 32)), round_to=4)
        >>> cost = FlopsCost(space)
        >>> constraint = Constraint(space, [CostLimit(cost, 0.5 * cost(space.dense))])
        >>> score = lambda allocations: [-float(cost(np.array(allocation))) for allocation in allocations]
        >>> uniform = np.zeros(len(space))
        >>> problem = PruningProblem(space, constraint, cost, score, sensitivity=uniform, prior=uniform)
        >>> problem.walked, np.exp(problem.start).round(2)
        ((0, 1), array([0.68, 0.68]))
    """

    space: Space
    constraint: Constraint
    cost: Cost
    score: Score | None
    sensitivity: Array
    prior: Array
    columns: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in {"space": Space, "constraint": Constraint, "cost": Cost}.items():
            if not isinstance(value := getattr(self, name), kind):
                raise ConfigError(f"{name} must be a {kind.__name__}, got {value!r}")
        if self.score is not None and not callable(self.score):
            raise ConfigError(f"score must be a function of allocations or None, got {self.score!r}")
        units = len(self.space)
        for name, values in {"sensitivity": self.sensitivity, "prior": self.prior, **self.columns}.items():
            if np.shape(values) != (units,) or not np.isfinite(values).all():
                raise ConfigError(f"{name} must hold one finite number for each of {units} units, got {values}")
        if (np.asarray(self.sensitivity) < 0).any() or (np.asarray(self.sensitivity) > 1).any():
            raise ConfigError(f"A sensitivity must lie in [0, 1], got {self.sensitivity}")
        for name in ("sensitivity", "prior"):  # lists and whole numbers do, too
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if not self.walked:
            raise ConfigError("There is nothing to search: no unit has more than one width within its bounds")

    @cached_property
    def walked(self) -> tuple[int, ...]:
        """Units with more than one choice: one step of the walk each. The others stay as they are, without a step."""
        return tuple(index for index, choices in enumerate(self.space.choices) if len(choices) > 1)

    def scores(self, allocations: Sequence[Allocation]) -> list[float]:
        """Return the score of each allocation, in order.

        Raises:
            ConfigError: there is not one score for each allocation, or one is NaN or infinite.
        """
        assert self.score is not None, "there is nothing to score with"
        scores = [float(score) for score in self.score(allocations)]
        if len(scores) != len(allocations):
            raise ConfigError(f"score must return one number for each of {len(allocations)} allocations, got {scores}")
        check_finite(
            scores,
            lambda place: f"The score of {allocations[place]}",
            way_out="let score return a very low number for a network that does not compute",
        )
        return scores

    @cached_property
    def start(self) -> Array:
        """The prior scaled onto the budget: log keep ratios whose mean is that of the projected prior, (units,)."""
        projected = self.space.log_ratios(self.constraint.project(self.prior))
        return np.asarray(self.prior + np.mean((projected - self.prior)[list(self.walked)]))
