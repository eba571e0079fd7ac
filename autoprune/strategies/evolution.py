"""Search by evolution (CMA-ES) of log keep ratios."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from autoprune.arrays import Array
from autoprune.strategies._base import Candidate, Evaluate, SearchTask, Strategy, holding
from autoprune.strategies.isolation import preserved_random_state
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation

POPULATION = 8
"""Candidates per generation: few, for there are only some hundred evaluations (6 to 15 differ little)."""

SPREAD = 0.5
"""Standard deviation of the log keep ratios at the start, if nothing is known."""

SPREAD_AROUND = 0.2
"""The same around a prior or another strategy's result; on the tests' toy 0.1 finds less, 0.15 to 0.25 the same."""

_IDLE_GENERATIONS = 20


class EvolutionStrategy(Strategy):
    """CMA-ES (Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772) over log keep ratios.

    A unit with one choice has no say. Every sample is projected onto the budget. It starts at ``start``'s best
    candidate, or else at ``prior``, or else at the uniform ratio, and scores that first; what is scored already is not
    asked for again, and when many generations bring nothing new the search has finished.

    Args:
        constraint: the limits.
        seed: of the samples.
        prior: log keep ratios, shape (units,); only differences matter.
        start: candidates of other strategies; the best that holds the constraint becomes the mean, the next best are
            part of the first generation. Only the best is asked for again.
    """

    def __init__(
        self, constraint: Constraint, *, seed: int, prior: Array | None = None, start: Sequence[Candidate] = ()
    ) -> None:
        self._constraint = constraint
        self._rng = np.random.default_rng(seed)
        space = constraint.space
        self._free = np.array([len(choices) > 1 for choices in space.choices])
        self._start = sorted(holding(start, constraint), key=lambda candidate: -candidate.score)
        informed = bool(self._start) or (prior is not None and float(np.ptp(prior)) > 0)
        self._spread = SPREAD_AROUND if informed else SPREAD
        log_ratios = np.zeros(len(space)) if prior is None else np.asarray(prior, dtype=np.float64)
        self._mean = self._constraint.space.log_ratios(self._start[0].allocation) if self._start else log_ratios
        self._known = {candidate.allocation: candidate.score for candidate in self._start}

    @classmethod
    def of(cls, task: SearchTask) -> EvolutionStrategy:
        """Make it for a task."""
        log_ratios = None if task.prior is None else task.prior.target_log_ratios
        return cls(task.constraint, seed=task.seed, prior=log_ratios, start=task.start)

    def run(self, evaluate: Evaluate) -> None:
        """Score the mean, then one generation after the other."""
        # The start's best is asked for although it is known, so that what this search finds is never worse.
        first = self._start[0].allocation if self._start else self._constraint.allocation(self._mean)
        (self._known[first],) = evaluate([first])
        if np.count_nonzero(self._free) < 2:  # CMA-ES needs two dimensions; projection leaves one unit no freedom
            return
        with _undisturbed():
            evolution = self._prepare()
        idle = 0
        while idle < _IDLE_GENERATIONS:
            with _undisturbed():
                samples = evolution.ask()
            allocations = [self._constraint.allocation(self._expanded(sample)) for sample in samples]
            idle = idle + 1 if all(allocation in self._known for allocation in allocations) else 0
            self._score(allocations, evaluate)
            with _undisturbed():
                evolution.tell(samples, [-self._known[allocation] for allocation in allocations])

    def _prepare(self) -> Any:
        options = {
            "popsize": POPULATION,
            "CMA_diagonal": True,  # a variance per unit: a whole matrix finds no more in so few evaluations
            "randn": lambda samples, size: self._rng.standard_normal((samples, size)),
            "seed": np.nan,  # the generator above is seeded; NumPy's own is left alone
            "verbose": -9,
            "verb_log": 0,
            "verb_disp": 0,
        }
        evolution = _cma().CMAEvolutionStrategy(self._mean[self._free], self._spread, options)
        others = [
            self._constraint.space.log_ratios(candidate.allocation) for candidate in self._start[1 : POPULATION // 2]
        ]
        evolution.inject([self._centred(log_ratios)[self._free] for log_ratios in others], force=True)
        return evolution

    def _score(self, allocations: Sequence[Allocation], evaluate: Evaluate) -> None:
        """Have scored what is not known yet, each once, and remember it."""
        new = list(dict.fromkeys(allocation for allocation in allocations if allocation not in self._known))
        self._known.update(zip(new, evaluate(new), strict=True))

    def _centred(self, log_ratios: Array) -> Array:
        """Shift log ratios to the mean's level: only differences matter, and the distance should hold no more."""
        return np.asarray(log_ratios + np.mean((self._mean - log_ratios)[self._free]))

    def _expanded(self, sample: Array) -> Array:
        log_ratios = self._mean.copy()
        log_ratios[self._free] = sample
        return log_ratios


def _cma() -> Any:
    """Return the package ``cma``, which takes a second to import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cma
    return cma


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the package's warnings, and any draw from global random states, to itself."""
    with warnings.catch_warnings(), preserved_random_state():
        warnings.simplefilter("ignore")
        yield
