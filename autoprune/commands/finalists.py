"""From the best candidates of a search to the one that ships: measured whole, compared by mAP."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from autoprune.budget import format_amount
from autoprune.commands.deployment import Found
from autoprune.commands.latency import Bench, rescaled
from autoprune.commands.screen import Screen
from autoprune.constraint import Constraint
from autoprune.errors import BudgetUnreachableError
from autoprune.evaluation import Evaluator
from autoprune.models._base import Accuracy
from autoprune.search._base import Candidate, SearchResult
from autoprune.space import Allocation

ROUNDS = 4
"""How often a finalist is measured and put onto the corrected budget again."""

UNUSED = 0.04
"""A finalist that leaves more than this share of its target is widened."""

CONFIRMATIONS, CLOSE = 2, 0.003
"""The winner is measured thoroughly before it is trained; nearer to its limit than this, the target is lowered."""


@dataclass(frozen=True)
class Finalist(Found):
    """A candidate that holds every limit, as measured.

    Attributes:
        accuracy: on the scoring images after recalibration, or None where there was nothing to compare.
    """

    accuracy: Accuracy | None


def choose(
    result: SearchResult, evaluator: Evaluator, constraint: Constraint, bench: Bench, limit: float | None, *,
    count: int, screen: Screen,
) -> Finalist:  # fmt: skip
    """Return the finalist with the highest mAP50-95 on the scoring images (of equals, the higher score).

    Args:
        result: the search's.
        evaluator: scores and builds candidates.
        constraint: the budget, latency by its predictor.
        bench: measures latency.
        limit: the latency budget in milliseconds, or None.
        count: how many of the best candidates take part.
        screen: told how it goes.

    Raises:
        BudgetUnreachableError: no finalist could be measured within the latency budget.
    """
    if limit is None:
        return _compared(result, evaluator, constraint, bench, None, count=count, screen=screen)
    target = bench.target(limit)
    for _ in range(CONFIRMATIONS):
        chosen = _compared(result, evaluator, constraint, bench, target, count=count, screen=screen)
        confirmed = bench.confirm(chosen.allocation)
        if confirmed <= limit * (1 - CLOSE):
            break
        target *= limit * (1 - 2 * CLOSE) / confirmed
    return replace(chosen, latency=confirmed)


def _compared(
    result: SearchResult, evaluator: Evaluator, constraint: Constraint, bench: Bench, target: float | None, *,
    count: int, screen: Screen,
) -> Finalist:  # fmt: skip
    """Return the best of the finalists that were measured within a target in milliseconds."""
    finalists: dict[Allocation, Finalist] = {}
    best = _best(result, constraint, count)
    with screen.progress("Finalists", len(best)) as advance:
        for done, candidate in enumerate(best, start=1):
            found = _measured(candidate, evaluator, constraint, bench, target)
            if found is not None and found.allocation not in finalists:
                accuracy = evaluator.accuracy(found.allocation)
                finalists[found.allocation] = Finalist(found.allocation, found.score, found.latency, accuracy)
            advance(done)
    if not finalists:
        assert target is not None
        raise BudgetUnreachableError(
            f"None of {len(best)} finalists could be measured within {format_amount('latency', target)}; "
            "ask for a larger latency, or measure on a quieter machine"
        )
    return max(finalists.values(), key=lambda item: (item.accuracy.map50_95 if item.accuracy else 0.0, item.score))


def _best(result: SearchResult, constraint: Constraint, count: int) -> list[Candidate]:
    """Return the best candidates, each allocation once, best first; no probes, which are not within the budget."""
    distinct = {
        candidate.allocation: candidate
        for candidate in result.history
        if constraint.holds(np.array(candidate.allocation))
    }
    return sorted(distinct.values(), key=lambda candidate: -candidate.score)[:count]


def _measured(
    candidate: Candidate, evaluator: Evaluator, constraint: Constraint, bench: Bench, target: float | None
) -> Finalist | None:
    """Measure a candidate; where it misses the target or leaves much of it, project it anew and look again."""
    if target is None:
        return Finalist(candidate.allocation, candidate.score, None, None)
    fitting: list[Finalist] = []
    wish = np.log(constraint.space.ratios(np.array(candidate.allocation)))
    allocation, score = candidate.allocation, candidate.score
    seen: set[Allocation] = set()
    for _ in range(ROUNDS):
        seen.add(allocation)
        measured = bench.measure(allocation)
        if measured <= target:
            fitting.append(Finalist(allocation, score, measured, None))
            if measured >= target * (1 - UNUSED):
                break
        predicted = float(bench.predicted(allocation))
        try:
            tightened = rescaled(constraint, predicted / measured, target)
        except BudgetUnreachableError:
            break  # not this one; another finalist may still fit
        allocation = constraint.space.allocation(tightened.project(wish))
        if allocation in seen:
            break
        score = evaluator([allocation])[0].score
    return max(fitting, key=lambda item: item.score) if fitting else None
