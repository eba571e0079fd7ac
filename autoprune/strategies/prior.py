"""Find a prior for the search: a good allocation, and the sensitivity of each unit there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoprune.arrays import Array
from autoprune.listener import Listener
from autoprune.strategies._base import Candidate, Progress, Score, search
from autoprune.strategies.regrowth import Gains, RegrowthStrategy, affordable
from autoprune.structure.constraint import Constraint


@dataclass(frozen=True)
class SearchPrior:
    """What is known of the units before the search.

    Attributes:
        sensitivity: what widening a unit gains per cost, on a logarithmic scale from 0 to 1, shape (units,).
        target_log_ratios: log keep ratios to start from, shape (units,); only differences matter.
        tried: the candidates that were scored on the way; all hold the constraint.
        cost: how many evaluations it took as long as.
    """

    sensitivity: Array
    target_log_ratios: Array
    tried: tuple[Candidate, ...]
    cost: int


def find_prior(
    constraint: Constraint, gains: Gains, score: Score, listener: Listener, *, evaluations: int
) -> SearchPrior:
    """Shrink and regrow the uniform allocation, see `RegrowthStrategy`; the agent starts from the best that is found.

    It takes at most half of the evaluations, but at least one round.

    Args:
        constraint: the budget.
        gains: of widening every unit.
        score: scores allocations.
        listener: receives the progress.
        evaluations: of the search in all.
    """
    most, spent = affordable(evaluations // 2)
    strategy = RegrowthStrategy(constraint, gains, evaluations=most)
    with listener.progress("Regrowth", most) as advance:

        def show(progress: Progress) -> None:
            advance(progress.done, f"best score {progress.best.score:+.4f}" if progress.best else "")

        found = search(strategy, score, constraint=constraint, evaluations=most, on_evaluation=show)
    worth = np.log(np.clip(strategy.worth, 1e-6, None))
    span = float(np.ptp(worth))
    sensitivity = (worth - worth.min()) / span if span > 0 else np.zeros(len(worth))
    target_log_ratios = constraint.space.log_ratios(found.best.allocation)
    return SearchPrior(sensitivity, target_log_ratios, found.history, most + spent)
