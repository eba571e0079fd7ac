"""Minimise the summed rise of the loss under the budget, as an integer programme."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from autoprune.arrays import Array, Counts, Ids
from autoprune.strategies.survey import SurveyStrategy
from autoprune.structure.constraint import Constraint

ROUNDS = 10
"""The most times that the costs are linearised anew."""

GAP = 5e-3
"""Relative distance to the optimum at which a programme counts as solved; the rises are known far less well."""

_CHOICES = 24
"""The most widths of one unit in one programme; more are thinned out, and looked at again as the region closes in."""

_PARTS = 1e6
"""Costs are counted in these parts of the limit."""

_RADII = (4.0, 0.1)
"""Natural logarithm of the factor by which a width may change in a round: at the start, and when to stop."""

_STALLED = 1e-3
"""A round that gains less than this share of the objective was without gain."""


def _power(exponent: float, rise: Array) -> Array:
    return np.asarray(rise**exponent)


SHAPES: tuple[Callable[[Array], Array], ...] = (
    partial(_power, 1.0),
    partial(_power, 0.75),
    partial(_power, 0.5),
    np.log1p,
    partial(_power, 0.9),
    partial(_power, 0.65),
    partial(_power, 1.25),
    partial(_power, 0.8),
    partial(_power, 1.5),
    partial(_power, 2.0),
)
"""What is summed, in the order of trying: the rises are estimates, and several units' damages do not just add up."""


class KnapsackStrategy(SurveyStrategy):
    """Chooses a width for every unit so that the summed rise is least and the budget holds.

    The idea of HALP (Shen et al., "Structural Pruning via Latency-Saliency Knapsack", NeurIPS 2022): a knapsack with
    one item per unit. Costs are not additive, so that the knapsack is solved again and again around its last solution.
    """

    def proposals(self, rises: Sequence[Array]) -> Iterator[Counts]:
        """Return one allocation per shape of the summed rise."""
        for shape in SHAPES:
            yield least_damage(self._constraint, [shape(rise) for rise in rises])


def least_damage(constraint: Constraint, damages: Sequence[Array]) -> Counts:
    """Return counts of least summed damage that hold the constraint, filled up.

    Every limited cost is linearised around the present counts: what each choice of each unit changes, the others as
    they are. Two neighbouring layers narrowed together save less than that; what exceeds the budget is projected onto
    it. A round without gain shrinks the region in which the linearised costs are trusted.

    Args:
        constraint: the limits.
        damages: per unit the damage of each of its choices, ≥ 0, shape (choices,).
    """
    space = constraint.space
    best, radius = constraint.project(np.zeros(len(space))), _RADII[0]
    least = _total(constraint, damages, best)
    for _ in range(ROUNDS):
        if radius < _RADII[1]:
            break
        solved = _solve(constraint, damages, best, radius)
        if solved is None:
            break
        log_ratios = space.log_ratios(solved)
        found = (
            constraint.greedy_fill(solved, log_ratios) if constraint.holds(solved) else constraint.project(log_ratios)
        )
        damage = _total(constraint, damages, found)
        if damage < least * (1 - _STALLED):
            best, least = found, damage
        else:
            best, least = (found, damage) if damage < least else (best, least)
            radius /= 3
    return best


def _total(constraint: Constraint, damages: Sequence[Array], counts: Counts) -> float:
    return sum(
        float(damage[np.searchsorted(choices, count)])
        for damage, choices, count in zip(damages, constraint.space.choices, counts, strict=True)
    )


def _solve(constraint: Constraint, damages: Sequence[Array], counts: Counts, radius: float) -> Counts | None:
    """Return the best counts under costs linearised around the given ones, or None if the solver finds none."""
    from scipy import optimize, sparse

    space = constraint.space
    trusted = [_trusted(choices, int(count), radius) for choices, count in zip(space.choices, counts, strict=True)]
    unit_of = np.repeat(np.arange(len(space)), [len(places) for places in trusted])
    widths = np.concatenate([choices[places] for choices, places in zip(space.choices, trusted, strict=True)])
    objective = np.concatenate([damage[places] for damage, places in zip(damages, trusted, strict=True)])
    moved = np.repeat(counts[None, :], len(widths), axis=0)
    moved[np.arange(len(widths)), unit_of] = widths
    one_each = sparse.csr_array((np.ones(len(widths)), (unit_of, np.arange(len(widths)))))
    limits = [optimize.LinearConstraint(one_each, 1, 1)]
    for limited in constraint.limits:
        present = float(limited.cost(counts))
        # In whole parts of the limit, rounded against us: the solver's tolerances cannot exceed a limit then.
        parts = np.ceil((limited.cost(moved) - present) * (_PARTS / limited.limit))
        limits.append(
            optimize.LinearConstraint(parts[None, :], -np.inf, np.floor((1 - present / limited.limit) * _PARTS))
        )
    with _silent():
        result = optimize.milp(
            objective / max(float(objective.max()), 1e-300),
            constraints=limits,
            bounds=optimize.Bounds(0, 1),
            integrality=np.ones(len(widths)),
            options={"mip_rel_gap": GAP, "node_limit": 5000},  # by the clock, results would depend on the day
        )
    if result.x is None:
        return None
    solved = counts.copy()
    chosen = result.x > 0.5
    solved[unit_of[chosen]] = widths[chosen]
    return solved


def _trusted(choices: Counts, count: int, radius: float) -> Ids:
    """Return which choices lie within a factor exp(±radius) of the present count, itself among them, thinned out."""
    distance = np.abs(np.log(choices / count))
    places = np.flatnonzero((distance <= radius) | (np.abs(np.arange(len(choices)) - np.argmin(distance)) <= 1))
    if len(places) <= _CHOICES:
        return places
    thinned = places[np.linspace(0, len(places) - 1, _CHOICES).round().astype(np.int64)]
    return np.union1d(thinned, [np.argmin(distance)])


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what the solver says off the standard output: HiGHS 1.x has a line that no option silences."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):  # a program without a standard output
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
