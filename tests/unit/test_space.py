"""Rounding, bounds, and budgets that hold by construction."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.arrays import Counts
from autoprune.criteria._base import ranking
from autoprune.errors import BudgetUnreachableError, ConfigError
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.structure.space import Space
from tests.helpers.toy import LayerFlops, chain_graph

WIDTHS = (16, 24, 32, 8, 64, 20)


def space(round_to: int = 8, min_keep: float = 0.1) -> Space:
    return Space(chain_graph(WIDTHS), round_to=round_to, min_keep=min_keep)


def constraint(share: float) -> Constraint:
    units = space()
    cost = LayerFlops(units)
    return Constraint(units, [CostLimit(cost, share * float(cost(units.dense)))])


def test_choices_are_multiples_and_the_full_width() -> None:
    assert [list(choices) for choices in space().choices] == [
        [8, 16],
        [8, 16, 24],
        [8, 16, 24, 32],
        [8],
        [8, 16, 24, 32, 40, 48, 56, 64],
        [8, 16, 20],
    ]


def test_the_lower_bound_is_a_ratio_of_at_least_one_multiple() -> None:
    assert list(space(min_keep=0.5).lower) == [8, 16, 16, 8, 32, 16]


@pytest.mark.parametrize(("round_to", "min_keep"), [(0, 0.1), (8, 0.0), (8, 1.5)])
def test_senseless_bounds_are_refused(round_to: int, min_keep: float) -> None:
    with pytest.raises(ConfigError, match="must"):
        space(round_to, min_keep)


@pytest.mark.parametrize(
    ("round_to", "min_keep", "said"),
    [
        (8, 0.5, "lower `min_keep` or `round_to`"),
        (8, 0.1, "lower `round_to`"),  # of 64 channels 7 would be enough
        (1, 0.1, "lower `min_keep`"),
        (8, 1.0, "lower `min_keep`"),
        (64, 0.1, "lower `round_to`"),
        (100_000, 0.1, "lower `round_to`"),
        (100_000, 1.0, ""),
        (1, 1e-3, ""),
    ],
)
def test_what_lets_a_unit_be_narrower_is_known(round_to: int, min_keep: float, said: str) -> None:
    assert space(round_to, min_keep).narrowing == said


def test_out_of_reach_names_what_brings_nearer() -> None:
    for round_to, min_keep in ((100_000, 0.1), (1, 0.5), (1, 1e-3)):
        units = space(round_to, min_keep)
        cost = LayerFlops(units)
        with pytest.raises(BudgetUnreachableError) as caught:
            Constraint(units, [CostLimit(cost, 0.5 * float(cost(units.lower)))])
        ways_out = ", ".join(filter(None, ["ask for more than that", units.narrowing, "or use a smaller image size"]))
        assert str(caught.value).endswith(f"; {ways_out}")


def test_a_unit_keeps_no_less_than_it_must() -> None:
    graph = chain_graph(WIDTHS)
    units = (*graph.units[:4], replace(graph.units[4], least=24), *graph.units[5:])
    assert list(Space(replace(graph, units=units), round_to=8).choices[4]) == [24, 32, 40, 48, 56, 64]


def test_the_next_choice_up_is_the_neighbour() -> None:
    units = space()
    choices = [int(choice) for choice in units.choices[4]]
    counts = units.dense.copy()
    for lower, upper in pairwise(choices):
        counts[4] = lower
        assert units.next_up(counts, 4) == upper
    assert units.next_up(units.dense, 4) is None


@given(st.lists(st.floats(0.01, 1.0), min_size=len(WIDTHS), max_size=len(WIDTHS)))
def test_rounding_down_never_exceeds_the_ratio_but_for_the_lower_bound(ratios: list[float]) -> None:
    units = space()
    counts = units.round_down(np.array(ratios))
    for unit, (count, ratio, choices, width) in enumerate(zip(counts, ratios, units.choices, WIDTHS, strict=True)):
        assert count in choices
        assert count <= ratio * width + 1e-6 or count == choices[0]
        wider = units.next_up(counts, unit)
        assert wider is None or wider > ratio * width


@given(st.data())
def test_the_ratios_of_an_allocation_round_to_it(data: st.DataObject) -> None:
    units = space()
    counts = [data.draw(st.sampled_from(list(choices))) for choices in units.choices]
    assert list(units.round_down(units.ratios(np.array(counts)))) == counts


@settings(deadline=None)
@given(
    st.lists(
        st.floats(-3, 3) | st.floats(allow_nan=False, allow_infinity=False), min_size=len(WIDTHS), max_size=len(WIDTHS)
    ),
    st.floats(0.2, 1.0),
)
def test_projection_holds_the_budget_and_leaves_no_step_unused(log_ratios: list[float], share: float) -> None:
    limits = constraint(share)
    counts = limits.project(np.array(log_ratios))
    assert limits.holds(counts)
    for unit in range(len(limits.space)):
        wider = limits.space.next_up(counts, unit)
        if wider is not None:
            trial = counts.copy()
            trial[unit] = wider
            assert not limits.holds(trial)


@settings(deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=len(WIDTHS), max_size=len(WIDTHS)),
    st.integers(0, len(WIDTHS) - 1),
    st.sampled_from([np.nan, np.inf, -np.inf]),
)
def test_numbers_that_are_not_finite_are_refused_by_name(log_ratios: list[float], place: int, broken: float) -> None:
    limits = constraint(0.5)
    numbers = np.array(log_ratios)
    numbers[place] = broken
    said = rf"of conv{place} \(unit {place + 1} of 6\) must be a finite number, got -?(nan|inf);"
    with pytest.raises(ConfigError, match=f"log keep ratio {said}"):
        limits.project(numbers)
    with pytest.raises(ConfigError, match=f"log keep ratio {said}"):
        limits.greedy_fill(limits.space.lower, numbers)
    with pytest.raises(ConfigError, match=f"keep ratio {said}"):
        limits.space.round_down(numbers)


@pytest.mark.parametrize("limit", [np.nan, np.inf])
def test_a_limit_is_a_finite_number(limit: float) -> None:
    units = space()
    with pytest.raises(ConfigError, match="The limit of flops must be a finite number"):
        Constraint(units, [CostLimit(LayerFlops(units), limit)])


def test_a_cost_that_is_not_a_number_holds_no_budget() -> None:
    class Broken(LayerFlops):
        def __call__(self, counts: Counts) -> npt.NDArray[np.float64]:
            return super().__call__(counts) * np.nan

    with pytest.raises(ConfigError, match="The least flops must be a finite number, got nan"):
        Constraint(space(), [CostLimit(Broken(space()), 1e9)])


def test_the_lower_bounds_of_very_wide_units_are_reached_too() -> None:
    units = Space(chain_graph([40_000, 16]), round_to=1, min_keep=1e-6)
    cost = LayerFlops(units)
    limits = Constraint(units, [CostLimit(cost, float(cost(units.lower)))])
    assert list(limits.project(np.zeros(2))) == list(units.lower)


def test_projecting_a_loose_budget_keeps_everything() -> None:
    limits = constraint(1.0)
    assert list(limits.project(np.zeros(len(WIDTHS)))) == list(WIDTHS)


def test_an_unreachable_budget_tells_the_reachable_minimum() -> None:
    units = space()
    cost = LayerFlops(units)
    lowest = float(cost(units.lower))
    with pytest.raises(BudgetUnreachableError, match="still needs") as caught:
        Constraint(units, [CostLimit(cost, 0.5 * lowest)])
    assert caught.value.exit_code == 3


@settings(deadline=None)
@given(st.floats(0.3, 1.0), st.randoms(use_true_random=False))
def test_the_cap_keeps_the_budget_reachable(share: float, random: object) -> None:
    limits = constraint(share)
    counts = limits.space.lower.copy()
    for unit in range(len(limits.space)):
        cap = limits.cap(counts, unit)
        fitting = [choice for choice in limits.space.choices[unit] if choice <= cap]
        counts[unit] = random.choice(fitting)  # type: ignore[attr-defined]
    assert limits.holds(counts)


def test_axis_widths_count_the_mask() -> None:
    units = space()
    rng = np.random.default_rng(0)
    counts = np.array([rng.choice(choices) for choices in units.choices])
    order = [rng.permutation(group.size) for group in units.graph.groups]
    keep = units.kept_channels(counts, order)
    assert list(units.axis_widths(counts)) == [np.count_nonzero(keep[axis]) for axis in units.graph.axes]
    batch = np.stack([counts, units.dense])
    np.testing.assert_array_equal(units.axis_widths(batch)[0], units.axis_widths(counts))


@settings(deadline=None)
@given(st.data())
def test_the_most_important_channels_stay(data: st.DataObject) -> None:
    units = space()
    counts = [data.draw(st.sampled_from(list(choices))) for choices in units.choices]
    importance = [np.array(data.draw(st.permutations(range(group.size)))) for group in units.graph.groups]
    keep = units.kept_channels(counts, ranking([scores.astype(np.float64) for scores in importance]))
    for group, kept, scores in zip(units.graph.groups, units.group_counts(counts), importance, strict=True):
        stays = keep[group.offset : group.offset + group.size]
        assert sorted(scores[stays]) == list(range(group.size - kept, group.size)), "the highest scores stay"


def test_of_equal_channels_the_first_stay() -> None:
    units = space()
    keep = units.kept_channels([8, 8, 8, 8, 8, 8], ranking([np.zeros(group.size) for group in units.graph.groups]))
    group = units.graph.groups[units.units[1].groups[0]]
    assert list(np.flatnonzero(keep[group.offset : group.offset + group.size])) == list(range(8))


def test_allocations_are_checked() -> None:
    units = space()
    assert units.allocation(units.dense) == WIDTHS
    with pytest.raises(ConfigError, match="6 counts expected"):
        units.allocation([1])
    with pytest.raises(ConfigError, match="must keep 1 to 16"):
        units.allocation([0, 8, 8, 8, 8, 8])


def test_an_allocation_by_names_names_every_unit() -> None:
    units = space()
    dense = {unit.name: unit.width for unit in units.units}
    name = units.units[1].name
    assert units.from_names({**dense, name: 8}) == (16, 8, 32, 8, 64, 20)
    with pytest.raises(ConfigError, match=f"names every unit of the network, got no count for {name}"):
        units.from_names({other: width for other, width in dense.items() if other != name})
    with pytest.raises(ConfigError, match="names every unit of the network, got an unknown unit nothing"):
        units.from_names({**dense, "nothing": 8})
