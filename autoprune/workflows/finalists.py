"""From the best candidates of a search to the one that ships: measured whole, compared by accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoprune.errors import BudgetUnreachableError
from autoprune.evaluation.evaluator import Evaluator
from autoprune.listener import Listener
from autoprune.results import Metrics
from autoprune.strategies._base import Candidate, holding
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation
from autoprune.workflows.latency_constraints import Latencies, LatencyConstraints
from autoprune.workflows.result_writer import SelectedCandidate

ROUNDS = 4
"""How often a finalist is measured and put onto the corrected budget again."""

CONFIRMATIONS, MOST_CONFIRMATIONS = 3, 10
"""How often the winner is measured thoroughly, by default, and put right if it is off its budget.

The latter while none holds it: on a machine that has become slower since the limit was set, it must become narrower.
"""


@dataclass(frozen=True)
class Finalist(SelectedCandidate):
    """A candidate that holds every limit, as measured.

    Attributes:
        accuracy: on the scoring images after recalibration, or None if there was nothing to compare.
    """

    accuracy: Metrics | None = None


def choose(
    history: Sequence[Candidate],
    evaluator: Evaluator,
    constraint: Constraint,
    latency_constraints: LatencyConstraints,
    *,
    count: int,
    listener: Listener,
    prior: Sequence[Candidate] = (),
    confirmations: int = CONFIRMATIONS,
) -> Finalist:
    """Return the finalist with the highest accuracy on the scoring images (of equals, the higher score).

    Args:
        history: the search's candidates, those of the prior among them.
        evaluator: scores and builds candidates.
        constraint: the budget, latency by its predictors.
        latency_constraints: the budget's latency limits.
        count: how many of the best candidates take part.
        listener: hears the progress.
        prior: those of the prior, see `finalists_of`.
        confirmations: how often the winner is measured thoroughly, and put right if it is off its budget.

    Raises:
        BudgetUnreachableError: no finalist could be measured within the latency budget.
    """
    best = finalists_of(history, constraint, count, prior=prior)
    finalists = _compared(best, evaluator, constraint, latency_constraints, listener=listener)
    if not latency_constraints:
        return finalists[0]
    held: list[Finalist] = []
    for number in range(MOST_CONFIRMATIONS):
        chosen = replace(finalists[0], latencies=latency_constraints.confirm(finalists[0].allocation))
        if latency_constraints.held(chosen.latencies):
            held.append(chosen)
            if latency_constraints.spent(chosen.latencies):
                break
        if held and number + 1 >= confirmations:
            break
        moved = _measured(chosen, evaluator, constraint, latency_constraints, known=chosen.latencies)
        if moved is not None and moved.allocation != chosen.allocation:
            finalists[0] = moved
        elif len(finalists) > 1:
            finalists.pop(0)
        else:
            break
    return min(held, key=lambda item: latency_constraints.unused(item.latencies)) if held else chosen


def best_of(history: Sequence[Candidate], constraint: Constraint, count: int) -> list[Candidate]:
    """Return the best candidates, each allocation once, best first; no probes, which are not within the budget."""
    distinct = {candidate.allocation: candidate for candidate in holding(history, constraint)}
    return sorted(distinct.values(), key=lambda candidate: -candidate.score)[:count]


def finalists_of(
    history: Sequence[Candidate], constraint: Constraint, count: int, *, prior: Sequence[Candidate]
) -> list[Candidate]:
    """Return the best candidates, best first; if none of several is of the prior, the last place goes to its best.

    What a strategy finds around the prior are neighbours, and may have a fault in common that scores do not show. On
    DeepPCB yolo11n (flops=30%, seed 0) the five best had a first layer of 8 channels and scored −0.035, the best of the
    prior had 16 and −0.046: accuracy on the scoring images 0.526 and 0.529, on the validation split 0.473 and 0.536.
    """
    best = best_of(history, constraint, count)
    before = {candidate.allocation for candidate in prior}
    if len(best) > 1 and not any(candidate.allocation in before for candidate in best):
        best[-1:] = best_of(prior, constraint, 1) or best[-1:]
    return best


def _compared(
    best: Sequence[Candidate],
    evaluator: Evaluator,
    constraint: Constraint,
    latency_constraints: LatencyConstraints,
    *,
    listener: Listener,
) -> list[Finalist]:
    """Return those of the best candidates that were measured within the goals' targets, best first."""
    finalists: dict[Allocation, Finalist] = {}
    with listener.progress("Finalists", len(best)) as advance:
        for done, candidate in enumerate(best, start=1):
            found = _measured(candidate, evaluator, constraint, latency_constraints)
            if found is not None:
                finalists.setdefault(found.allocation, found)
            advance(done)
    with latency_constraints.judged():
        if not finalists:
            raise BudgetUnreachableError(
                f"None of {len(best)} finalists could be measured within {latency_constraints}; "
                "ask for a larger budget, or measure on a quieter machine"
            )
    if len(best) > 1:
        for allocation, accuracy in zip(list(finalists), evaluator.accuracies(list(finalists)), strict=True):
            finalists[allocation] = replace(finalists[allocation], accuracy=accuracy)
    return sorted(finalists.values(), key=lambda item: (-(item.accuracy.primary if item.accuracy else 0), -item.score))


def _measured(
    candidate: Candidate | Finalist,
    evaluator: Evaluator,
    constraint: Constraint,
    latency_constraints: LatencyConstraints,
    *,
    known: Latencies | None = None,
) -> Finalist | None:
    """Measure a candidate; if it misses the targets or leaves much of them, project it anew and look again.

    Args:
        candidate: where to begin.
        evaluator: scores what it becomes.
        constraint: the budget.
        latency_constraints: the budget's latency limits.
        known: the candidate's latencies, if they are known better than by a measurement now.
    """
    if not latency_constraints:
        return Finalist(candidate.allocation, candidate.score, {})
    fitting: list[Finalist] = []
    log_ratios = constraint.space.log_ratios(candidate.allocation)
    allocation, score = candidate.allocation, candidate.score
    seen: set[Allocation] = set()
    for _ in range(ROUNDS):
        seen.add(allocation)
        measured = known or latency_constraints.measure(allocation)
        known = None
        if latency_constraints.within(measured):
            fitting.append(Finalist(allocation, score, measured))
            if latency_constraints.spent(measured):
                break
        try:
            tightened = latency_constraints.rescaled(constraint, allocation, measured)
        except BudgetUnreachableError:
            break  # not this one; another finalist may still fit
        allocation = tightened.allocation(log_ratios)
        if allocation in seen:
            break
        score = evaluator([allocation])[0].score
    return max(fitting, key=lambda item: item.score) if fitting else None
