"""Agents of stable-baselines3 as strategies, on any injected environment."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from autoprune.strategies._base import Candidate, Strategy
from autoprune.strategies.rl.exploration import Exploration, NoExploration
from autoprune.strategies.rl.handoff import Handoff
from autoprune.strategies.rl.isolation import PrivateGlobals, compute_on_one_core
from autoprune.strategies.rl.learners import build, exploration_of, walk_episode
from autoprune.strategies.rl.novelty import Novelty, Widening
from autoprune.strategies.rl.settings import DDPGSettings, PPOSettings, SACSettings, Settings, TD3Settings
from autoprune.strategies.rl.telemetry import Telemetry
from autoprune.strategies.rl.view import AgentView, MakeEnv, RunningScale, Score
from autoprune.structure.space import Allocation


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


class AgentStrategy(Strategy):
    """Runs an agent's ``learn()`` in a thread of its own and hands its candidates to the search loop.

    The first candidate is the environment's prior; off-policy agents remember that episode, and those of candidates
    that other strategies found. The agent draws from global random states of its own, so that nothing outside disturbs
    it or is disturbed.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        settings: Settings,
        *,
        evaluations: int,
        seed: int,
        start: Sequence[Candidate] = (),
        log_dir: Path | None = None,
    ) -> None:
        """Prepare the agent; nothing runs before the first ``ask``.

        Args:
            make_env: makes its environments.
            settings: which agent, and how, e.g. ``AgentKind.PPO.settings``.
            evaluations: candidates that it may try; also sets the length of its schedules.
            seed: of everything random.
            start: candidates of other strategies; off-policy agents walk them to fill their replay buffer.
            log_dir: where TensorBoard events are written, if anywhere.
        """
        self._make_env = make_env
        self._settings = settings
        self._evaluations = self._left = evaluations
        self._seed = seed
        self._start = {candidate.allocation: candidate.score for candidate in start}
        self._waiting: deque[Allocation] = deque()
        self._scores: list[float] = []
        self._globals = PrivateGlobals()
        self._exploration = exploration_of(settings, evaluations=evaluations, seed=seed)
        self._telemetry = Telemetry(log_dir)
        self._handoff: Handoff[Sequence[Allocation], Sequence[float]] = Handoff(self._learn, name="autoprune-agent")

    def ask(self, limit: int) -> Sequence[Allocation]:
        """Return candidates of one rollout; none when the evaluations are spent."""
        if self._left == 0:
            return ()
        if not self._waiting:
            with self._globals:
                self._waiting.extend(self._handoff.question() or ())
        return [self._waiting[index] for index in range(min(limit, self._left, len(self._waiting)))]

    def tell(self, allocations: Sequence[Allocation], scores: Sequence[float]) -> None:
        """Take scores; the agent hears them when its whole rollout is scored."""
        for allocation, score in zip(allocations, scores, strict=True):
            self._waiting.popleft()
            self._scores.append(score)
            self._telemetry.evaluation(allocation, score, noise=self._exploration.noise)
        self._left -= len(allocations)
        if not self._waiting:
            self._handoff.answer(self._scores)
            self._scores = []

    def close(self) -> None:
        """End the agent's thread, wherever it is, and close its files."""
        with self._globals:
            self._handoff.close()
        self._telemetry.close()

    def _learn(self, ask: Score) -> None:
        """Let the agent learn until ``ask`` ends it; on one core, for handing out such small sums costs more."""
        compute_on_one_core()
        settings = self._settings
        episodes, scale = (settings.episodes, RunningScale()) if isinstance(settings, PPOSettings) else (1, None)

        def view(env: VecEnv, exploration: Exploration) -> AgentView:
            return AgentView(env, exploration=exploration, marks=settings.marks, scale=scale)

        first = self._make_env(episodes=1, score=ask)
        self._telemetry.costs = lambda allocation: first.env_method("costs", allocation)[0]
        prior = walk_prior(view(first, NoExploration()))
        novelty = Novelty(ask)
        env = view(self._make_env(episodes=episodes, score=novelty), self._exploration)
        model = build(settings, env, evaluations=self._evaluations, seed=self._seed)
        if isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None:
            known = view(self._make_env(episodes=1, score=self._remembered), NoExploration())
            for transition in chain(prior, self._walk_known(known)):
                model.replay_buffer.add(**transition)
        model.set_logger(self._telemetry.agent_logger())
        steps = env.steps * self._evaluations * episodes
        model.learn(total_timesteps=steps, callback=Widening(novelty) if isinstance(settings, PPOSettings) else None)

    def _remembered(self, allocations: Sequence[Allocation]) -> Sequence[float]:
        """Score by what other strategies told; 0 for what they did not try, see `_walk_known`."""
        return [self._start.get(allocation, 0.0) for allocation in allocations]

    def _walk_known(self, env: AgentView) -> Iterator[dict[str, Any]]:
        """Walk to every candidate that other strategies told; yield the transitions of walks that end at one."""
        for allocation in self._start:
            transitions = _walk_along(env, env.env_method("actions_for", allocation)[0])
            if transitions[-1]["infos"][0]["allocation"] in self._start:
                yield from transitions


def walk_prior(env: AgentView) -> list[dict[str, Any]]:
    """Walk one episode along the prior's actions; return its transitions."""
    return _walk_along(env, env.get_attr("prior_actions")[0])


def _walk_along(env: AgentView, actions: npt.NDArray[Any]) -> list[dict[str, Any]]:
    following = iter(env.normalised(actions))
    return walk_episode(env, lambda _: np.full((1, 1), next(following), dtype=np.float32))
