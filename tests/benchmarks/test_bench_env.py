"""A step of the environment, the projection at the end included, takes at most a millisecond over 60 units."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from autoprune.envs.pruning_env import PruningEnv
from autoprune.envs.rules import RULES
from tests.helpers.toy import make_toy

UNITS = 60


@pytest.mark.parametrize("rule", RULES)
def test_an_episode_of_sixty_steps(benchmark: BenchmarkFixture, rule: str) -> None:
    env = PruningEnv(make_toy(UNITS).problem(), rule=RULES[rule])
    actions = np.random.default_rng(0).uniform(env.walk.rule.low, 1, size=(UNITS, 1)).astype(np.float32)

    def episode() -> None:
        env.reset()
        for action in actions:
            env.step(action)

    benchmark(episode)
    assert benchmark.stats.stats.min / UNITS <= 1e-3
