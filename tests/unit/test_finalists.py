"""Which candidate ships is what was measured last, on the machine as it is by then."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoprune.arrays import Counts
from autoprune.errors import BudgetUnreachableError, DeviceError
from autoprune.listener import SilentListener
from autoprune.results import Metrics
from autoprune.strategies._base import Candidate
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.structure.space import Allocation, Space
from autoprune.workflows.finalists import Finalist, best_of, choose
from autoprune.workflows.latency_constraints import CLOSE, MARGIN, UNUSED, LatencyConstraints
from tests.helpers.toy import LayerFlops, chain_graph

SPACE = Space(chain_graph((64, 96, 128, 64, 192)), round_to=4)
DENSE_MS = 20.0


class Milliseconds(LayerFlops):
    """A millisecond that no layer accounts for, and the rest in proportion to the FLOPs."""

    metric = "latency"
    unit = "ms"

    def __call__(self, counts: Counts) -> Any:
        flops = super().__call__
        return 1.0 + (DENSE_MS - 1.0) * flops(counts) / flops(SPACE.dense)


COST = Milliseconds(SPACE)


class Machine:
    """Measures latencies, each once; how slow it is depends on how much it has measured, and how thoroughly."""

    under_load = False

    def __init__(self, slowness: Callable[[int], float], thoroughly: float = 1.0) -> None:
        self._slowness, self._measured, self.thoroughly = slowness, 0, thoroughly
        self._known: dict[tuple[str, Allocation], float] = {}
        self.confirmed = 0

    def measure(self, allocation: Allocation) -> float:
        return self._once("measure", allocation)

    def confirm(self, allocation: Allocation) -> float:
        self.confirmed += 1
        return self.thoroughly * self._once("confirm", allocation)

    def _once(self, how: str, allocation: Allocation) -> float:
        if (how, allocation) not in self._known:
            self._known[how, allocation] = float(COST(np.array(allocation))) * self._slowness(self._measured)
            self._measured += 1
        return self._known[how, allocation]


def chosen(slowness: Callable[[int], float] | Machine, limit: float = 10.0, **options: int) -> Finalist:
    machine: Any = slowness if isinstance(slowness, Machine) else Machine(slowness)
    latency_constraints = LatencyConstraints({"latency": machine}, {"latency": limit})
    constraint = Constraint(SPACE, [CostLimit(COST, 0.975 * limit)])
    targets = np.random.default_rng(0).normal(0, 0.3, (12, len(SPACE)))
    allocations = [constraint.allocation(one) for one in targets]

    def score(allocation: Allocation) -> float:
        return sum(allocation) / 1000 - 1

    history = [Candidate(allocation, score(allocation)) for allocation in allocations]

    class Evaluator:
        def __call__(self, allocations: list[Allocation]) -> list[Any]:
            return [SimpleNamespace(score=score(allocation)) for allocation in allocations]

        def accuracies(self, allocations: list[Allocation]) -> list[Metrics]:
            return [Metrics({"accuracy": sum(allocation) / 1000}) for allocation in allocations]

    evaluator: Any = Evaluator()
    return choose(history, evaluator, constraint, latency_constraints, count=5, listener=SilentListener(), **options)


def test_on_a_steady_machine_the_budget_is_held_and_spent() -> None:
    found = chosen(lambda _: 1.0).latencies["latency"]
    assert 10.0 * (1 - MARGIN) * (1 - UNUSED) <= found <= 10.0 * (1 - MARGIN)


@pytest.mark.parametrize("factor", [1.05, 1.15, 1.3])
@pytest.mark.parametrize("after", [2, 5, 6, 7])
def test_a_machine_that_becomes_slower_gets_a_narrower_network(after: int, factor: float) -> None:
    found = chosen(lambda measured: factor if measured >= after else 1.0).latencies["latency"]
    assert 10.0 * (1 - MARGIN) * (1 - UNUSED) <= found <= 10.0 * (1 - CLOSE)


def test_a_machine_that_gets_slower_all_the_time_is_caught_up_with() -> None:
    assert chosen(lambda measured: 1 + 0.01 * measured).latencies["latency"] <= 10.0 * (1 - CLOSE)


@pytest.mark.parametrize("factor", [0.95, 0.85])
@pytest.mark.parametrize("after", [2, 5, 6, 7])
def test_a_machine_that_becomes_faster_gets_a_wider_network(after: int, factor: float) -> None:
    found = chosen(lambda measured: factor if measured >= after else 1.0).latencies["latency"]
    assert 10.0 * (1 - MARGIN) * (1 - UNUSED) <= found <= 10.0 * (1 - CLOSE)


@pytest.mark.parametrize("confirmations", [1, 2, 3])
def test_a_winner_that_holds_the_budget_is_confirmed_no_more_often_than_asked(confirmations: int) -> None:
    machine = Machine(lambda measured: 1.0, thoroughly=0.95)  # the budget is never used up
    found = chosen(machine, confirmations=confirmations).latencies["latency"]
    assert machine.confirmed == confirmations
    assert found <= 10.0 * (1 - CLOSE)


@pytest.mark.parametrize("confirmations", [1, 2, 3])
def test_a_winner_that_misses_the_budget_is_put_right_however_few_confirmations_are_asked(confirmations: int) -> None:
    machine = Machine(lambda measured: 1.3 if measured >= 5 else 1.0)
    assert chosen(machine, confirmations=confirmations).latencies["latency"] <= 10.0 * (1 - CLOSE)
    assert machine.confirmed > 1


# -- without a latency to measure, accuracy decides -------------------------------------------------------


def compared(scores: list[float], accuracies: list[float], *, count: int, prior: tuple[int, ...] = ()) -> int:
    """Return which of the candidates ships; ``prior`` are the numbers of those of the prior."""
    constraint = Constraint(SPACE, [CostLimit(COST, 10.0)])
    targets = np.random.default_rng(0).normal(0, 0.3, (len(scores), len(SPACE)))
    allocations = [constraint.allocation(one) for one in targets]
    assert len(set(allocations)) == len(scores)
    measured: list[Allocation] = []

    class Evaluator:
        def accuracies(self, asked: list[Allocation]) -> list[Metrics]:
            measured.extend(asked)
            return [Metrics({"accuracy": accuracies[allocations.index(one)]}) for one in asked]

    probe = Candidate(SPACE.allocation(SPACE.dense), 1.0)
    history = [probe, *(Candidate(*pair) for pair in zip(allocations, scores, strict=True))]
    evaluator: Any = Evaluator()
    found = choose(
        [*history, *history],
        evaluator,
        constraint,
        LatencyConstraints({}, {}),
        count=count,
        listener=SilentListener(),
        prior=[probe, *(history[1 + number] for number in prior)] if prior else [],
    )
    assert len(measured) == (min(count, len(scores)) if count > 1 else 0), "what is alone is not compared"
    assert found.score == scores[allocations.index(found.allocation)]
    assert found.latencies == {}
    expected = Metrics({"accuracy": accuracies[allocations.index(found.allocation)]})
    assert found.accuracy == (expected if count > 1 else None)
    return allocations.index(found.allocation)


def test_the_finalist_with_the_highest_accuracy_ships() -> None:
    assert compared([-0.4, -0.1, -0.2, -0.3], [0.9, 0.1, 0.2, 0.3], count=4) == 0


def test_only_the_best_scores_take_part() -> None:
    assert compared([-0.4, -0.1, -0.2, -0.3], [0.9, 0.1, 0.3, 0.5], count=2) == 2
    assert compared([-0.4, -0.1, -0.2, -0.3], [0.9, 0.1, 0.3, 0.5], count=1) == 1


def test_the_last_finalist_is_the_best_of_the_prior_if_no_other_is_of_it() -> None:
    scores, accuracies = [-0.1, -0.2, -0.3, -0.5, -0.4], [0.1, 0.2, 0.3, 0.9, 0.5]
    assert compared(scores, accuracies, count=3) == 2
    assert compared(scores, accuracies, count=3, prior=(3, 4)) == 4, "the prior's best, in place of the third"
    assert compared(scores, accuracies, count=3, prior=(1, 3, 4)) == 2, "one of the best is of the prior"
    assert compared(scores, accuracies, count=1, prior=(3, 4)) == 0, "one finalist is the best"


def test_of_equally_accurate_finalists_the_higher_score_ships() -> None:
    assert compared([-0.4, -0.3, -0.1, -0.2], [0.5, 0.5, 0.5, 0.2], count=4) == 2


def test_what_is_not_within_the_budget_is_no_finalist_however_well_it_scores() -> None:
    constraint = Constraint(SPACE, [CostLimit(COST, 10.0)])
    narrowest, dense = (SPACE.allocation(counts) for counts in (SPACE.lower, SPACE.dense))
    found = best_of([Candidate(dense, 1.0), Candidate(narrowest, -1.0)], constraint, 2)
    assert [candidate.allocation for candidate in found] == [narrowest]


@pytest.mark.parametrize("count", [1, 3, 99])
def test_the_best_come_first_each_once_and_no_more_than_asked(count: int) -> None:
    constraint = Constraint(SPACE, [CostLimit(COST, 10.0)])
    narrowest = SPACE.allocation(SPACE.lower)
    others = [(*narrowest[:unit], narrowest[unit] + 4, *narrowest[unit + 1 :]) for unit in range(4)]
    scores = [-0.3, -0.1, -0.2, -0.1]
    history = [Candidate(*pair) for pair in zip(others, scores, strict=True)]
    found = best_of([*history, *history[::-1]], constraint, count)
    assert found == [history[number] for number in (1, 3, 2, 0)][:count], "of equals the one that was tried first"
    assert best_of([], constraint, count) == []


def test_a_machine_on_which_none_holds_the_budget_is_an_error() -> None:
    with pytest.raises(BudgetUnreachableError, match=r"None of 5 finalists .*; ask for a larger budget, or measure"):
        chosen(lambda _: 30.0)


def test_under_load_it_is_no_verdict_on_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "under_load", True)
    with pytest.raises(DeviceError, match=r"other processes used them; start a new run when they are done"):
        chosen(lambda _: 30.0)


def test_what_was_confirmed_over_the_budget_does_not_count_as_held() -> None:
    """A machine that is slow whenever it measures thoroughly: the least bad is returned, with what was measured."""
    latency_constraints = LatencyConstraints({"latency": Machine(lambda _: 1.0)}, {"latency": 10.0})  # type: ignore[dict-item]
    found = chosen(lambda measured: 1.0 if measured < 5 else 30.0)
    assert not latency_constraints.held(found.latencies)
    assert found.latencies["latency"] > 10.0
