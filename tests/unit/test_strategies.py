from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from autoprune.envs.rules import RULES
from autoprune.strategies._base import SearchTask, search
from autoprune.strategies.evolution import EvolutionStrategy
from autoprune.strategies.greedy import GreedyStrategy
from autoprune.strategies.knapsack import KnapsackStrategy
from autoprune.strategies.prior import SearchPrior
from autoprune.strategies.random import RandomStrategy
from autoprune.strategies.registry import STRATEGIES, StrategyName, StrategySpec
from autoprune.strategies.rl.agents import AgentKind, AgentStrategy
from autoprune.strategies.sensitivity import SensitivityStrategy
from autoprune.strategies.survey import SurveyStrategy
from autoprune.strategies.threshold import ThresholdStrategy
from autoprune.strategies.uniform import UniformStrategy
from tests.contracts.strategies import check_strategy
from tests.helpers.toy import Toy, make_toy
from tests.unit.test_regrowth import gains_of

TOY = make_toy(8)


def agent(kind: AgentKind, toy: Toy, evaluations: int, *, rule: str = "projected", seed: int = 0) -> AgentStrategy:
    return AgentStrategy(partial(toy.env, rule), kind.settings, evaluations=evaluations, seed=seed)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "kind",  # SAC and TD3 differ from DDPG in their learner only
    [
        pytest.param(kind, marks=pytest.mark.slow if kind in (AgentKind.SAC, AgentKind.TD3) else ())
        for kind in AgentKind
    ],
)
def test_agents_keep_the_contract(kind: AgentKind, rule: str) -> None:
    check_strategy(lambda evaluations: agent(kind, TOY, evaluations, rule=rule), TOY)


def test_random_keeps_the_contract() -> None:
    check_strategy(lambda evaluations: RandomStrategy(TOY.constraint, seed=0), TOY)


def test_uniform_keeps_the_contract() -> None:
    result = check_strategy(lambda _: UniformStrategy(TOY.constraint), TOY, exact=False)
    assert len(result.history) == 1


def test_threshold_keeps_the_contract() -> None:
    rng = np.random.default_rng(0)
    importance = [rng.random(group.size) for group in TOY.space.graph.groups]
    result = check_strategy(lambda _: ThresholdStrategy(TOY.constraint, importance), TOY, exact=False)
    assert len(result.history) == 1


@pytest.mark.parametrize("evaluations", [1, 7, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [SensitivityStrategy, KnapsackStrategy])
def test_strategies_with_a_survey_keep_the_contract(kind: type[SurveyStrategy], evaluations: int) -> None:
    def make(evaluations: int) -> SurveyStrategy:
        return kind(TOY.constraint, evaluations=evaluations)

    check_strategy(make, TOY, evaluations=evaluations, exact=False, probes=True)


def test_evolution_keeps_the_contract() -> None:
    check_strategy(lambda evaluations: EvolutionStrategy(TOY.constraint, seed=0), TOY, evaluations=40)


@pytest.mark.parametrize("evaluations", [1, 2, 7, 13, 60, 1000])
def test_greedy_keeps_the_contract(evaluations: int) -> None:
    def make(evaluations: int) -> GreedyStrategy:
        return GreedyStrategy(TOY.constraint, evaluations=evaluations)

    check_strategy(make, TOY, evaluations=evaluations, exact=False, probes=True)


@pytest.mark.parametrize("spec", STRATEGIES, ids=lambda spec: spec.name)
def test_a_record_leads_to_a_strategy_that_is_what_it_says(spec: StrategySpec) -> None:
    def task(seed: int) -> SearchTask:
        prior = SearchPrior(np.linspace(0, 1, 8), np.linspace(-0.3, 0, 8), (), 0) if spec.uses_prior else None
        return SearchTask(
            constraint=TOY.constraint,
            evaluations=12,
            seed=seed,
            prior=prior,
            gains=(lambda *asked: gains_of(TOY, *asked)) if spec.uses_gains else None,
            importance=[np.linspace(0.1, 1, group.size) for group in TOY.space.graph.groups],
            environment=(lambda log_ratios, sensitivity: TOY.env) if spec.agent else None,
        )

    one, two = (search(spec.make(task(seed)), TOY.score, constraint=TOY.constraint, evaluations=12) for seed in (0, 1))
    assert (one == two) == spec.deterministic
    assert StrategyName(spec.name).spec is spec
