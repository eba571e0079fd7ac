"""Evolution: what it finds, what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoprune.strategies._base import SearchResult, search
from autoprune.strategies.evolution import EvolutionStrategy
from autoprune.strategies.random import RandomStrategy
from tests.helpers.toy import Toy, make_toy

TOY = make_toy(12)


def run(strategy: object, toy: Toy, evaluations: int) -> SearchResult:
    return search(strategy, toy.score, constraint=toy.constraint, evaluations=evaluations)  # type: ignore[arg-type]


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
