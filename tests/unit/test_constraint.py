"""The projection onto a budget: one common factor for all units, what rounding left where it is missed most."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.structure.space import Counts, Space
from tests.helpers.toy import LayerFlops, chain_graph

WIDTHS = (3000, 5000, 2000, 4000, 6000, 1000)
"""So many channels that a step is next to nothing, and the projection is the common factor alone."""


class Counted(LayerFlops):
    """Tells how often it was asked."""

    asked = 0

    def __call__(self, counts: Counts) -> npt.NDArray[np.float64]:
        self.asked += 1
        return super().__call__(counts)


def wide(share: float) -> tuple[Constraint, Counted]:
    space = Space(chain_graph(WIDTHS), round_to=1, min_keep=1e-3)
    cost = Counted(space)
    limits = Constraint(space, [CostLimit(cost, share * float(cost(space.dense)))])
    cost.asked = 0
    return limits, cost


WISHES = st.lists(st.floats(-2, 2), min_size=len(WIDTHS), max_size=len(WIDTHS)).map(np.array)


@settings(deadline=None, max_examples=30)
@given(WISHES, st.floats(0.05, 0.9))
@example(np.array([0.0, 1.0, 1.0, 1.0, 1.0, 0.5]), 0.75)  # of two units below 1 one gets what is left
def test_ratios_are_the_wish_times_one_factor_cut_off_at_one(wish: npt.NDArray[np.float64], share: float) -> None:
    limits, _ = wide(share)
    counts = limits.project(wish)
    ratios = limits.space.ratios(counts)
    free = ratios < 1
    factors, step = np.log(ratios[free]) - wish[free], 1 / counts.min()
    more = np.exp(np.minimum(wish + factors.min() + 2 * step, 0.0))
    assert not limits.holds(limits.space.round_down(more)), "the factor is as large as the budget allows"
    assert (wish[~free] + factors.max() > -0.01).all()


@settings(deadline=None, max_examples=30)
@given(WISHES, st.floats(0.05, 0.9))
def test_the_factor_is_found_by_halving_not_by_widening_step_by_step(
    wish: npt.NDArray[np.float64], share: float
) -> None:
    limits, cost = wide(share)
    limits.project(wish)
    assert cost.asked < 26 + 50 * len(WIDTHS), "thousands of steps lie between the bounds"


def narrow() -> tuple[Space, LayerFlops]:
    """Four alike units of two choices each: 8 and 16."""
    space = Space(chain_graph([16] * 4), round_to=8)
    return space, LayerFlops(space)


def held(widened: tuple[int, ...]) -> Constraint:
    """Return the limit that an allocation with these of the four units widened just holds."""
    space, cost = narrow()
    counts = space.lower.copy()
    counts[list(widened)] = 16
    return Constraint(space, [CostLimit(cost, float(cost(counts)))])


@pytest.mark.parametrize("unit", range(4))
def test_what_is_left_goes_to_the_unit_that_is_furthest_below_its_wish(unit: int) -> None:
    limits = held((0, 1, 2, 3))
    order: list[int] = []

    class Watched(Constraint):
        def holds(self, counts: Counts) -> bool:
            order.extend(np.flatnonzero(counts != limits.space.lower)[:1] if not order else [])
            return super().holds(counts)

    wish = np.full(4, -1.0)
    wish[unit] = -0.5
    Watched(limits.space, limits.limits).greedy_fill(limits.space.lower, wish)
    assert order == [unit]


def test_of_units_that_are_equally_far_the_first_is_widened() -> None:
    space, _ = narrow()
    last = held((3,))
    assert list(last.greedy_fill(space.lower, np.zeros(4))) != list(space.lower), "there is room for one unit"
    everything = held((0, 1, 2, 3))
    widened: list[tuple[int, ...]] = []

    class Watched(Constraint):
        def holds(self, counts: Counts) -> bool:
            widened.append(tuple(map(int, np.flatnonzero(counts > space.lower))))
            return super().holds(counts)

    Watched(space, everything.limits).greedy_fill(space.lower, np.zeros(4))
    assert widened[-4:] == [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)]
