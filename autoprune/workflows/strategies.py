"""A strategy's name → the strategy, given all that one may need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np

from autoprune.choices import WARM_STARTED, Rule, StrategyName
from autoprune.envs import CHANNEL_PRUNING
from autoprune.envs.problem import PruningProblem
from autoprune.envs.rules import Capped, Projected
from autoprune.evaluation.evaluator import Evaluator
from autoprune.strategies._base import Candidate, Score, Strategy
from autoprune.strategies.curves import SensitivityCurves
from autoprune.strategies.evolution import EvolutionStrategy
from autoprune.strategies.greedy import GreedyStrategy
from autoprune.strategies.knapsack import KnapsackStrategy
from autoprune.strategies.random import RandomStrategy
from autoprune.strategies.regrowth import Gains, RegrowthStrategy
from autoprune.strategies.rl.agents import AgentKind, AgentStrategy
from autoprune.strategies.rl.settings import PPOSettings, Settings
from autoprune.strategies.sensitivity import SensitivityStrategy
from autoprune.strategies.threshold import ThresholdStrategy
from autoprune.strategies.uniform import UniformStrategy
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation, Space
from autoprune.workflows.guidance import Guidance
from autoprune.workflows.network import Network

INFORMED = WARM_STARTED
"""Strategies that start from `Guidance`."""

CHANCELESS = {
    StrategyName.UNIFORM,
    StrategyName.GLOBAL,
    StrategyName.GREEDY,
    StrategyName.SENSITIVITY,
    StrategyName.KNAPSACK,
    StrategyName.REGROWTH,
}
"""Strategies that do the same whatever the seed."""

INFORMED_STEP = 0.4
"""PPO's first standard deviation around a prior that is not uniform, as a share of the median relative step of a unit.

Best score of 51 episodes after regrowth on bccd yolov5nu (l1, 224 px, 32 images, seed 0), at 0.2, 0.4, 0.8 and 1.6:
flops=50%, from 0.054: 0.062, 0.061, 0.064, 0.057; 30%, from 0.061: 0.068, 0.062, 0.061, 0.061; 20%, from 0.025: 0.032,
0.035, 0.030, 0.025.
"""


@dataclass(frozen=True)
class SearchTask:
    """What a strategy is made from.

    Attributes:
        network: the dense network.
        constraint: the budget.
        evaluations: how many candidates may be scored.
        seed: of everything random.
        rule: how an agent's episode meets the budget.
        guidance: sensitivities and a prior; the strategies in ``INFORMED`` need it.
        gains: of widening every unit; the strategy regrowth needs it.
        curves: sensitivity curves measured before, or None.
        start: candidates of other strategies that hold the constraint, with their scores.
        log_dir: where TensorBoard events are written, if anywhere.
    """

    network: Network
    constraint: Constraint
    evaluations: int
    seed: int
    rule: Rule = Rule.PROJECTED
    guidance: Guidance | None = None
    gains: Gains | None = None
    curves: SensitivityCurves | None = None
    start: tuple[Candidate, ...] = ()
    log_dir: Path | None = None


def make_strategy(name: StrategyName, task: SearchTask) -> Strategy:
    """Return the strategy of a name, ready to be asked."""
    constraint, evaluations = task.constraint, task.evaluations
    makers: dict[StrategyName, Callable[[], Strategy]] = {
        StrategyName.UNIFORM: lambda: UniformStrategy(constraint),
        StrategyName.GLOBAL: lambda: ThresholdStrategy(constraint, task.network.importance),
        StrategyName.RANDOM: lambda: RandomStrategy(constraint, seed=task.seed),
        StrategyName.GREEDY: lambda: GreedyStrategy(constraint, evaluations=evaluations),
        StrategyName.SENSITIVITY: lambda: SensitivityStrategy(constraint, evaluations=evaluations, curves=task.curves),
        StrategyName.KNAPSACK: lambda: KnapsackStrategy(constraint, evaluations=evaluations, curves=task.curves),
        StrategyName.EVOLUTION: lambda: EvolutionStrategy(
            constraint, seed=task.seed, prior=_guidance(task).prior, start=task.start
        ),
        StrategyName.REGROWTH: lambda: RegrowthStrategy(constraint, _gains(task), evaluations=evaluations),
    }
    return makers[name]() if name in makers else _agent(AgentKind(name.value), task)


def scores_of(evaluator: Evaluator) -> Score:
    """Return an evaluator as the search loop and a `PruningProblem` want it; it can be pickled as the evaluator can."""
    return partial(_scores, evaluator)


def _scores(evaluator: Evaluator, allocations: Sequence[Allocation]) -> list[float]:
    return [evaluation.score for evaluation in evaluator(allocations)]


def _agent(kind: AgentKind, task: SearchTask) -> AgentStrategy:
    guidance, constraint = _guidance(task), task.constraint
    prior = guidance.prior
    if task.start:
        best = max((*task.start, *guidance.tried), key=lambda candidate: candidate.score)
        prior = np.log(constraint.space.ratios(np.array(best.allocation)))
    rule = Projected if task.rule is Rule.PROJECTED else Capped
    problem = PruningProblem(
        space=constraint.space, constraint=constraint, cost=constraint.ceilings[0].cost, score=None,
        sensitivity=guidance.sensitivity, prior=prior,
    )  # fmt: skip
    make_env = partial(gymnasium.make, CHANNEL_PRUNING, problem=problem, rule=rule, disable_env_checker=True)
    return AgentStrategy(
        make_env, _settings(kind, bool(np.any(prior)), constraint.space),
        evaluations=task.evaluations, seed=task.seed, start=task.start, log_dir=task.log_dir,
    )  # fmt: skip


def _settings(kind: AgentKind, informed: bool, space: Space) -> Settings:
    """Return the agent's settings; around a prior made of sensitivities PPO looks closer than around a uniform one."""
    settings = kind.settings
    if isinstance(settings, PPOSettings) and informed:
        step = float(np.median(space.round_to / space.dense))
        return replace(settings, log_std=float(np.clip(np.log(INFORMED_STEP * step), -4.0, settings.log_std)))
    return settings


def _guidance(task: SearchTask) -> Guidance:
    assert task.guidance is not None, "agents and evolution start from what regrowth found"
    return task.guidance


def _gains(task: SearchTask) -> Gains:
    assert task.gains is not None, "regrowth widens what gains most"
    return task.gains
