from __future__ import annotations

from dataclasses import replace

import pytest
from stable_baselines3.common.vec_env import VecEnv

from autoprune.search.agents import AgentKind, AgentStrategy
from autoprune.search.random import RandomStrategy
from envs.lockstep import LockstepEnv
from envs.rules import RULES
from tests.contracts.strategies import check_strategy
from tests.toy import Toy, make_toy

TOY = make_toy(8)


def agent(kind: AgentKind, toy: Toy, evaluations: int, *, rule: str = "projected", seed: int = 0) -> AgentStrategy:
    def make_env(*, episodes: int, score: object) -> VecEnv:
        return LockstepEnv(replace(toy.problem(), score=score), episodes=episodes, rule=RULES[rule])

    return AgentStrategy(make_env, kind.settings, evaluations=evaluations, seed=seed)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", AgentKind)
def test_agents_keep_the_contract(kind: AgentKind, rule: str) -> None:
    check_strategy(lambda evaluations: agent(kind, TOY, evaluations, rule=rule), TOY)


def test_random_keeps_the_contract() -> None:
    check_strategy(lambda evaluations: RandomStrategy(TOY.constraint, evaluations=evaluations, seed=0), TOY)
