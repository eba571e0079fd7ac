"""What it costs in score that only describable networks are considered."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autoprune.budget import is_latency
from autoprune.commands.run import PruningRun, make_evaluator
from autoprune.constraint import Ceiling, Constraint

Price = Mapping[str, float]


def price(run: PruningRun, constraint: Constraint, limits: Mapping[str, float]) -> Price | None:
    """Score the uniform ratio on the budget twice: with tied units, and with all units free.

    The uniform ratio stands for where a search starts; how far a search gets from there is not in it. It takes the
    time of three evaluations.

    Args:
        run: of a network whose units are tied.
        constraint: the budget on the tied units.
        limits: the budget, what each metric may be at most.

    Returns:
        The scores ``uniform`` and ``uniform_untied``; None under a latency budget, whose predictor knows tied units
        only.
    """
    if any(is_latency(metric) for metric in limits):
        return None
    untied = run.network.untied()
    static = untied.static_costs()
    free = Constraint(untied.space, [Ceiling(static[metric], most) for metric, most in limits.items()])
    tied = constraint.space.allocation(constraint.project(np.zeros(len(constraint.space))))
    allocations = [
        untied.space.from_names(run.network.keep(tied)),
        untied.space.allocation(free.project(np.zeros(len(free.space)))),
    ]
    evaluator = make_evaluator(untied, run.config, run.folder, run.screen, kind="untied", images=run.config.images)
    with_ties, without = (evaluation.score for evaluation in evaluator(allocations))
    run.screen.note(
        f"Of networks that a stock YAML can express the uniform ratio scores {with_ties:+.4f}, of all {without:+.4f}."
    )
    return {"uniform": with_ties, "uniform_untied": without}
