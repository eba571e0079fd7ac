"""The prior: more of a unit is kept the more the loss rises, and the less of the cost it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoprune.commands.guidance import PRIOR_STRENGTHS, Guidance, further_strength, guide, measured_guidance, probes
from autoprune.constraint import Ceiling, Constraint
from autoprune.search._base import Candidate
from autoprune.space import Allocation, Space
from tests.toy import LayerFlops, chain_graph, make_toy

TOY = make_toy(8, seed=1)
SPACE, COST = TOY.space, TOY.cost
SAVINGS = np.array([1 - float(COST(np.array(probe)) / COST(SPACE.dense)) for probe in probes(SPACE)])
WALKED = [index for index, choices in enumerate(SPACE.choices) if len(choices) > 1]


def guided(probe_scores: Sequence[float], best: int = 1) -> Guidance:
    """Guidance of probes; of the strengths tried, the one at place ``best`` scores best."""
    calls: list[Allocation] = []

    def score(allocations: Sequence[Allocation]) -> list[float]:
        calls.extend(allocations)
        return [-abs(len(calls) - len(allocations) + place - best) for place in range(len(allocations))]

    return guide(SPACE, TOY.constraint, COST, [probe_scores], score)


def test_probes_prune_one_unit_to_half_each() -> None:
    for unit, probe in zip(WALKED, probes(SPACE), strict=True):
        changed = np.flatnonzero(np.array(probe) != SPACE.dense)
        assert list(changed) == [unit]
        assert probe[unit] / SPACE.dense[unit] <= 0.5


def test_a_unit_without_a_choice_is_not_probed() -> None:
    space = Space(chain_graph([16, 8, 24]), round_to=8)
    assert [list(probe) for probe in probes(space)] == [[8, 8, 24], [16, 8, 8]]
    cost = LayerFlops(space)
    limits = Constraint(space, [Ceiling(cost, 0.7 * float(cost(space.dense)))])
    found = guide(space, limits, cost, [[-0.1, -0.2]], lambda allocations: [0.0] * len(allocations))
    assert found.probes == 2


def test_the_strengths_rise() -> None:
    """As `further_strength` takes them."""
    assert PRIOR_STRENGTHS[0] > 0
    assert list(PRIOR_STRENGTHS) == sorted(set(PRIOR_STRENGTHS))


def test_of_equally_sensitive_units_the_cheaper_keeps_more() -> None:
    found = guided([-0.2] * len(WALKED))
    wish = found.prior[WALKED]
    assert wish - wish.mean() == pytest.approx(-PRIOR_STRENGTHS[1] * (np.log(SAVINGS) - np.log(SAVINGS).mean()))
    assert np.ptp(wish) > 0.1
    assert list(found.sensitivity) == [0.0] * len(SPACE)


def test_of_units_at_the_same_rate_of_loss_to_cost_none_is_preferred() -> None:
    assert np.ptp(guided(-SAVINGS).prior[WALKED]) == pytest.approx(0, abs=1e-12)


def test_a_sensitive_unit_keeps_more() -> None:
    calm = [-0.1] * len(WALKED)
    for place, unit in enumerate(WALKED):
        moved = guided([*calm[:place], -0.4, *calm[place + 1 :]])
        relative = moved.prior[unit] - np.delete(moved.prior, unit).mean()
        before = guided(calm).prior
        assert relative > before[unit] - np.delete(before, unit).mean()
        assert moved.sensitivity[unit] == 1 == moved.sensitivity.max()


def test_two_kinds_of_probes_count_by_their_geometric_mean() -> None:
    one, other = -np.linspace(0.1, 0.4, len(WALKED)), -np.linspace(0.9, 0.1, len(WALKED))
    both = guide(SPACE, TOY.constraint, COST, [one, other], lambda allocations: [0.0] * len(allocations))
    mean = guide(SPACE, TOY.constraint, COST, [-np.sqrt(one * other)], lambda allocations: [0.0] * len(allocations))
    np.testing.assert_allclose(both.prior, mean.prior)
    assert both.probes == 2 * len(WALKED)


def test_units_whose_probe_is_better_than_dense_are_the_least_sensitive() -> None:
    found = guided([0.3, *[-0.2] * (len(WALKED) - 1)])
    assert found.sensitivity[WALKED[0]] == 0
    assert found.sensitivity[WALKED[1]] == 1


@pytest.mark.parametrize("best", range(len(PRIOR_STRENGTHS) + 1))
def test_the_strength_that_scores_best_is_taken(best: int) -> None:
    direction = guided(-SAVINGS * np.geomspace(0.5, 2, len(SAVINGS))).prior / PRIOR_STRENGTHS[1]
    found = guided(-SAVINGS * np.geomspace(0.5, 2, len(SAVINGS)), best=best)
    assert len(found.tried) == len(PRIOR_STRENGTHS) + 1
    first = [-abs(place - best) for place in range(len(PRIOR_STRENGTHS))]
    strengths = (*PRIOR_STRENGTHS, further_strength(first))
    assert found.prior == pytest.approx(strengths[best] * direction)
    for strength, candidate in zip(strengths, found.tried, strict=True):
        assert candidate.allocation == SPACE.allocation(TOY.constraint.project(strength * direction))
    assert found.probes == len(WALKED)


def test_no_unit_is_wished_further_from_the_median_than_a_bound() -> None:
    scores = [-1e-9, *[-0.2] * (len(WALKED) - 2), -1e9]
    assert np.abs(guided(scores).prior / PRIOR_STRENGTHS[1]).max() == pytest.approx(4)


def test_the_strength_to_try_further_lies_beyond_an_end_or_beside_the_best() -> None:
    assert further_strength([3, 2, 1, 0]) == 0
    assert further_strength([0, 1, 2, 3]) == 1.5 * PRIOR_STRENGTHS[-1]
    assert further_strength([2, 3, 1, 0]) == (PRIOR_STRENGTHS[0] + PRIOR_STRENGTHS[1]) / 2
    assert further_strength([1, 3, 2, 0]) == (PRIOR_STRENGTHS[1] + PRIOR_STRENGTHS[2]) / 2
    assert further_strength([0, 1, 3, 2]) == (PRIOR_STRENGTHS[2] + PRIOR_STRENGTHS[3]) / 2


@pytest.mark.parametrize("compensate", [False, True])
def test_every_unit_is_probed_with_and_without_compensation(compensate: bool) -> None:
    @dataclass
    class Prober:
        kind: str
        images: int
        compensate: bool

        def rebase(self, base: Allocation) -> None:
            rebased.append((self.kind, base))

        def __call__(self, allocations: Sequence[Allocation]) -> list[Candidate]:
            asked.append((self.kind, self.images, self.compensate, allocations[0]))
            return [Candidate(allocations[0], -0.1)]

    class Screen:
        @contextmanager
        def progress(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
            done.append(total)
            yield lambda count: done.append(count)

    asked: list[tuple[str, int, bool, Allocation]] = []
    done: list[int] = []
    rebased: list[tuple[str, Allocation]] = []
    run: Any = SimpleNamespace(
        network=SimpleNamespace(space=SPACE), config=SimpleNamespace(batch=16, images=9, compensate=compensate),
        evaluator=lambda kind, images: Prober(kind, images, compensate), screen=Screen(),
        dense_allocation=SPACE.allocation(SPACE.dense),
    )  # fmt: skip
    scored: Any = lambda allocations: [Candidate(allocation, 0.0) for allocation in allocations]  # noqa: E731
    found = measured_guidance(run, TOY.constraint, scored)
    kinds = [("probe", 9, compensate), *([("plain probe", 9, False)] if compensate else [])]
    assert asked == [(*kind, probe) for kind in kinds for probe in probes(SPACE)]
    assert rebased == [(kind, SPACE.allocation(SPACE.dense)) for kind, *_ in kinds], "layers before a probe are held"
    assert done == [len(asked), *range(1, len(asked) + 1)]
    assert found.probes == len(asked)
