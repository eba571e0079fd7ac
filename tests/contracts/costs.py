"""What every cost promises; a new one is tested in three lines."""

from __future__ import annotations

import numpy as np

from autoprune.arrays import Counts
from autoprune.costs import Cost
from autoprune.metrics import METRICS
from autoprune.structure.space import Space

_TOLERANCE = 1e-9


def check_cost(cost: Cost, space: Space, *, allocations: int = 20) -> None:
    """Assert the contract on random allocations.

    Args:
        cost: the cost.
        space: the allocations that it is a function of.
        allocations: how many to try.
    """
    generator = np.random.default_rng(0)
    counts = np.array([[generator.choice(choices) for choices in space.choices] for _ in range(allocations)])
    assert cost.metric in {spec.name for spec in METRICS}
    assert cost.unit
    check_values(cost, counts)
    for candidate in counts:
        check_monotone(cost, space, candidate)


def check_values(cost: Cost, counts: Counts) -> None:
    """Assert that values are finite and positive, and the same for one allocation as for many."""
    before = counts.copy()
    many = cost(counts)
    assert many.shape == (len(counts),)
    assert np.isfinite(many).all()
    assert (many > 0).all()
    single = [cost(candidate) for candidate in counts]
    assert all(np.shape(value) == () for value in single)
    np.testing.assert_allclose(many, single, rtol=1e-12)
    np.testing.assert_array_equal(counts, before)


def check_monotone(cost: Cost, space: Space, counts: Counts) -> None:
    """Assert that widening any unit by a step never lowers the cost."""
    value = float(cost(counts))
    for unit in range(len(space)):
        wider = space.next_up(counts, unit)
        if wider is not None:
            widened = counts.copy()
            widened[unit] = wider
            assert float(cost(widened)) >= value * (1 - _TOLERANCE), space.units[unit].name
