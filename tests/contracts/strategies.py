"""What every strategy promises; a new one is tested in three lines."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autoprune.strategies._base import SearchResult, Strategy, search
from tests.toy import Toy

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
    check_limits(make, toy, evaluations)
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


def check_limits(make: MakeStrategy, toy: Toy, evaluations: int) -> None:
    """Assert that ``ask`` returns no more than it may, one at a time too, and nothing when all is spent."""
    strategy = make(evaluations)
    try:
        for _ in range(evaluations):
            allocations = strategy.ask(1)
            if not allocations:
                return
            assert len(allocations) == 1
            strategy.tell(allocations, toy.score(allocations))
    finally:
        strategy.close()
