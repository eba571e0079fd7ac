"""What every strategy promises; a new one is tested in three lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from autoprune.strategies._base import EvaluationsSpent, SearchResult, Strategy, search
from autoprune.structure.space import Allocation
from tests.helpers.toy import Toy

MakeStrategy = Callable[[int], Strategy]
"""Makes a fresh strategy, seeded alike every time, for so many evaluations."""


def check_strategy(
    make: MakeStrategy, toy: Toy, *, evaluations: int = 13, exact: bool = True, probes: bool = False
) -> SearchResult:
    """Assert the contract and return what the strategy found.

    Args:
        make: makes the strategy on the toy's space.
        toy: the problem.
        evaluations: how many to allow.
        exact: whether it must spend them all.
        probes: whether it may ask for allocations that do not hold the constraint.
    """
    result = search(make(evaluations), toy.score, constraint=toy.constraint, evaluations=evaluations)
    assert len(result.history) == evaluations if exact else 1 <= len(result.history) <= evaluations
    holding = [item for item in result.history if toy.constraint.holds(np.array(item.allocation))]
    assert probes or len(holding) == len(result.history), "every candidate holds the constraint"
    assert result.best.score == max(candidate.score for candidate in holding)
    check_replay(make, toy, result, evaluations)
    check_batches(make, toy, result, evaluations)
    return result


def check_replay(make: MakeStrategy, toy: Toy, result: SearchResult, evaluations: int) -> None:
    """Assert that the search goes the same way when its answers are known, whatever was drawn meanwhile."""
    journal = {candidate.allocation: candidate.score for candidate in result.history}

    def replay(allocations: list[tuple[int, ...]]) -> list[float]:
        np.random.rand(3)
        return [journal[allocation] for allocation in allocations]

    np.random.seed(99)
    again = search(make(evaluations), replay, constraint=toy.constraint, evaluations=evaluations)  # type: ignore[arg-type]
    assert again == result


def check_batches(make: MakeStrategy, toy: Toy, result: SearchResult, evaluations: int) -> None:
    """Assert that a search with fewer evaluations is the beginning of the longer one that was planned the same."""
    whole = len(result.history)
    for fewer in sorted({1, 2, 3, whole // 2, whole - 1} & set(range(1, whole))):
        shorter = _Cut(toy, fewer)
        with suppress(EvaluationsSpent):
            make(evaluations).run(shorter)
        assert shorter.allocations == [candidate.allocation for candidate in result.history[:fewer]]


class _Cut:
    """Scores so many allocations of a strategy, and no more."""

    def __init__(self, toy: Toy, left: int) -> None:
        self.toy, self.left = toy, left
        self.allocations: list[Allocation] = []

    def __call__(self, allocations: Sequence[Allocation]) -> list[float]:
        allowed = allocations[: self.left]
        self.left -= len(allowed)
        self.allocations.extend(allowed)
        if len(allowed) < len(allocations):
            raise EvaluationsSpent
        return self.toy.score(allowed) if allowed else []


def first_of(strategy: Strategy, toy: Toy) -> Allocation:
    """Return what a strategy has scored first."""
    return search(strategy, toy.score, constraint=toy.constraint, evaluations=1).history[0].allocation
