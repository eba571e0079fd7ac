"""The projection onto a budget: one common factor for all units, what rounding left where it is missed most."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoprune.arrays import Counts
from autoprune.structure.constraint import Constraint, Cost, CostLimit
from autoprune.structure.space import Space
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
def test_ratios_are_the_wish_times_one_factor_cut_off_at_one(log_ratios: npt.NDArray[np.float64], share: float) -> None:
    limits, _ = wide(share)
    counts = limits.project(log_ratios)
    ratios = limits.space.ratios(counts)
    free = ratios < 1
    factors, step = np.log(ratios[free]) - log_ratios[free], 1 / counts.min()
    more = np.exp(np.minimum(log_ratios + factors.min() + 2 * step, 0.0))
    assert not limits.holds(limits.space.round_down(more)), "the factor is as large as the budget allows"
    assert (log_ratios[~free] + factors.max() > -0.01).all()


@settings(deadline=None, max_examples=30)
@given(WISHES, st.floats(0.05, 0.9))
def test_the_factor_is_found_by_halving_not_by_widening_step_by_step(
    log_ratios: npt.NDArray[np.float64], share: float
) -> None:
    limits, cost = wide(share)
    limits.project(log_ratios)
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

    log_ratios = np.full(4, -1.0)
    log_ratios[unit] = -0.5
    Watched(limits.space, limits.limits).greedy_fill(limits.space.lower, log_ratios)
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


# -- properties of projections -------------------------------------------------------------------------------------


class Channels(Cost):
    """How many channels are kept."""

    metric, unit = "channels", ""

    def __call__(self, counts: Counts) -> npt.NDArray[np.float64]:
        return np.asarray(counts.sum(-1), dtype=np.float64)


SMALL = Space(chain_graph((16, 40, 24, 64, 20)), round_to=4)
SMALL_WISHES = st.lists(st.floats(-4, 4), min_size=5, max_size=5).map(np.array)
SHARES = st.floats(0.1, 1.0)
LogRatios = npt.NDArray[np.float64]


def limited(space: Space, **shares: float) -> Constraint:
    costs = {"flops": LayerFlops(space), "channels": Channels()}
    dense, least = ({name: float(cost(at)) for name, cost in costs.items()} for at in (space.dense, space.lower))
    return Constraint(
        space, [CostLimit(costs[name], max(share * dense[name], least[name])) for name, share in shares.items()]
    )


def check_spent(limits: Constraint, counts: Counts) -> None:
    """Check that an allocation is one, holds every limit, and that no unit fits another step."""
    costs = limits.costs(counts)
    assert all(count in choices for count, choices in zip(counts, limits.space.choices, strict=True))
    assert all(costs[cost_limit.cost.metric] <= cost_limit.limit for cost_limit in limits.limits)
    for unit in range(len(limits.space)):
        wider = limits.space.next_up(counts, unit)
        if wider is not None:
            assert not limits.holds(np.array([*counts[:unit], wider, *counts[unit + 1 :]]))


@given(SMALL_WISHES, SHARES, SHARES)
def test_several_limits_hold_at_once_and_no_unit_fits_another_step(
    log_ratios: LogRatios, flops: float, channels: float
) -> None:
    limits = limited(SMALL, flops=flops, channels=channels)
    counts = limits.project(log_ratios)
    check_spent(limits, counts)
    shares = [limits.costs(counts)[cost_limit.cost.metric] / cost_limit.limit for cost_limit in limits.limits]
    assert limits.utilization(counts) == max(shares)


@given(SMALL_WISHES, SHARES)
def test_a_limit_that_another_implies_changes_nothing(log_ratios: LogRatios, share: float) -> None:
    both = limited(SMALL, flops=share, channels=1.0)
    np.testing.assert_array_equal(both.project(log_ratios), limited(SMALL, flops=share).project(log_ratios))


def test_without_a_limit_everything_stays() -> None:
    limits = Constraint(SMALL, [])
    np.testing.assert_array_equal(limits.project(np.full(5, -3.0)), SMALL.dense)
    assert limits.utilization(np.stack([SMALL.dense, SMALL.lower])).tolist() == [0, 0]


@given(SMALL_WISHES, SHARES, st.data())
def test_filling_widens_until_nothing_fits_and_narrows_nothing(
    log_ratios: LogRatios, share: float, data: st.DataObject
) -> None:
    limits = limited(SMALL, flops=share)
    begun = limits.tightened(data.draw(st.floats(0.1, 1.0))).project(np.zeros(5))
    before = begun.copy()
    counts = limits.greedy_fill(begun, log_ratios)
    np.testing.assert_array_equal(begun, before)
    assert (counts >= begun).all()
    check_spent(limits, counts)


@given(SMALL_WISHES, SHARES, SHARES)
def test_a_tightened_limit_is_a_share_of_it_but_within_reach(
    log_ratios: LogRatios, share: float, tighter: float
) -> None:
    limits = limited(SMALL, flops=share, channels=share)
    for now, before in zip((found := limits.tightened(tighter)).limits, limits.limits, strict=True):
        assert now.limit == max(tighter * before.limit, float(before.cost(SMALL.lower)))
    assert found.holds(SMALL.lower)
    assert limits.holds(found.project(log_ratios))


@settings(max_examples=20)
@given(WISHES, st.floats(0.05, 0.8), st.floats(1.0, 1.2))
def test_a_larger_budget_narrows_no_unit(log_ratios: LogRatios, share: float, more: float) -> None:
    """But by what rounding left, which is next to nothing of the budget and goes where it fits."""
    limits, _ = wide(share)
    smaller, larger = limits.project(log_ratios), wide(share * more)[0].project(log_ratios)
    assert limits.utilization(np.minimum(smaller, larger)) > 0.99


@settings(max_examples=20)
@given(WISHES, st.floats(0.05, 0.9), st.floats(-3, 3))
def test_only_differences_between_wishes_matter(log_ratios: LogRatios, share: float, shift: float) -> None:
    limits, _ = wide(share)
    shifted, counts = limits.project(log_ratios + shift), limits.project(log_ratios)
    np.testing.assert_allclose(limits.space.ratios(shifted), limits.space.ratios(counts), atol=0.01)
