"""Strategies that search around the best candidate: where they start, what they repeat, when they end."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.strategies._base import Candidate, search
from autoprune.strategies.evolution import EvolutionStrategy
from autoprune.strategies.polish import PolishStrategy
from autoprune.strategies.random import RandomStrategy
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.structure.space import Space
from tests.contracts.strategies import first_of
from tests.helpers.toy import LayerFlops, chain_graph, make_toy

TOY = make_toy(12)

Kind = type[EvolutionStrategy] | type[PolishStrategy]

pytestmark = pytest.mark.parametrize("kind", [EvolutionStrategy, PolishStrategy])


def test_the_first_proposal_is_the_projected_prior(kind: Kind) -> None:
    prior = np.linspace(-1, 0, len(TOY.space))
    first = first_of(kind(TOY.constraint, seed=0, prior=prior), TOY)
    assert first == TOY.constraint.allocation(prior)
    uniform = first_of(kind(TOY.constraint, seed=0), TOY)
    assert uniform == TOY.constraint.allocation(np.zeros(len(TOY.space)))


def test_the_best_start_that_holds_the_budget_is_proposed_first_and_the_others_not_again(kind: Kind) -> None:
    found = search(RandomStrategy(TOY.constraint, seed=3), TOY.score, constraint=TOY.constraint, evaluations=10)
    probe = Candidate(TOY.space.allocation(TOY.space.dense), 0.0)
    strategy = kind(TOY.constraint, seed=0, start=[*found.history, probe])
    result = search(strategy, TOY.score, constraint=TOY.constraint, evaluations=40)
    allocations = [candidate.allocation for candidate in result.history]
    assert allocations[0] == found.best.allocation
    known = {candidate.allocation for candidate in found.history}
    assert not known & set(allocations[1:])
    assert len(set(allocations)) == len(allocations)
    assert result.best.score >= found.best.score


@pytest.mark.parametrize("widths", [(8,), (32,), (8, 32, 8)])
def test_where_one_unit_alone_can_be_pruned_nothing_is_left_to_search(kind: Kind, widths: tuple[int, ...]) -> None:
    space = Space(chain_graph(widths))
    cost = LayerFlops(space)
    constraint = Constraint(space, [CostLimit(cost, float(cost(space.dense)))])
    strategy = kind(constraint, seed=0)
    result = search(strategy, lambda asked: [0.0 for _ in asked], constraint=constraint, evaluations=9)
    assert len(result.history) == 1


def test_a_search_that_brings_nothing_new_ends(kind: Kind) -> None:
    space = Space(chain_graph((16, 16)))
    cost = LayerFlops(space)
    constraint = Constraint(space, [CostLimit(cost, 0.8 * float(cost(space.dense)))])
    strategy = kind(constraint, seed=0)
    result = search(strategy, lambda asked: [-float(each[0]) for each in asked], constraint=constraint, evaluations=500)
    assert len(result.history) <= 4
