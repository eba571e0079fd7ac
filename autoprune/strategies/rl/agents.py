"""Run agents of stable-baselines3 as strategies, on any environment that is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import Enum
from itertools import chain
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from autoprune.arrays import AnyArray, Array
from autoprune.strategies._base import Candidate, Evaluate, Score, SearchTask, Strategy, Track, untracked
from autoprune.strategies.isolation import preserved_random_state, torch_threads
from autoprune.strategies.polish import PolishedStrategy
from autoprune.strategies.rl.learners import build, exploration_of, walk_episode
from autoprune.strategies.rl.monitoring import DuplicateMonitor, StdGrowth, agent_logger, spread_of
from autoprune.strategies.rl.settings import DDPGSettings, PPOSettings, SACSettings, Settings, TD3Settings
from autoprune.strategies.rl.view import AgentView, Exploration, MakeEnv, NoExploration, RunningScale
from autoprune.structure.space import Allocation, Space

PRIOR_STEP = 0.4
"""PPO's first standard deviation around a prior that is not uniform, as a share of the median relative step of a unit.

Best score of 51 episodes after regrowth on bccd yolov5nu (l1, 224 px, 32 images, seed 0), at 0.2, 0.4, 0.8 and 1.6:
flops=50%, from 0.054: 0.062, 0.061, 0.064, 0.057; 30%, from 0.061: 0.068, 0.062, 0.061, 0.061; 20%, from 0.025: 0.032,
0.035, 0.030, 0.025.
"""


POLISH_SHARE = 0.5
"""Share of PPO's evaluations that polish what it found, see `PolishStrategy`.

Least loss on the tests' toy (40 units, geometric mean over five problems) of 50 / 200 evaluations, from the uniform
ratio: PPO alone 0.328 / 0.194, its half polished 0.349 / 0.161, two thirds 0.375 / 0.178, polish alone 0.468 / 0.204;
around a good prior: 0.374 / 0.302, 0.309 / 0.196, 0.288 / 0.188, 0.288 / 0.168. So polish alone needs a good prior, PPO
alone gains little near one, and half of each is never far from the best. What it is worth on detectors is in
``docs/accuracy.md``.
"""


class AgentKind(Enum):
    """The agents, by their name on the command line."""

    PPO = "ppo"
    DDPG = "ddpg"
    TD3 = "td3"
    SAC = "sac"

    @property
    def settings(self) -> Settings:
        """The agent's settings as shipped."""
        defaults: dict[AgentKind, Settings] = {
            AgentKind.PPO: PPOSettings(),
            AgentKind.DDPG: DDPGSettings(),
            AgentKind.TD3: TD3Settings(),
            AgentKind.SAC: SACSettings(),
        }
        return defaults[self]

    def make(self, task: SearchTask) -> Strategy:
        """Return the agent for a task; what PPO finds is polished by the last evaluations."""
        if self is not AgentKind.PPO:
            return self.alone(task)
        own = task.evaluations - int(POLISH_SHARE * task.evaluations)
        return PolishedStrategy(self.alone(replace(task, evaluations=own)), own, task)

    def alone(self, task: SearchTask) -> AgentStrategy:
        """Return nothing but the agent; it starts from the best candidate of others, if there are any, or the prior."""
        assert task.environment is not None, "an agent learns in an environment"
        space = task.constraint.space
        log_ratios, sensitivity = np.zeros(len(space)), np.zeros(len(space))
        if task.prior is not None:
            log_ratios, sensitivity = task.prior.target_log_ratios, task.prior.sensitivity
        if task.start:
            best = max(task.known, key=lambda candidate: candidate.score)
            log_ratios = space.log_ratios(best.allocation)
        return AgentStrategy(
            task.environment(log_ratios, sensitivity),
            self._around(log_ratios, space, task.rollout),
            evaluations=task.evaluations,
            seed=task.seed,
            start=task.start,
            track=task.track,
        )

    def _around(self, log_ratios: Array, space: Space, rollout: int | None) -> Settings:
        """Return the settings; PPO's rollout as asked for, and around a prior that is not uniform it looks closer."""
        settings = self.settings
        if not isinstance(settings, PPOSettings):
            return settings
        settings = replace(settings, episodes=rollout or settings.episodes)
        if np.any(log_ratios):
            step = float(np.median(space.round_to / space.dense))
            return replace(settings, log_std=float(np.clip(np.log(PRIOR_STEP * step), -4.0, settings.log_std)))
        return settings


