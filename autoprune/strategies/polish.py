"""Polish the best candidate: exchange width between a few units, and keep what scores higher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.strategies._base import Candidate, Evaluate, SearchTask, Strategy, holding, search
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation

TOGETHER = 3
"""Exchanges that are scored together before the best so far is looked at again."""

MOST_PAIRS = 3
"""Pairs of units that exchange width at once, at most."""

_ATTEMPTS = 200
"""Draws in a row that bring nothing new before the search has finished."""


class PolishStrategy(Strategy):
    """Stochastic local search: from the best so far, one to three units get a step wider and as many a step narrower.

    What the exchange leaves of the budget is filled, what it exceeds is scaled away, so that every candidate lies on
    the budget. Exchanges that scored higher are made all at once in the next candidate. It starts at ``start``'s best
    candidate, or else at ``prior``, or else at the uniform ratio, and scores that first; nothing else is asked for
    twice, and when nothing new can be drawn the search has finished.

    Args:
        constraint: the limits.
        seed: of the draws.
        prior: log keep ratios, shape (units,); only differences matter.
        start: candidates that are scored already.
        together: exchanges that are scored together.
    """

    def __init__(
        self,
        constraint: Constraint,
        *,
        seed: int,
        prior: Array | None = None,
        start: Sequence[Candidate] = (),
        together: int = TOGETHER,
    ) -> None:
        self._constraint, self._space = constraint, constraint.space
        self._rng = np.random.default_rng(seed)
        self._free = np.flatnonzero([len(choices) > 1 for choices in self._space.choices])
        self._together = together
        self._known = {one.allocation: one.score for one in holding(start, constraint)}
        self._first = (
            self._best if self._known else constraint.allocation(np.zeros(len(self._space)) if prior is None else prior)
        )

    @classmethod
    def of(cls, task: SearchTask) -> PolishStrategy:
        """Make it for a task."""
        log_ratios, together = None if task.prior is None else task.prior.target_log_ratios, task.rollout or TOGETHER
        return cls(task.constraint, seed=task.seed, prior=log_ratios, start=task.known, together=together)

    def run(self, evaluate: Evaluate) -> None:
        """Score where it starts, then exchanges."""
        # Asked for although it may be known, so that what this search finds is never worse.
        (self._known[self._first],) = evaluate([self._first])
        self.improve(evaluate)

    def improve(self, evaluate: Evaluate) -> None:
        """Score exchanges around the best, some together, until nothing new can be drawn."""
        combined: Allocation | None = None
        while proposals := self._proposals(combined):
            best = self._best
            self._known.update(zip(proposals, evaluate(proposals), strict=True))
            combined = self._combined(best, [one for one in proposals if self._known[one] > self._known[best]])

    @property
    def _best(self) -> Allocation:
        return max(self._known, key=self._known.__getitem__)

    def _proposals(self, combined: Allocation | None) -> list[Allocation]:
        """Return different candidates around the best that are not known; fewer, or none, if they are hard to find."""
        found = dict[Allocation, None]()
        if combined is not None and combined not in self._known:
            found[combined] = None
        best = self._best
        for _ in range(_ATTEMPTS * self._together):
            if len(found) == self._together:
                break
            exchanged = self._exchanged(best)
            if exchanged not in self._known:
                found[exchanged] = None
        return list(found)

    def _combined(self, best: Allocation, better: Sequence[Allocation]) -> Allocation | None:
        """Return all exchanges at once that scored higher than what was the best, a single one twice."""
        if not better:
            return None
        moved = (np.array(better) - best).sum(0) * (2 if len(better) == 1 else 1)
        counts: Counts = np.clip(best + moved, self._space.lower, self._space.dense)
        return self._constraint.allocation(self._space.log_ratios(counts))

    def _exchanged(self, allocation: Allocation) -> Allocation:
        """Return a neighbour of an allocation on the budget."""
        counts = np.array(allocation)
        moved = self._rng.permutation(self._free)[: 2 * self._rng.integers(1, MOST_PAIRS + 1)]
        for place, unit in enumerate(moved):
            choices = self._space.choices[unit]
            step = int(np.searchsorted(choices, counts[unit])) + (1 if place % 2 else -1)
            counts[unit] = choices[np.clip(step, 0, len(choices) - 1)]
        log_ratios = self._space.log_ratios(counts)
        if self._constraint.holds(counts):
            return self._space.allocation(self._constraint.greedy_fill(counts, log_ratios))
        return self._constraint.allocation(log_ratios)


class PolishedStrategy(Strategy):
    """Run another strategy for the first evaluations, and polish the best that it and the prior found by the others.

    Args:
        first: the other strategy.
        evaluations: how many it has.
        task: what is searched.
    """

    def __init__(self, first: Strategy, evaluations: int, task: SearchTask) -> None:
        self._first, self._evaluations, self._task = first, evaluations, task

    def run(self, evaluate: Evaluate) -> None:
        """Run the one, then the other."""
        constraint, start = self._task.constraint, self._task.start
        found = search(self._first, evaluate, constraint=constraint, evaluations=self._evaluations)
        PolishStrategy.of(replace(self._task, start=(*start, *found.history))).improve(evaluate)
