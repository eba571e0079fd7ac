"""What an agent sees of an environment: actions in [−1, 1], explored, and rewards of a known size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from autoprune.search.exploration import Exploration
from autoprune.space import Allocation

Array = npt.NDArray[Any]

Score = Callable[[Sequence[Allocation]], Sequence[float]]
"""Scores the candidates of one step, in order."""


class MakeEnv(Protocol):
    """Makes the environment that an agent learns in.

    All episodes have the same length, attribute ``episode_steps``; ``prior_actions``, shape (episode_steps,), lead to
    where the search starts; ``costs(allocation)`` tells costs by metric. At every step ``info`` holds the
    ``executed_action``.
    """

    def __call__(self, *, episodes: int, score: Score) -> VecEnv:
        """Return an environment of so many episodes in lockstep, whose last step calls ``score`` once."""


class RewardScale:
    """Turns scores into rewards with mean about 0 and standard deviation about 1, by the scores seen so far."""

    def __init__(self) -> None:
        self._seen: list[float] = []

    def __call__(self, scores: Array) -> Array:
        """Return the rewards of new scores, shape as given."""
        self._seen.extend(float(score) for score in scores)
        spread = float(np.std(self._seen))
        return np.asarray((scores - np.mean(self._seen)) / (spread if spread > 0 else 1.0))


class AgentView(VecEnvWrapper):
    """Wraps an environment whose episodes all end at the same step.

    Attributes:
        exploration: turns the agent's actions into those tried.
        scale: turns scores into rewards.
    """

    def __init__(self, venv: VecEnv, *, exploration: Exploration, scale: RewardScale) -> None:
        inner = venv.action_space
        if not isinstance(inner, spaces.Box):
            raise TypeError(f"An agent needs actions in a box, got {inner}")
        super().__init__(venv, action_space=spaces.Box(-1.0, 1.0, shape=inner.shape, dtype=np.float32))
        self.exploration = exploration
        self.scale = scale
        self._low, self._high = inner.low, inner.high

    def normalised(self, actions: Array) -> Array:
        """Return actions of the environment's box as the agent knows them, shape as given."""
        return np.asarray(2 * (actions - self._low) / (self._high - self._low) - 1, dtype=np.float32)

    def reset(self) -> Array:
        """Start all episodes."""
        return np.asarray(self.venv.reset())

    def step_async(self, actions: Array) -> None:
        """Take explored actions, scaled to the environment's box."""
        tried = self.exploration(actions)
        self.venv.step_async((self._low + (tried + 1) / 2 * (self._high - self._low)).astype(np.float32))

    def step_wait(self) -> Any:
        """Return the step's outcome, rewards and executed actions scaled."""
        states, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info["executed_action"] = self.normalised(info["executed_action"])
        if dones.any():
            self.exploration.episode_ended()
            rewards = self.scale(rewards).astype(np.float32)
        return states, rewards, dones, infos
