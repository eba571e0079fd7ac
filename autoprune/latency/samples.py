"""Which allocations to measure so that a predictor can be fitted and judged."""

from __future__ import annotations

import numpy as np

from autoprune.costs.static import Floats
from autoprune.structure.constraint import Cost
from autoprune.structure.space import Allocation, Counts, Space

SCATTER = 0.5
"""Standard deviation of the random log keep ratios."""

_NEAR = 0.1
_STEPS = 30


def spread_allocations(
    space: Space, cost: Cost, *, number: int, seed: int, around: float | None = None
) -> list[Allocation]:
    """Return random allocations at levels of a cost spread over what can be reached.

    Args:
        space: the space of allocations.
        cost: levels are shares of this at the dense network; a predictor that is not fitted yet will do.
        number: how many allocations.
        seed: everything random follows from it.
        around: share of the dense cost near which every other one lies; None spreads all of them evenly.
    """
    generator = np.random.default_rng(seed)
    found = []
    for level in _levels(float(cost(space.lower) / cost(space.dense)), number, around):
        wish = generator.normal(0.0, SCATTER, len(space))
        found.append(space.allocation(scale_to(space, cost, wish, level)))
    return found


def scale_to(space: Space, cost: Cost, log_ratios: Floats, level: float) -> Counts:
    """Scale keep ratios by one common factor until the cost is at most ``level`` of the dense one, and round down."""
    most = level * float(cost(space.dense))
    low, high = float(np.log(1e-4) - log_ratios.max()), float(-log_ratios.min())
    for _ in range(_STEPS):
        middle = (low + high) / 2
        counts = space.round_down(np.exp(np.minimum(log_ratios + middle, 0.0)))
        low, high = (middle, high) if cost(counts) <= most else (low, middle)
    return space.round_down(np.exp(np.minimum(log_ratios + low, 0.0)))


def _levels(least: float, number: int, around: float | None) -> Floats:
    """Return levels over (least, 1), every other one near ``around``."""
    even = least + (np.arange(number) + 0.5) / number * (1 - least)
    if around is not None:
        near = np.linspace(around - _NEAR, around + _NEAR, len(even[::2]))
        even[::2] = np.clip(near, least, 1.0)
    return np.asarray(even)
