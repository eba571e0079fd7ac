"""What a strategy is, and the one search loop: ask, evaluate, tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.errors import ConfigError
from autoprune.io.finite import check_finite
from autoprune.strategies.rl.isolation import preserved_random_state
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation

Evaluate = Callable[[Sequence[Allocation]], Sequence[float]]
"""Scores allocations, in order; higher is better, and every score is a finite number."""


class Strategy(ABC):
    """Proposes allocations and hears their scores; never evaluates.

    A strategy is a function of its seed and of what it was told: asked again in the same way it proposes the same, so
    that a killed search resumes by replaying its journal.
    """

    @abstractmethod
    def ask(self, limit: int) -> Sequence[Allocation]:
        """Return what to score next.

        Args:
            limit: the most that may be returned, at least 1.

        Returns:
            1 to ``limit`` allocations; none when the strategy has finished. One that does not hold the constraint is a
            probe: it is scored like the others and cannot win.
        """

    @abstractmethod
    def tell(self, allocations: Sequence[Allocation], scores: Sequence[float]) -> None:
        """Hear the scores of what ``ask`` returned last, in the same order."""

    @abstractmethod
    def close(self) -> None:
        """Release threads and files; called once, however the search ended."""


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
        total: evaluations allowed.
        latest: the candidate just scored.
        best: the best so far, or None while there are only probes.
    """

    done: int
    total: int
    latest: Candidate
    best: Candidate | None


def search(
    strategy: Strategy,
    evaluate: Evaluate,
    *,
    constraint: Constraint,
    evaluations: int,
    on_evaluation: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Run a strategy until it has finished or the evaluations are spent, and close it.

    Global random states (Python, NumPy, torch) are the same after ``evaluate`` as before: whether a score is computed
    or comes out of a journal, the search goes the same way.

    Args:
        strategy: proposes.
        evaluate: scores.
        constraint: what the result must hold.
        evaluations: the most allocations that are scored.
        on_evaluation: told after every scored allocation.

    Raises:
        ConfigError: fewer than one evaluation is allowed, the strategy proposes nothing that holds the constraint, or
            a score is NaN or infinite.
    """
    if evaluations < 1:
        raise ConfigError(f"A search needs at least 1 evaluation, got {evaluations}")
    history: list[Candidate] = []
    best: Candidate | None = None
    try:
        while len(history) < evaluations:
            allocations = strategy.ask(evaluations - len(history))
            if not allocations:
                break
            for candidate in _scored(allocations, evaluate):
                history.append(candidate)
                if (best is None or candidate.score > best.score) and constraint.holds(np.array(candidate.allocation)):
                    best = candidate
                if on_evaluation is not None:
                    on_evaluation(Progress(len(history), evaluations, candidate, best))
            strategy.tell(allocations, [candidate.score for candidate in history[-len(allocations) :]])
    finally:
        strategy.close()
    if best is None:
        raise ConfigError(
            f"The strategy proposed nothing within the budget in {len(history)} evaluations; allow more of them"
        )
    return SearchResult(best, tuple(history))


def _scored(allocations: Sequence[Allocation], evaluate: Evaluate) -> list[Candidate]:
    with preserved_random_state():
        scores = [float(score) for score in evaluate(allocations)]
    if len(scores) != len(allocations):
        raise ConfigError(f"One score is needed for each of {len(allocations)} allocations, got {scores}")
    return [Candidate(allocation, score) for allocation, score in zip(allocations, scores, strict=True)]
