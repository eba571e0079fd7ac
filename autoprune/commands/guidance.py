"""What the search knows before it starts: each unit's sensitivity, and a prior made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autoprune.commands.run import PruningRun
from autoprune.constraint import Constraint
from autoprune.cost._base import Cost
from autoprune.evaluation import Evaluator
from autoprune.search._base import Candidate
from autoprune.space import Allocation, Space

Array = npt.NDArray[np.float64]

PROBE_RATIO = 0.5
"""Keep ratio at which each unit is tried alone."""

PRIOR_STRENGTHS = (0.2, 0.35, 0.5, 0.75)
"""Exponents of (sensitivity / cost) that are tried for the prior; 0 would be the uniform ratio."""

PRIORS = len(PRIOR_STRENGTHS) + 1
"""Priors that are tried: these, and one more where they point."""

_FLOOR = 1e-3
"""A relative loss below this is noise of the scoring images."""


@dataclass(frozen=True)
class Guidance:
    """What is known of the units before the search.

    Attributes:
        sensitivity: relative rise of the loss when a unit alone keeps half, scaled to [0, 1], shape (units,).
        prior: log keep ratios to start from, shape (units,); only differences matter.
        tried: the priors that were tried, with their scores on all images.
        probes: evaluations on a part of the scoring images that it took.
    """

    sensitivity: Array
    prior: Array
    tried: tuple[Candidate, ...]
    probes: int


def measured_guidance(run: PruningRun, constraint: Constraint, evaluator: Evaluator) -> Guidance:
    """Probe every unit alone on one batch of images, and try a handful of priors.

    Where candidates are compensated, every unit is probed with and without: compensated, half of all units say nothing
    (the rest of the network makes up for one unit), and uncompensated, the others do not say how well that goes.
    """
    space, config = run.network.space, run.config
    candidates = probes(space)
    probers = [run.evaluator("probe", min(config.batch, config.images))]
    if config.compensate:
        probers.append(replace(probers[0], kind="plain probe", compensate=False))
    scores: list[list[float]] = []
    with run.screen.progress("Sensitivity", len(candidates) * len(probers)) as advance:
        for prober in probers:
            prober.rebase(run.dense_allocation)
            scores.append([])
            for allocation in candidates:
                scores[-1].append(prober([allocation])[0].score)
                advance(sum(map(len, scores)))

    def score(allocations: Sequence[Allocation]) -> list[float]:
        return [evaluation.score for evaluation in evaluator(allocations)]

    return guide(space, constraint, constraint.ceilings[0].cost, scores, score)


def probes(space: Space) -> list[Allocation]:
    """Return one allocation per unit with several choices: that unit alone at half, the others dense."""
    half = space.round_down(np.full(len(space), PROBE_RATIO))
    found = []
    for index, choices in enumerate(space.choices):
        if len(choices) > 1:
            counts = space.dense.copy()
            counts[index] = half[index]
            found.append(space.allocation(counts))
    return found


def guide(
    space: Space,
    constraint: Constraint,
    cost: Cost,
    probe_scores: Sequence[Sequence[float]],
    score: Callable[[Sequence[Allocation]], Sequence[float]],
) -> Guidance:
    """Turn the probes' scores into a sensitivity, and into the prior that scores best on the budget.

    The prior keeps more of a unit the more the loss rises per cost saved: log ratio ∝ log (rise / saving). Rises of
    several kinds of probes count by their geometric mean. How strongly is tried out with a handful of evaluations.

    Args:
        space: the allocations.
        constraint: the budget.
        cost: the budgeted cost.
        probe_scores: scores of ``probes(space)``, by kind of probe.
        score: scores allocations on all scoring images.
    """
    probed = probes(space)
    dense = float(cost(space.dense))
    rise, saving = np.full(len(space), _FLOOR), np.full(len(space), _FLOOR)
    walked = [index for index, choices in enumerate(space.choices) if len(choices) > 1]
    for index, allocation, *values in zip(walked, probed, *probe_scores, strict=True):
        rise[index] = np.prod(np.maximum(-np.array(values), _FLOOR)) ** (1 / len(values))
        saving[index] = max(1 - float(cost(np.array(allocation))) / dense, 1e-6)
    direction = np.log(rise) - np.log(saving)
    direction = np.clip(direction - np.median(direction), -4.0, 4.0)

    def tried_at(strengths: Sequence[float]) -> list[Candidate]:
        allocations = [space.allocation(constraint.project(strength * direction)) for strength in strengths]
        return [Candidate(*pair) for pair in zip(allocations, score(allocations), strict=True)]

    tried = tried_at(PRIOR_STRENGTHS)
    further = further_strength([candidate.score for candidate in tried])
    tried += tried_at([further])
    best = (*PRIOR_STRENGTHS, further)[int(np.argmax([candidate.score for candidate in tried]))]
    logs = np.log(rise)
    span = float(np.ptp(logs))
    sensitivity = (logs - logs.min()) / span if span > 0 else np.zeros(len(space))
    return Guidance(sensitivity, best * direction, tuple(tried), len(probed) * len(probe_scores))


def further_strength(scores: Sequence[float]) -> float:
    """Return the strength to try after ``PRIOR_STRENGTHS``: beyond them where an end is best, or else beside the best.

    Args:
        scores: of the strengths, in their order.
    """
    best = int(np.argmax(scores))
    if best == 0:
        return 0.0
    if best == len(scores) - 1:
        return 1.5 * PRIOR_STRENGTHS[-1]
    neighbour = best - 1 if scores[best - 1] > scores[best + 1] else best + 1
    return (PRIOR_STRENGTHS[best] + PRIOR_STRENGTHS[neighbour]) / 2
