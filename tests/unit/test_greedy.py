"""NetAdapt's steps: what each saves, where the last one lands, and how few evaluations they need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.strategies._base import SearchResult, search
from autoprune.strategies.greedy import ITERATIONS, GreedyStrategy, proposals, savings
from autoprune.strategies.random import RandomStrategy
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.structure.space import Allocation
from tests.helpers.toy import Toy, make_toy

FINE = make_toy(10, round_to=1, budget=0.6)
TOY = make_toy(40)


def run(strategy: object, toy: Toy, evaluations: int) -> SearchResult:
    return search(strategy, toy.score, constraint=toy.constraint, evaluations=evaluations)  # type: ignore[arg-type]


@given(st.integers(0, 100), st.floats(0.001, 0.5))
def test_a_proposal_is_the_largest_width_that_saves_enough(seed: int, saving: float) -> None:
    space, constraint = FINE.space, FINE.constraint
    rng = np.random.default_rng(seed)
    counts = np.array([rng.choice(choices) for choices in space.choices])
    target = float(constraint.utilization(counts)) - saving
    found = dict(proposals(constraint, counts, saving))
    for unit in range(len(space)):
        narrower = [counts.copy() for _ in space.choices[unit]]
        for trial, choice in zip(narrower, space.choices[unit], strict=True):
            trial[unit] = choice
        enough = [
            trial[unit] for trial in narrower if trial[unit] < counts[unit] and constraint.utilization(trial) <= target
        ]
        assert (unit in found) == bool(enough)
        if enough:
            assert found[unit][unit] == max(enough)
            assert (np.delete(found[unit], unit) == np.delete(counts, unit)).all()


def test_at_the_lower_bounds_there_are_no_proposals() -> None:
    assert proposals(TOY.constraint, TOY.space.lower, 1e-6) == []


def test_the_savings_decay_and_add_up_as_in_the_paper() -> None:
    planned = savings(1.0, ITERATIONS)
    assert sum(planned) == pytest.approx(1.0)
    assert planned[0] == pytest.approx(2 * 0.025, rel=0.01)  # the load of the dense network is 2: half is to be saved
    np.testing.assert_allclose(np.divide(planned[1:], planned[:-1]), 0.96)


def test_with_time_for_all_every_step_saves_what_is_planned() -> None:
    strategy = GreedyStrategy(FINE.constraint, evaluations=100_000)
    planned = savings(float(FINE.constraint.utilization(FINE.space.dense)) - 1, ITERATIONS)
    batches: list[Sequence[Allocation]] = []

    def score(allocations: Sequence[Allocation]) -> list[float]:
        batches.append(allocations)
        return FINE.score(allocations)

    search(strategy, score, constraint=FINE.constraint, evaluations=100_000)
    counts, score_before = FINE.space.dense, 0.0
    for asked, planned_saving in zip(batches, planned, strict=False):
        savings_made = FINE.constraint.utilization(counts) - FINE.constraint.utilization(np.array(asked))
        scores = np.array(FINE.score(asked))
        best = int(np.argmin((score_before - scores) / savings_made))
        counts, score_before = np.array(asked[best]), scores[best]
        if not FINE.constraint.holds(counts):
            assert savings_made[best] >= planned_saving
    assert len(batches[0]) == len(FINE.space)
    assert 10 <= len(batches) <= ITERATIONS
    assert FINE.constraint.holds(counts)


@pytest.mark.parametrize("evaluations", [20, 60, 200])
def test_it_lands_within_one_rounding_step_of_the_budget(evaluations: int) -> None:
    result = run(GreedyStrategy(TOY.constraint, evaluations=evaluations), TOY, evaluations)
    counts = np.array(result.best.allocation)
    assert TOY.constraint.holds(counts)
    for unit in range(len(counts)):
        if (wider := TOY.space.next_up(counts, unit)) is not None:
            trial = counts.copy()
            trial[unit] = wider
            assert not TOY.constraint.holds(trial)


def test_few_evaluations_beat_random_search() -> None:
    greedy = run(GreedyStrategy(TOY.constraint, evaluations=100), TOY, 100)
    assert greedy.best.score > run(RandomStrategy(TOY.constraint, seed=0), TOY, 100).best.score


def test_several_limits_hold_at_once() -> None:
    cost = TOY.cost

    class Widths(type(cost)):  # type: ignore[misc]
        metric = "params"

        def __call__(self, counts: np.ndarray) -> np.ndarray:
            return np.asarray(np.asarray(counts, dtype=float).sum(axis=-1))

    widths = Widths(TOY.space)
    both = Constraint(
        TOY.space,
        [CostLimit(cost, 0.6 * float(cost(TOY.space.dense))), CostLimit(widths, 0.7 * float(widths(TOY.space.dense)))],
    )
    result = search(GreedyStrategy(both, evaluations=150), TOY.score, constraint=both, evaluations=150)
    assert both.holds(np.array(result.best.allocation))
    assert float(both.utilization(np.array(result.best.allocation))) > 0.97


def test_a_budget_that_the_dense_network_holds_is_that_network() -> None:
    toy = make_toy(5, budget=1.0)
    result = run(GreedyStrategy(toy.constraint, evaluations=30), toy, 30)
    assert [candidate.allocation for candidate in result.history] == [toy.space.allocation(toy.space.dense)]
