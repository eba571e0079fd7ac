"""The integer programme: optimal where the problem is a knapsack, good where it is nearly one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from autoprune.arrays import Counts
from autoprune.strategies._base import search
from autoprune.strategies.curves import curves_from, probe_plan
from autoprune.strategies.knapsack import GAP, KnapsackStrategy, _silent, least_damage
from autoprune.strategies.random import RandomStrategy
from autoprune.strategies.sensitivity import SensitivityStrategy, limit_damage
from autoprune.strategies.survey import choose_probes, complete, saved
from autoprune.structure.constraint import Constraint, Cost, CostLimit
from autoprune.structure.space import Space
from tests.contracts.strategies import first_of
from tests.helpers.toy import Toy, chain_graph, make_toy

WIDTHS = (32, 64, 16, 64, 32)


class Additive(Cost):
    """A weight per kept channel."""

    unit = "FLOPs"

    def __init__(self, metric: str, weights: Sequence[float]) -> None:
        self.metric = metric
        self._weights = np.array(weights)

    def __call__(self, counts: Counts) -> npt.NDArray[np.float64]:
        return np.asarray(counts @ self._weights)


def problem(seed: int, cost_limits: int) -> tuple[Constraint, list[npt.NDArray[np.float64]]]:
    """An additive problem with convex damages, and so many limits."""
    rng = np.random.default_rng(seed)
    space = Space(chain_graph(WIDTHS), round_to=8)
    costs = [Additive("flops", rng.uniform(1, 4, size=len(space))), Additive("params", rng.uniform(1, 4, len(space)))]
    limits = [CostLimit(cost, rng.uniform(0.4, 0.8) * float(cost(space.dense))) for cost in costs[:cost_limits]]
    damages = [rng.lognormal() * (1 - choices / choices[-1]) ** 2 for choices in space.choices]
    return Constraint(space, limits), damages


@pytest.mark.parametrize("cost_limits", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_an_additive_problem_is_solved_to_the_optimum(seed: int, cost_limits: int) -> None:
    constraint, damages = problem(seed, cost_limits)
    space = constraint.space
    everything = np.array(list(product(*space.choices)))
    total = np.sum(
        [
            damage[np.searchsorted(choices, everything[:, unit])]
            for unit, (damage, choices) in enumerate(zip(damages, space.choices, strict=True))
        ],
        axis=0,
    )
    optimum = total[constraint.utilization(everything) <= 1].min()
    found = least_damage(constraint, damages)
    place = int(np.flatnonzero((everything == found).all(axis=1))[0])
    assert constraint.holds(found)
    assert total[place] == pytest.approx(optimum, rel=GAP, abs=1e-9)


def test_widths_by_single_channels_are_thinned_out_and_refined() -> None:
    space = Space(chain_graph((128, 96, 128)), round_to=1)
    cost = Additive("flops", (1.0, 1.0, 1.0))
    constraint = Constraint(space, [CostLimit(cost, 200)])
    damages = [
        weight * (1 - choices / choices[-1]) ** 2 for weight, choices in zip((1, 2, 4), space.choices, strict=True)
    ]
    found = least_damage(constraint, damages)
    assert int(found.sum()) == 200
    # Stationary: damage's slope 2 a (1 − k / n) / n is the same for all units, up to the rounding.
    slopes = 2 * np.array([1, 2, 4]) * (1 - found / space.dense) / space.dense
    np.testing.assert_allclose(slopes, slopes.mean(), rtol=0.1)


def best(strategy: object, toy: Toy, evaluations: int) -> float:
    result = search(strategy, toy.score, constraint=toy.constraint, evaluations=evaluations)  # type: ignore[arg-type]
    assert len(result.history) <= evaluations
    return -result.best.score


def test_on_the_toy_it_beats_random_search_by_far() -> None:
    toy = make_toy(40)
    plan = probe_plan(toy.space, (0.75, 0.5, 0.25))
    left = 3  # of 200 they would all be there, but each takes half a second
    assert len(plan) + left <= 200
    strategy = KnapsackStrategy(toy.constraint, evaluations=left, curves=curves_from(toy.space, plan, toy.score(plan)))
    assert best(strategy, toy, left) < 0.5 * best(RandomStrategy(toy.constraint, seed=0), toy, 200)


@pytest.mark.parametrize("kind", [KnapsackStrategy, SensitivityStrategy])
def test_curves_measured_before_are_not_measured_again(
    kind: type[KnapsackStrategy] | type[SensitivityStrategy],
) -> None:
    toy = make_toy(8)
    plan = probe_plan(toy.space, (0.5,))
    curves = curves_from(toy.space, plan, toy.score(plan))
    first = first_of(kind(toy.constraint, evaluations=5, curves=curves), toy)
    assert toy.constraint.holds(np.array(first))


def test_with_few_evaluations_the_costliest_units_are_probed() -> None:
    toy = make_toy(40)
    assert len(choose_probes(toy.constraint, 200)) <= 120
    few = choose_probes(toy.constraint, 20)
    assert len(few) == 12
    everyone = probe_plan(toy.space, (0.5,))
    left_out = toy.cost(np.array([probe for probe in everyone if probe not in few]))
    assert toy.cost(np.array(few)).max() <= left_out.min()  # what is probed saves at least as much
    assert choose_probes(toy.constraint, 1) == []


def test_sensitivity_prunes_every_unit_to_one_damage() -> None:
    constraint, damages = problem(2, cost_limits=1)
    space = constraint.space
    counts = limit_damage(constraint, damages)
    assert constraint.holds(counts)
    places = [int(np.searchsorted(choices, count)) for choices, count in zip(space.choices, counts, strict=True)]
    reached = max(damage[place] for damage, place in zip(damages, places, strict=True))
    narrower = [damage[place - 1] for damage, place in zip(damages, places, strict=True) if place > 0]
    # What was given back at the end is the only reason for a unit to stay wider than the limit asks.
    assert sum(damage < reached for damage in narrower) <= 1


def test_units_that_were_not_probed_are_given_the_median_of_the_others() -> None:
    toy = make_toy(8)
    plan = probe_plan(toy.space, (0.5,))
    measured = curves_from(
        toy.space, plan[:3], [-1.0 * float(saving) for saving in saved(toy.constraint, np.array(plan[:3]))]
    )
    points = [curve.points for curve in complete(toy.constraint, measured).curves]
    assert points[:3] == [curve.points for curve in measured.curves[:3]]
    expected = -saved(toy.constraint, np.array(plan[3:]))
    np.testing.assert_allclose([score for ((_, score),) in points[3:]], expected)


def test_what_a_solver_prints_does_not_reach_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with _silent():
        os.write(1, b"HighsMipSolverData")
    os.write(1, b"after")
    assert capfd.readouterr().out == "after"
