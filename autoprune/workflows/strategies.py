"""What a workflow hands to strategies: scores of candidates, and environments for agents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import gymnasium

from autoprune.arrays import Array
from autoprune.choices import Rule
from autoprune.envs import CHANNEL_PRUNING
from autoprune.envs.problem import PruningProblem
from autoprune.evaluation.evaluator import Evaluator
from autoprune.strategies._base import Score
from autoprune.strategies.rl.view import MakeEnv
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation


def scores_of(evaluator: Evaluator) -> Score:
    """Return an evaluator as the search loop and a `PruningProblem` want it; it can be pickled as the evaluator can."""
    return partial(_scores, evaluator)


def _scores(evaluator: Evaluator, allocations: Sequence[Allocation]) -> list[float]:
    return [evaluation.score for evaluation in evaluator(allocations)]


def problem_of(constraint: Constraint, score: Score | None, log_ratios: Array, sensitivity: Array) -> PruningProblem:
    """Return the problem of an environment: a budget, its score if the environment gives it, and where to start."""
    return PruningProblem(
        space=constraint.space,
        constraint=constraint,
        cost=constraint.limits[0].cost,
        score=score,
        sensitivity=sensitivity,
        prior=log_ratios,
    )


def environment(constraint: Constraint, rule: Rule) -> Callable[[Array, Array], MakeEnv]:
    """Return what makes an agent's environments, given where it starts and how sensitive the units are."""

    def made(log_ratios: Array, sensitivity: Array) -> MakeEnv:
        problem = problem_of(constraint, None, log_ratios, sensitivity)
        return partial(gymnasium.make, CHANNEL_PRUNING, problem=problem, rule=rule.value, disable_env_checker=True)

    return made
