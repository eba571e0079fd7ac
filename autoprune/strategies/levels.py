"""One level for all units, raised until the budget holds."""

from __future__ import annotations

from collections.abc import Callable

from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Counts


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