class AgentStrategy(Strategy):
    """Lets an agent learn in the Gymnasium environment; what its episodes end at are the candidates.

    The first candidate is the environment's prior; off-policy agents remember that episode, and those of candidates
    that other strategies found. What the agent draws from global random states disturbs nobody.

    Args:
        make_env: makes an environment.
        settings: which agent, and how, e.g. ``AgentKind.PPO.settings``.
        evaluations: candidates that it may try: the length of its schedules.
        seed: of everything random.
        start: candidates of other strategies; off-policy agents walk them to fill their replay buffer.
        track: takes the agent's own figures: ``noise``, what stable-baselines3 logs.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        settings: Settings,
        *,
        evaluations: int,
        seed: int,
        start: Sequence[Candidate] = (),
        track: Track = untracked,
    ) -> None:
        self._make_env = make_env
        self._settings = settings
        self._evaluations = evaluations
        self._seed = seed
        self._start = {candidate.allocation: candidate.score for candidate in start}
        self._track = track
        self._spread: Callable[[], float | None] = lambda: None

    def run(self, evaluate: Evaluate) -> None:
        """Learn; on one core, for handing out such small sums costs more, while candidates are scored on all."""
        threads = torch.get_num_threads()
        exploration = exploration_of(self._settings, evaluations=self._evaluations, seed=self._seed)

        def score(allocations: Sequence[Allocation]) -> Sequence[float]:
            if evaluate.left:
                spread = self._spread()
                self._track({"noise": exploration.noise if spread is None else spread})
            with torch_threads(threads):
                return evaluate(allocations)

        with preserved_random_state(), torch_threads(1):
            self._learn(score, exploration)

    def _learn(self, score: Score, exploration: Exploration) -> None:
        """Learn until ``score`` ends it."""
        settings = self._settings
        episodes, scale = (settings.episodes, RunningScale()) if isinstance(settings, PPOSettings) else (1, None)

        def view(score: Score, *, episodes: int = 1, exploration: Exploration) -> AgentView:
            return AgentView(
                self._make_env,
                episodes=episodes,
                score=score,
                exploration=exploration,
                marks=settings.marks,
                scale=scale,
            )

        first = view(score, exploration=NoExploration())
        prior = walk_prior(first)
        novelty = DuplicateMonitor(score)
        env = view(novelty, episodes=episodes, exploration=exploration)
        model = build(settings, env, evaluations=self._evaluations, seed=self._seed)
        if isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None:
            known = view(self._remembered, exploration=NoExploration())
            for transition in chain(prior, self._walk_known(known)):
                model.replay_buffer.add(**transition)
        model.set_logger(agent_logger(self._track))
        self._spread = lambda: spread_of(model)
        steps = env.steps * self._evaluations * episodes
        model.learn(total_timesteps=steps, callback=StdGrowth(novelty) if isinstance(settings, PPOSettings) else None)

    def _remembered(self, allocations: Sequence[Allocation]) -> Sequence[float]:
        """Score by the scores of other strategies; 0 for what they did not try, see `_walk_known`."""
        return [self._start.get(allocation, 0.0) for allocation in allocations]

    def _walk_known(self, env: AgentView) -> Iterator[dict[str, Any]]:
        """Walk to every candidate of other strategies; yield the transitions of walks that end at one."""
        for allocation in self._start:
            transitions = _walk_along(env, env.env_method("actions_for", allocation)[0])
            if transitions[-1]["infos"][0]["allocation"] in self._start:
                yield from transitions


def walk_prior(env: AgentView) -> list[dict[str, Any]]:
    """Walk one episode along the prior's actions; return its transitions."""
    return _walk_along(env, env.get_attr("prior_actions")[0])


def _walk_along(env: AgentView, actions: AnyArray) -> list[dict[str, Any]]:
    following = iter(env.normalised(actions))
    return walk_episode(env, lambda _: np.full((1, 1), next(following), dtype=np.float32))
