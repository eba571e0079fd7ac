"""Show an agent the environment: scaled rewards, observations, and the exploration of its actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import Env, spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from autoprune.arrays import AnyArray
from autoprune.io.finite import check_finite
from autoprune.strategies._base import Score


class Exploration(ABC):
    """Turns wanted actions into tried ones, all within [−1, 1].

    Attributes:
        noise: standard deviation of what is added now; NaN if actions do not depend on what is wanted.
    """

    noise: float

    @abstractmethod
    def __call__(self, actions: AnyArray) -> AnyArray:
        """Return the actions to try, shape as given."""

    @abstractmethod
    def episode_ended(self) -> None:
        """Hear that the episodes have ended."""


class NoExploration(Exploration):
    """For agents whose policy is random itself."""

    noise = 0.0

    def __call__(self, actions: AnyArray) -> AnyArray:
        """Return the actions."""
        return actions

    def episode_ended(self) -> None:
        """Nothing changes."""


class TruncatedNoise(Exploration):
    """Uniform actions for some episodes, then truncated normal noise that shrinks (AMC, ECCV 2018, section 3.2).

    Args:
        sigma: standard deviation in the first episode after the random ones.
        decay: factor on it per episode.
        random_episodes: episodes of uniform actions.
        seed: of the noise.
    """

    def __init__(self, *, sigma: float, decay: float, random_episodes: int, seed: int) -> None:
        self._sigma, self._decay, self._random_left = sigma, decay, random_episodes
        self._rng = np.random.default_rng(seed)

    @property
    def noise(self) -> float:  # type: ignore[override]
        """Standard deviation of what is added now, NaN in random episodes."""
        return float("nan") if self._random_left > 0 else self._sigma

    def __call__(self, actions: AnyArray) -> AnyArray:
        """Return uniform actions, or draws from a normal distribution around the given ones, cut at ±1.

        Raises:
            ConfigError: an action is NaN or infinite; no draw would come near it.
        """
        check_finite(
            actions.reshape(-1),
            lambda _: "An agent's action",
            way_out="the agent has diverged: lower its learning rate, or take another seed",
        )
        if self._random_left > 0:
            return self._rng.uniform(-1.0, 1.0, size=actions.shape)
        return truncated_normal(self._rng, np.clip(actions, -1.0, 1.0), self._sigma)

    def episode_ended(self) -> None:
        """Count a random episode, or shrink the noise."""
        if self._random_left > 0:
            self._random_left -= 1
        else:
            self._sigma *= self._decay


def truncated_normal(rng: np.random.Generator, mean: AnyArray, sigma: float) -> AnyArray:
    """Draw from normal distributions cut to [−1, 1], by rejection; every mean lies within, so half of all draws do."""
    drawn = np.full(mean.shape, np.nan)
    while (missing := np.isnan(drawn)).any():
        fresh = mean[missing] + sigma * rng.normal(size=int(missing.sum()))
        drawn[missing] = np.where(np.abs(fresh) <= 1, fresh, np.nan)
    return drawn


MakeEnv = Callable[[], Env[Any, Any]]
"""Makes an environment that an agent learns in; its own rewards do not count.

All episodes have the same length, attribute ``episode_steps``; ``prior_actions``, shape (episode_steps,), lead to where
the search starts, and ``actions_for(allocation)`` to an allocation; ``costs(allocation)`` returns costs by metric. At
every step ``info`` holds the ``executed_action``, at the last the ``allocation``.
"""


class RunningScale:
    """Turns scores into rewards with mean about 0 and standard deviation about 1, by the scores seen so far."""

    def __init__(self) -> None:
        self._seen: list[float] = []

    def __call__(self, scores: AnyArray) -> AnyArray:
        """Return the rewards of new scores, shape as given."""
        self._seen.extend(float(score) for score in scores)
        spread = float(np.std(self._seen))
        return np.asarray((scores - np.mean(self._seen)) / (spread if spread > 0 else 1.0))


class AgentView(VecEnvWrapper):
    """Several environments in lockstep, whose candidates are scored together when they end.

    An agent's actions lie in [−1, 1]; −1 and 1 are the ends of the environment's box, and 0 is the prior's action at
    that step: there an agent that knows nothing yet begins.

    Attributes:
        steps: length of an episode.
        exploration: turns the agent's actions into those tried.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        *,
        episodes: int,
        score: Score,
        exploration: Exploration,
        marks: bool,
        scale: Callable[[AnyArray], AnyArray] | None,
    ) -> None:
        """Make the environments.

        Args:
            make_env: makes one.
            episodes: how many walk side by side.
            score: scores their candidates.
            exploration: turns the agent's actions into those tried.
            marks: whether the state gets one column more per step, 1 at its own step and 0 elsewhere.
            scale: turns scores into rewards; without one they are the scores.
        """
        venv = DummyVecEnv([make_env] * episodes)
        states, actions = venv.observation_space, venv.action_space
        if not isinstance(states, spaces.Box) or not isinstance(actions, spaces.Box):
            raise TypeError(f"An agent needs states and actions in boxes, got {states} and {actions}")
        self.steps = int(venv.get_attr("episode_steps")[0])
        self.exploration = exploration
        self._score, self._scale = score, scale
        self._marks = np.eye(self.steps if marks else 0, dtype=np.float32)
        self._ends = [(actions.low[0], prior, actions.high[0]) for prior in venv.get_attr("prior_actions")[0]]
        self._step = 0
        super().__init__(
            venv,
            observation_space=spaces.Box(0.0, 1.0, shape=(states.shape[0] + len(self._marks),), dtype=np.float32),
            action_space=spaces.Box(-1.0, 1.0, shape=actions.shape, dtype=np.float32),
        )

    def normalised(self, actions: AnyArray) -> AnyArray:
        """Return an episode's actions in the environment's box as the agent knows them, shape (steps,)."""
        return np.array([self._to_agent(action, step) for step, action in enumerate(actions)], dtype=np.float32)

    def _to_agent(self, action: AnyArray, step: int) -> AnyArray:
        return np.interp(action, self._ends[step], (-1.0, 0.0, 1.0)).astype(np.float32)

    def reset(self) -> AnyArray:
        """Start all episodes."""
        self._step = 0
        return self._marked(np.asarray(self.venv.reset()))

    def step_async(self, actions: AnyArray) -> None:
        """Take explored actions, scaled to the environment's box."""
        tried = self.exploration(actions)
        self.venv.step_async(np.interp(tried, (-1.0, 0.0, 1.0), self._ends[self._step]).astype(np.float32))

    def step_wait(self) -> Any:
        """Return the step's outcome with marked states, rewards and executed actions scaled."""
        states, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info["executed_action"] = self._to_agent(info["executed_action"], self._step)
        self._step = (self._step + 1) % self.steps
        if dones.any():
            scores = self._score([info["allocation"] for info in infos])
            for info, score in zip(infos, scores, strict=True):
                info["terminal_observation"] = self._marked(info["terminal_observation"][None])[0]
                info["episode"] = {"r": score, "l": self.steps, "t": 0.0}  # for stable-baselines3's own figures
            self.exploration.episode_ended()
            rewards = np.array(scores, dtype=np.float32)
            if self._scale is not None:
                rewards = self._scale(rewards).astype(np.float32)
        return self._marked(np.asarray(states)), rewards, dones, infos

    def _marked(self, states: AnyArray) -> AnyArray:
        """Append the columns that mark the step, shape (episodes, columns) → (episodes, columns + steps)."""
        if not len(self._marks):
            return states
        return np.concatenate([states, np.repeat(self._marks[self._step][None], len(states), axis=0)], axis=1)
