"""Polish: how it goes on from the best, and how much of a search by PPO it takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.strategies._base import Candidate, SearchResult, SearchTask, Strategy, search
from autoprune.strategies.polish import TOGETHER, PolishStrategy
from autoprune.strategies.prior import SearchPrior
from autoprune.strategies.random import RandomStrategy
from autoprune.strategies.rl.agents import AgentKind
from autoprune.structure.space import Allocation
from tests.contracts.strategies import check_strategy
from tests.helpers.toy import Toy, make_toy

TOY = make_toy(12)


def run(strategy: Strategy, evaluations: int, toy: Toy = TOY) -> SearchResult:
    return search(strategy, toy.score, constraint=toy.constraint, evaluations=evaluations)


def ppo(evaluations: int, toy: Toy = TOY, *, start: Sequence[Candidate] = (), seed: int = 0) -> Strategy:
    prior = SearchPrior(np.zeros(len(toy.space)), np.linspace(-0.5, 0, len(toy.space)), (), 1)
    task = SearchTask(
        constraint=toy.constraint,
        evaluations=evaluations,
        seed=seed,
        prior=prior,
        environment=lambda log_ratios, sensitivity: toy.env,
        start=tuple(start),
    )
    return AgentKind.PPO.make(task)


@given(seed=st.integers(0, 99), together=st.integers(1, 8))
@settings(max_examples=10)
def test_it_keeps_the_contract(seed: int, together: int) -> None:
    check_strategy(lambda _: PolishStrategy(TOY.constraint, seed=seed, together=together), TOY, evaluations=30)


def test_it_moves_on_from_what_scores_higher() -> None:
    """Neighbours of the start alone would leave all but six units where they are."""
    result = run(PolishStrategy(TOY.constraint, seed=0), 200)
    scores = [candidate.score for candidate in result.history]
    assert np.count_nonzero(np.maximum.accumulate(scores)[1:] > np.maximum.accumulate(scores)[:-1]) > 5
    assert result.best.score > run(RandomStrategy(TOY.constraint, seed=0), 200).best.score


def test_exchanges_that_scored_higher_are_made_all_at_once_next_and_a_single_one_twice() -> None:
    batches: list[Sequence[Allocation]] = []

    def score(allocations: Sequence[Allocation]) -> Sequence[float]:
        batches.append(allocations)
        return TOY.score(allocations)

    search(PolishStrategy(TOY.constraint, seed=0, together=6), score, constraint=TOY.constraint, evaluations=121)
    best, tried = batches[0][0], {1: 0, 2: 0}
    for batch, following in pairwise(batches[1:]):
        (before,) = TOY.score([best])
        better = [np.array(one) for one, after in zip(batch, TOY.score(batch), strict=True) if after > before]
        if better:
            times = 2 if len(better) == 1 else 1
            moved = np.clip(best + times * sum(one - best for one in better), TOY.space.lower, TOY.space.dense)
            at_once = TOY.constraint.allocation(TOY.space.log_ratios(moved))
            assert following[0] == at_once or any(at_once in earlier for earlier in batches)
            tried[times] += following[0] == at_once
        best = max((best, *batch), key=lambda one: TOY.score([one])[0])
    assert min(tried.values()) > 1


# -- behind PPO --------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluations", [1, 2, 3, 30])
def test_ppo_with_it_keeps_the_contract(evaluations: int) -> None:
    check_strategy(ppo, TOY, evaluations=evaluations)


def test_the_last_half_of_ppos_evaluations_are_neighbours_of_the_best() -> None:
    tried = [one.allocation for one in run(ppo(60), 60).history]
    best, scores = tried[0], dict(zip(tried, TOY.score(tried), strict=True))
    moved: list[int] = []
    for place, one in enumerate(tried[1:], start=1):
        if (place - 30) % TOGETHER == 0:
            best = max(tried[:place], key=scores.__getitem__)
        moved.append(int(np.count_nonzero(np.array(one) != best)))
    assert len(set(tried[30:])) == 30
    assert np.mean(moved[29:]) < np.mean(moved[:29])


def test_it_takes_up_what_others_found_before_ppo() -> None:
    best = run(PolishStrategy(TOY.constraint, seed=0), 200).best
    tried = [candidate.allocation for candidate in run(ppo(40, start=[best]), 40).history]
    moved = np.count_nonzero(np.array(tried) != best.allocation, axis=1)
    assert moved[20:].mean() < moved[:20].mean() / 2
    assert best.allocation not in tried[20:]
