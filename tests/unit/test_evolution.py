"""Evolution: where it starts, what it repeats, what it leaves alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from autoprune.errors import ConfigError
from autoprune.strategies._base import Candidate, SearchResult, search
from autoprune.strategies.evolution import EvolutionStrategy
from autoprune.strategies.random import RandomStrategy
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.structure.space import Space
from tests.contracts.strategies import first_of
from tests.helpers.toy import LayerFlops, Toy, chain_graph, make_toy

TOY = make_toy(12)


def run(strategy: object, toy: Toy, evaluations: int) -> SearchResult:
    return search(strategy, toy.score, constraint=toy.constraint, evaluations=evaluations)  # type: ignore[arg-type]


def test_the_first_proposal_is_the_projected_prior() -> None:
    prior = np.linspace(-1, 0, len(TOY.space))
    first = first_of(EvolutionStrategy(TOY.constraint, seed=0, prior=prior), TOY)
    assert first == TOY.space.allocation(TOY.constraint.project(prior))
    uniform = first_of(EvolutionStrategy(TOY.constraint, seed=0), TOY)
    assert uniform == TOY.space.allocation(TOY.constraint.project(np.zeros(len(TOY.space))))


def test_the_best_start_that_holds_the_budget_is_proposed_first_and_the_others_not_again() -> None:
    found = run(RandomStrategy(TOY.constraint, seed=3), TOY, 10)
    probe = Candidate(TOY.space.allocation(TOY.space.dense), 0.0)
    strategy = EvolutionStrategy(TOY.constraint, seed=0, start=[*found.history, probe])
    result = run(strategy, TOY, 40)
    allocations = [candidate.allocation for candidate in result.history]
    assert allocations[0] == found.best.allocation
    known = {candidate.allocation for candidate in found.history}
    assert not known & set(allocations[1:])
    assert len(set(allocations)) == len(allocations)
    assert result.best.score >= found.best.score


def test_it_beats_random_search() -> None:
    toy = make_toy(40)
    evolution = run(EvolutionStrategy(toy.constraint, seed=0), toy, 100)
    assert evolution.best.score > run(RandomStrategy(toy.constraint, seed=0), toy, 100).best.score


def test_seeds_differ_and_global_random_states_stay(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        one, two = (run(EvolutionStrategy(TOY.constraint, seed=seed), TOY, 30) for seed in (0, 1))
    assert one != two
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("widths", [(8,), (32,), (8, 32, 8)])
def test_where_one_unit_alone_can_be_pruned_nothing_is_left_to_search(widths: tuple[int, ...]) -> None:
    space = Space(chain_graph(widths))
    cost = LayerFlops(space)
    constraint = Constraint(space, [CostLimit(cost, float(cost(space.dense)))])
    strategy = EvolutionStrategy(constraint, seed=0)
    result = search(strategy, lambda asked: [0.0 for _ in asked], constraint=constraint, evaluations=9)
    assert len(result.history) == 1


def test_a_search_that_brings_nothing_new_ends() -> None:
    space = Space(chain_graph((16, 16)))
    cost = LayerFlops(space)
    constraint = Constraint(space, [CostLimit(cost, 0.8 * float(cost(space.dense)))])
    strategy = EvolutionStrategy(constraint, seed=0)
    result = search(strategy, lambda asked: [-float(each[0]) for each in asked], constraint=constraint, evaluations=500)
    assert len(result.history) <= 4


def test_without_cma_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(ConfigError, match=r"pip install .*\[strategies\]'$"):
        EvolutionStrategy(TOY.constraint, seed=0)
