"""One importance threshold over all units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.strategies._base import search
from autoprune.strategies.threshold import ThresholdStrategy, unit_scores
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.structure.graph import Unit
from autoprune.structure.space import Space
from tests.helpers.toy import LayerFlops, chain_graph

WIDTHS = (32, 64, 64, 32)


def constraint(share: float = 0.4, round_to: int = 8) -> Constraint:
    space = Space(chain_graph(WIDTHS), round_to=round_to)
    cost = LayerFlops(space)
    return Constraint(space, [CostLimit(cost, share * float(cost(space.dense)))])


def kept(limits: Constraint, importance: list[np.ndarray]) -> np.ndarray:
    strategy = ThresholdStrategy(limits, importance)
    found = search(strategy, lambda asked: [0.0 for _ in asked], constraint=limits, evaluations=5)
    assert len(found.history) == 1
    return np.array(found.best.allocation)


def importance_of(limits: Constraint, factors: tuple[float, ...]) -> list[np.ndarray]:
    """The same spread of scores in every unit, times a factor each; what is pinned scores highest and has no say."""
    scores = [np.full(group.size, 1e9) for group in limits.space.graph.groups]
    for unit, factor in zip(limits.space.units, factors, strict=True):
        scores[unit.groups[0]] = factor * np.linspace(0.1, 1, unit.width)
    return scores


def test_units_with_higher_scores_keep_more() -> None:
    limits = constraint()
    ratios = limits.space.ratios(kept(limits, importance_of(limits, (1.0, 3.0, 0.7, 1.2))))
    assert ratios[1] > ratios[3] >= ratios[0] > ratios[2]


@given(st.integers(0, 1000), st.floats(0.2, 1.0), st.sampled_from([1, 8]))
def test_the_budget_holds_and_nothing_is_left_over(seed: int, share: float, round_to: int) -> None:
    limits = constraint(share, round_to)
    rng = np.random.default_rng(seed)
    counts = kept(limits, [rng.lognormal(size=group.size) for group in limits.space.graph.groups])
    assert limits.holds(counts)
    assert (limits.greedy_fill(counts, np.zeros(len(counts))) == counts).all()


def test_without_rounding_it_is_the_threshold_of_all_channels() -> None:
    limits = constraint(0.5, round_to=1)
    rng = np.random.default_rng(3)
    importance = [rng.random(group.size) for group in limits.space.graph.groups]
    counts = kept(limits, importance)
    scores = [np.sort(importance[unit.groups[0]]) for unit in limits.space.units]
    worst_kept = min(own[-count] for own, count in zip(scores, counts, strict=True))
    best_cut = max(own[-count - 1] for own, count in zip(scores, counts, strict=True))
    assert best_cut - worst_kept < 0.05  # but for the few that fill the budget up


def test_equal_scores_everywhere_still_give_an_allocation() -> None:
    limits = constraint()
    assert limits.holds(kept(limits, [np.ones(group.size) for group in limits.space.graph.groups]))


def test_groups_of_one_unit_are_averaged_rank_by_rank() -> None:
    graph = chain_graph((4, 4, 8))
    tied = replace(graph, units=(Unit("conv0", 4, (1, 2)), graph.units[2]))
    scores = [np.zeros(group.size) for group in tied.groups]
    scores[1], scores[2], scores[3] = np.array([1.0, 4, 2, 3]), np.array([10.0, 20, 30, 40]), np.arange(8.0)
    first, second = unit_scores(Space(tied, round_to=1), scores)
    assert list(first) == pytest.approx([22, 16.5, 11, 5.5])
    assert list(second) == list(np.arange(8.0)[::-1])
