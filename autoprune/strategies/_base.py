"""Define a strategy, and run it: the one search loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.errors import ConfigError
from autoprune.io.finite import check_finite
from autoprune.strategies.isolation import preserved_random_state
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation

if TYPE_CHECKING:
    from autoprune.strategies.curves import SensitivityCurves
    from autoprune.strategies.prior import SearchPrior
    from autoprune.strategies.regrowth import Gains
    from autoprune.strategies.rl.view import MakeEnv

Score = Callable[[Sequence[Allocation]], Sequence[float]]
"""Scores allocations, in order; higher is better, and every score is a finite number."""


Track = Callable[[Mapping[str, float]], None]
"""Takes figures by name, e.g. ``noise``."""


def untracked(figures: Mapping[str, float]) -> None:
    """Keep no figures."""


class Evaluate(Protocol):
    """Scores allocations for a strategy, and counts them."""

    @property
    def left(self) -> int:
        """How many may still be scored."""

    def __call__(self, allocations: Sequence[Allocation]) -> Sequence[float]:
        """Return the scores, in order.

        Raises:
            EvaluationsSpent: there were more allocations than may be scored; the first of them were.
        """


class EvaluationsSpent(Exception):
    """Leaves a strategy, wherever it is, when no more may be scored; a strategy lets it pass."""


class Strategy(ABC):
    """Searches for the best allocation by having some scored."""

    @abstractmethod
    def run(self, evaluate: Evaluate) -> None:
        """Have allocations scored until there is nothing more to try.

        It is a function of the strategy's seed and of the scores: given the same it asks for the same, so that a
        killed search resumes by replaying its journal. An allocation that does not hold the constraint is a probe: it
        is scored like the others and cannot win.
        """


@dataclass(frozen=True, kw_only=True)
class SearchTask:
    """What a strategy is made from; each takes what it needs.

    Attributes:
        constraint: the budget.
        evaluations: how many candidates may be scored.
        seed: of everything random.
        rollout: how many candidates PPO or polish has scored together; None for its own number.
        prior: where to start; for strategies that use one.
        gains: of widening every unit; for strategies that use them.
        curves: sensitivity curves measured before, or None.
        importance: per group of the graph the score of each of its channels, shape (size,).
        environment: (log keep ratios to start from, sensitivities) → what makes the environment of an agent.
        start: candidates of other strategies that hold the constraint.
        track: called with figures of the strategy itself, by name, whenever it has new ones.
    """

    constraint: Constraint
    evaluations: int
    seed: int = 0
    rollout: int | None = None
    prior: SearchPrior | None = None
    gains: Gains | None = None
    curves: SensitivityCurves | None = None
    importance: Sequence[Array] = ()
    environment: Callable[[Array, Array], MakeEnv] | None = None
    start: tuple[Candidate, ...] = ()
    track: Track = untracked

    @property
    def known(self) -> tuple[Candidate, ...]:
        """The candidates of other strategies and of the prior that hold the constraint."""
        return holding((*self.start, *(() if self.prior is None else self.prior.tried)), self.constraint)


@dataclass(frozen=True)
class Candidate:
    """An allocation with its score; higher is better.

    Raises:
        ConfigError: the score is NaN or infinite.
    """

    allocation: Allocation
    score: float

    def __post_init__(self) -> None:
        check_finite(
            [self.score],
            lambda _: f"The score of {self.allocation}",
            way_out="a network that does not compute should get a very low score",
        )


def holding(candidates: Iterable[Candidate], constraint: Constraint) -> tuple[Candidate, ...]:
    """Return those candidates that hold a constraint."""
    return tuple(one for one in candidates if constraint.holds(np.array(one.allocation)))


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: the candidate that holds the constraint with the highest score, the earliest of equals.
        history: every candidate in the order of evaluation, probes too.
    """

    best: Candidate
    history: tuple[Candidate, ...]


@dataclass(frozen=True)
class Progress:
    """Where a search stands after an evaluation.

    Attributes:
        done: evaluations so far.
        latest: the candidate just scored.
        best: the best so far, or None while there are only probes.
    """

    done: int
    latest: Candidate
    best: Candidate | None


def search(
    strategy: Strategy,
    score: Score,
    *,
    constraint: Constraint,
    evaluations: int,
    on_evaluation: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Run a strategy until it has finished or the evaluations are spent.

    Global random states (Python, NumPy, torch) are the same after ``score`` as before: whether a score is computed or
    comes out of a journal, the search goes the same way.

    Args:
        strategy: asks for scores.
        score: gives them.
        constraint: what the result must hold.
        evaluations: the most allocations that are scored.
        on_evaluation: called after every scored allocation.

    Raises:
        ConfigError: fewer than one evaluation is allowed, the strategy proposes nothing that holds the constraint, or
            a score is NaN or infinite.
    """
    if evaluations < 1:
        raise ConfigError(f"A search needs at least 1 evaluation, got {evaluations}")
    record = _Record(score, constraint, evaluations, on_evaluation)
    with suppress(EvaluationsSpent):
        strategy.run(record)
    if record.best is None:
        raise ConfigError(
            f"The strategy proposed nothing within the budget in {len(record.history)} evaluations; allow more of them"
        )
    return SearchResult(record.best, tuple(record.history))


class _Record:
    """An `Evaluate` that keeps what was scored.

    Attributes:
        history: every candidate, in order.
        best: the best of them that holds the constraint, if any does.
    """

    def __init__(
        self, score: Score, constraint: Constraint, evaluations: int, on_evaluation: Callable[[Progress], None] | None
    ) -> None:
        self._score, self._constraint, self._evaluations = score, constraint, evaluations
        self._on_evaluation = on_evaluation
        self.history: list[Candidate] = []
        self.best: Candidate | None = None

    @property
    def left(self) -> int:
        return self._evaluations - len(self.history)

    def __call__(self, allocations: Sequence[Allocation]) -> Sequence[float]:
        allowed = allocations[: self.left]
        scores = self._scores(allowed) if allowed else []
        for allocation, score in zip(allowed, scores, strict=True):
            self._add(Candidate(allocation, score))
        if len(allowed) < len(allocations):
            raise EvaluationsSpent
        return scores

    def _scores(self, allocations: Sequence[Allocation]) -> list[float]:
        with preserved_random_state():
            scores = [float(score) for score in self._score(allocations)]
        if len(scores) != len(allocations):
            raise ConfigError(f"One score is needed for each of {len(allocations)} allocations, got {scores}")
        return scores

    def _add(self, candidate: Candidate) -> None:
        self.history.append(candidate)
        better = self.best is None or candidate.score > self.best.score
        if better and self._constraint.holds(np.array(candidate.allocation)):
            self.best = candidate
        if self._on_evaluation is not None:
            self._on_evaluation(Progress(len(self.history), candidate, self.best))


def lowest_level(constraint: Constraint, levels: int, counts_at: Callable[[int], Counts]) -> int:
    """Return the lowest level that holds the constraint, by bisection.

    Args:
        constraint: the limits.
        levels: how many levels there are, at least 1.
        counts_at: counts of a level, shape (units,); no unit widens from one level to the next, and the last holds.
    """
    low, high = -1, levels - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if constraint.holds(counts_at(middle)) else (middle, high)
    return high
