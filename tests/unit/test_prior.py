"""SearchPrior: where the agent starts, and what it is told of every unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from autoprune.strategies._base import holding
from autoprune.strategies.prior import SearchPrior, find_prior
from autoprune.strategies.regrowth import Gains, affordable
from tests.helpers.toy import Toy, make_toy
from tests.unit.test_regrowth import gains_of

TOY = make_toy(8, seed=1)


class Listener:
    """Remembers how far the progress bar came."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.notes: list[str] = []

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        self.done.append(total)

        def advance(done: int, note: str) -> None:
            self.done.append(done)
            self.notes.append(note)

        yield advance


def prior(toy: Toy = TOY, evaluations: int = 100, listener: Listener | None = None) -> SearchPrior:
    return find_prior(
        toy.constraint,
        lambda *asked: gains_of(toy, *asked),
        toy.score,
        listener or Listener(),  # type: ignore[arg-type]
        evaluations=evaluations,
    )


def test_the_prior_is_the_best_candidate() -> None:
    found = prior()
    best = max(found.tried, key=lambda candidate: candidate.score)
    assert TOY.constraint.allocation(found.target_log_ratios) == best.allocation
    assert best.score > found.tried[0].score, "better than uniform"


@pytest.mark.parametrize("evaluations", [1, 20, 40, 100, 400])
def test_it_takes_at_most_half_of_the_evaluations_but_one_round(evaluations: int) -> None:
    listener = Listener()
    found = prior(evaluations=evaluations, listener=listener)
    assert found.cost == sum(affordable(evaluations // 2))
    assert found.cost <= max(evaluations / 2, sum(affordable(0)))
    assert len(found.tried) <= affordable(evaluations // 2)[0]
    assert listener.done[0] == affordable(evaluations // 2)[0]
    assert listener.done[1:] == list(range(1, len(found.tried) + 1))
    best = np.maximum.accumulate([candidate.score for candidate in found.tried])
    assert listener.notes == [f"best score {score:+.4f}" for score in best]


def test_sensitivities_go_from_0_to_1() -> None:
    found = prior()
    assert found.sensitivity.min() == 0
    assert found.sensitivity.max() == 1
    assert np.count_nonzero(found.sensitivity == 0) == 1, "units below the price are told apart, too"


def test_where_no_unit_is_worth_more_than_another_all_are_alike() -> None:
    nothing: Gains = lambda allocation, widths: [[0.0] * len(wider) for wider in widths]  # noqa: E731
    found = find_prior(TOY.constraint, nothing, TOY.score, Listener(), evaluations=20)  # type: ignore[arg-type]
    assert list(found.sensitivity) == [0.0] * 8


def test_of_candidates_only_those_within_the_budget_stay() -> None:
    found = prior().tried
    assert holding(found, TOY.constraint) == found
    assert holding(found, TOY.constraint.tightened(0.5)) == ()
