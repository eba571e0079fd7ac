"""Shrink and regrow: prune below the budget, then widen the units that gain most per cost until it is reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from autoprune.arrays import Array, Counts, Mask
from autoprune.strategies._base import Evaluate, SearchTask, Strategy
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation

Gains = Callable[[Allocation, Sequence[Sequence[int]]], Sequence[Sequence[float]]]
"""(allocation, wider counts per unit) → what each of them alone adds to the score, up to a common factor."""

SHARES = (0.5, 0.6, 0.7, 0.8, 0.8, 0.9)
"""How far below the budget each round begins, as a share of it: coarse rounds first."""

GROWTHS = (1.25, 2.0, 4.0)
"""By what factor a unit may widen in a round, at most; each gives one candidate."""

FACTORS = (1.25, 1.5, 2.0, 3.0, 4.0)
"""By what factors next to one step it may widen."""

GAINS_COST = 5
"""Evaluations at 50% of the FLOPs that the gains of all units take as long as (`tests/benchmarks`).

Of smaller candidates they are 6.2 at 30% and 6.9 at 20% (three detectors, 320 px, one thread, bfloat16, AMD EPYC).
"""


def affordable(evaluations: int) -> tuple[int, int]:
    """Return how many candidates can be proposed in the time of ``evaluations``, and how many of these gains take."""
    rounds = min(max((evaluations - 1) // (GAINS_COST + len(GROWTHS)), 1), len(SHARES))
    return 1 + rounds * len(GROWTHS), rounds * GAINS_COST


_TILT, _FURTHEST = 0.3, 1.0
"""A unit that widened for w < 1 times the price shrinks by w ** tilt beyond the others, at most by e ** −furthest."""


class RegrowthStrategy(Strategy):
    """Shrinks the best allocation so far, uniform at first, and widens it again by what the gains of all units say.

    Of a network below the budget it is known what every unit would gain from being wider (`evaluation.slopes`; what it
    would lose from being narrower is not, to first order). A common price of cost decides which widths are worth it:
    the one at which the budget is just held. Units far from worth it shrink further in the next round. It draws
    nothing at random.

    Args:
        constraint: the limits.
        gains: of widening.
        evaluations: how many allocations may be scored; fewer are, if all ``SHARES`` were taken.
    """

    def __init__(self, constraint: Constraint, gains: Gains, *, evaluations: int) -> None:
        rounds = min(-(-(evaluations - 1) // len(GROWTHS)), len(SHARES))
        self._constraint = constraint
        self._gains = gains
        self._shares = [SHARES[place] for place in np.linspace(0, len(SHARES) - 1, rounds).round().astype(int)]
        self.worth: Array = np.ones(len(constraint.space))
        """Per unit, what its best widening gained per cost in the last round, as a multiple of the price."""

    @classmethod
    def of(cls, task: SearchTask) -> RegrowthStrategy:
        """Make it for a task."""
        assert task.gains is not None, "regrowth widens what gains most"
        return cls(task.constraint, task.gains, evaluations=task.evaluations)

    def run(self, evaluate: Evaluate) -> None:
        """Propose the uniform ratio, and a few candidates per round."""
        constraint, space = self._constraint, self._constraint.space
        best = constraint.allocation(np.zeros(len(space)))
        (highest,) = evaluate([best])
        known = {best}
        for share in self._shares:
            tilt = np.clip(_TILT * np.log(np.clip(self.worth, 1e-6, 1.0)), -_FURTHEST, 0.0)
            log_ratios = space.log_ratios(best) + tilt
            base = constraint.tightened(share).project(log_ratios)
            widths = [_wider(choices, count) for choices, count in zip(space.choices, base, strict=True)]
            growth = _Growth(constraint, base, widths, self._gains(space.allocation(base), widths))
            grown = [space.allocation(constraint.greedy_fill(*growth.onto_budget(most))) for most in GROWTHS]
            self.worth = growth.worth
            proposals = [allocation for allocation in dict.fromkeys(grown) if allocation not in known]
            known.update(proposals)
            for allocation, score in zip(proposals, evaluate(proposals), strict=True):
                if score > highest:
                    best, highest = allocation, score


class _Growth:
    """Chooses how wide every unit of an allocation becomes.

    Attributes:
        worth: per unit, the most that is gained per cost, as a multiple of the price of the last ``onto_budget``.
    """

    def __init__(
        self, constraint: Constraint, base: Counts, widths: Sequence[Sequence[int]], gains: Sequence[Sequence[float]]
    ) -> None:
        self._constraint, self._base = constraint, base
        self._unit = np.repeat(np.arange(len(base)), [len(wider) for wider in widths])
        self._width = np.array([width for wider in widths for width in wider], dtype=np.int64)
        self._gain = np.array([gain for several in gains for gain in several], dtype=float)
        trials = np.repeat(base[None, :], len(self._width), axis=0)
        trials[np.arange(len(self._width)), self._unit] = self._width
        before = float(constraint.utilization(base))
        self._rise = np.maximum(constraint.utilization(trials) - before if len(trials) else np.zeros(0), 1e-9)
        self.worth = np.ones(len(base))

    def onto_budget(self, most: float) -> tuple[Counts, Array]:
        """Return the counts that are worth the least price that holds the budget, and log ratios to fill it by."""
        rates = self._gain / self._rise
        prices = np.unique(rates[rates > 0])
        allowed = (self._width <= np.maximum(most * self._base[self._unit], self._nearest())) & (self._gain > 0)
        low, high = 0, len(prices)  # at a price above all, nothing is widened
        while low < high:
            middle = (low + high) // 2
            if self._constraint.holds(self._at(prices[middle], allowed)):
                high = middle
            else:
                low = middle + 1
        price = float(prices[low]) if low < len(prices) else np.inf
        counts = self._at(price, allowed)
        self.worth = np.zeros(len(self._base))
        np.maximum.at(self.worth, self._unit, np.maximum(rates, 0) / price)
        closed = np.ones(len(self._base), dtype=bool)
        closed[self._unit] = False
        self.worth[closed] = 1.0  # as wide as it can be
        space = self._constraint.space
        return counts, space.log_ratios(counts) + 1e-3 * self.worth.argsort().argsort() / len(counts)

    def _nearest(self) -> Counts:
        """Return per widening the narrowest of its unit."""
        nearest = np.full(len(self._base), np.iinfo(np.int64).max)
        np.minimum.at(nearest, self._unit, self._width)
        return np.asarray(nearest[self._unit])

    def _at(self, price: float, allowed: Mask) -> Counts:
        """Return per unit the width whose gain less its price is highest."""
        profit = np.where(allowed, self._gain - price * self._rise, -np.inf)
        counts, highest = self._base.copy(), np.zeros(len(self._base))
        for unit, width, value in zip(self._unit, self._width, profit, strict=True):
            if value > highest[unit]:
                counts[unit], highest[unit] = width, value
        return counts


def _wider(choices: Counts, count: int) -> list[int]:
    """Return the next choice above a count, and those at the factors."""
    above = choices[choices > count]
    if not len(above):
        return []
    found = {int(above[0])}
    for factor in FACTORS:
        found.add(int(above[min(int(np.searchsorted(above, factor * count)), len(above) - 1)]))
    return sorted(found)
