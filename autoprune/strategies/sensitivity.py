"""Limit the damage of every unit to one common level, as sensitivity studies do by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.strategies._base import lowest_level
from autoprune.strategies.survey import SurveyStrategy, saved
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Space

EXPONENTS = (0.0, 0.5, 1.0, 0.75, 0.25, 1.25, 1.5)
"""Damage is rise / saved cost to these powers, in the order of trying; 0 is the rise itself."""


class SensitivityStrategy(SurveyStrategy):
    """Prunes each unit as far as its damage stays below one limit; the least limit with which the budget holds.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.2, read the ratios off such curves by eye.
    The first proposal takes the rise of the loss for the damage, later ones the rise per saved cost.
    """

    def proposals(self, rises: Sequence[Array]) -> Iterator[Counts]:
        """Return one allocation per definition of the damage."""
        savings = lone_savings(self._constraint)
        for exponent in EXPONENTS:
            damages = [rise / saving**exponent for rise, saving in zip(rises, savings, strict=True)]
            yield limit_damage(self._constraint, damages)
        yield limit_damage(self._constraint, marginal(rises, savings))


def limit_damage(constraint: Constraint, damages: Sequence[Array]) -> Counts:
    """Return the narrowest widths with a damage below one limit, the least that holds the constraint, filled up.

    Args:
        constraint: the limits.
        damages: per unit the damage of each of its choices, 0 at full width, shape (choices,).
    """
    space = constraint.space
    # Also if damage falls with narrower widths, by noise or by its definition, a higher limit must not widen.
    tolerated = [np.maximum.accumulate(damage[::-1])[::-1] for damage in damages]
    limits = np.unique(np.concatenate([[0.0], *tolerated]))

    def within(level: int) -> Counts:
        return np.array(
            [
                choices[int(np.argmax(damage <= limits[level]))]
                for choices, damage in zip(space.choices, tolerated, strict=True)
            ],
            dtype=np.int64,
        )

    level = lowest_level(constraint, len(limits), within)
    return constraint.greedy_fill(within(level), space.log_ratios(within(max(level - 1, 0))))


def lone_savings(constraint: Constraint) -> list[Array]:
    """Return per unit the share of the utilization that each of its choices saves with all others dense, > 0."""
    return [saved(constraint, alone(constraint.space, unit)) for unit in range(len(constraint.space))]


def alone(space: Space, unit: int) -> Counts:
    """Return one unit at each of its choices, the others dense, shape (choices, units)."""
    choices = space.choices[unit]
    counts = np.repeat(space.dense[None, :], len(choices), axis=0)
    counts[:, unit] = choices
    return counts


def marginal(rises: Sequence[Array], savings: Sequence[Array]) -> list[Array]:
    """Return per unit what each choice adds in rise over the next wider one, per cost that it saves more."""
    return [
        np.append(-np.diff(rise) / np.maximum(-np.diff(saving), 1e-9), 0.0)
        for rise, saving in zip(rises, savings, strict=True)
    ]
