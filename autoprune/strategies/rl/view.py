"""What an agent sees of its environments: actions in [−1, 1], explored; steps marked; candidates scored together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Env, spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from autoprune.strategies._base import Score
from autoprune.strategies.rl.exploration import Exploration

Array = npt.NDArray[Any]

MakeEnv = Callable[[], Env[Any, Any]]
"""Makes an environment that an agent learns in; its own rewards do not count.

All episodes have the same length, attribute ``episode_steps``; ``prior_actions``, shape (episode_steps,), lead to where
the search starts, and ``actions_for(allocation)`` to an allocation; ``costs(allocation)`` tells costs by metric. At
every step ``info`` holds the ``executed_action``, at the last the ``allocation``.
"""


class RunningScale:
    """Turns scores into rewards with mean about 0 and standard deviation about 1, by the scores seen so far."""

    def __init__(self) -> None:
        self._seen: list[float] = []

    def __call__(self, scores: Array) -> Array:
        """Return the rewards of new scores, shape as given."""
        self._seen.extend(float(score) for score in scores)
        spread = float(np.std(self._seen))
        return np.asarray((scores - np.mean(self._seen)) / (spread if spread > 0 else 1.0))


class AgentView(VecEnvWrapper):
    """Several environments in lockstep, whose candidates are scored together when they end.

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
        scale: Callable[[Array], Array] | None,
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
        self._low, self._high = actions.low, actions.high
        self._step = 0
        super().__init__(
            venv,
            observation_space=spaces.Box(0.0, 1.0, shape=(states.shape[0] + len(self._marks),), dtype=np.float32),
            action_space=spaces.Box(-1.0, 1.0, shape=actions.shape, dtype=np.float32),
        )

    def normalised(self, actions: Array) -> Array:
        """Return actions of the environment's box as the agent knows them, shape as given."""
        return np.asarray(2 * (actions - self._low) / (self._high - self._low) - 1, dtype=np.float32)

    def reset(self) -> Array:
        """Start all episodes."""
        self._step = 0
        return self._marked(np.asarray(self.venv.reset()))

    def step_async(self, actions: Array) -> None:
        """Take explored actions, scaled to the environment's box."""
        tried = self.exploration(actions)
        self.venv.step_async((self._low + (tried + 1) / 2 * (self._high - self._low)).astype(np.float32))

    def step_wait(self) -> Any:
        """Return the step's outcome with marked states, rewards and executed actions scaled."""
        states, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info["executed_action"] = self.normalised(info["executed_action"])
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

    def _marked(self, states: Array) -> Array:
        """Append the columns that mark the step, shape (episodes, columns) → (episodes, columns + steps)."""
        if not len(self._marks):
            return states
        return np.concatenate([states, np.repeat(self._marks[self._step][None], len(states), axis=0)], axis=1)
