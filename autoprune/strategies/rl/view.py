"""What an agent sees of an environment: actions in [−1, 1], explored; every step marked; rewards of a known size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from autoprune.strategies.rl.exploration import Exploration
from autoprune.structure.space import Allocation

Array = npt.NDArray[Any]

Score = Callable[[Sequence[Allocation]], Sequence[float]]
"""Scores the candidates of one step, in order."""


class MakeEnv(Protocol):
    """Makes the environment that an agent learns in.

    All episodes have the same length, attribute ``episode_steps``; ``prior_actions``, shape (episode_steps,), lead to
    where the search starts, and ``actions_for(allocation)`` to an allocation; ``costs(allocation)`` tells costs by
    metric. At every step ``info`` holds the
    ``executed_action``.
    """

    def __call__(self, *, episodes: int, score: Score) -> VecEnv:
        """Return an environment of so many episodes in lockstep, whose last step calls ``score`` once."""


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
    """Wraps an environment whose episodes all end at the same step.

    Attributes:
        steps: length of an episode.
        exploration: turns the agent's actions into those tried.
    """

    def __init__(
        self,
        venv: VecEnv,
        *,
        exploration: Exploration,
        marks: bool,
        scale: Callable[[Array], Array] | None,
    ) -> None:
        """Wrap an environment.

        Args:
            venv: the environment, as ``MakeEnv`` makes it.
            exploration: turns the agent's actions into those tried.
            marks: whether the state gets one column more per step, 1 at its own step and 0 elsewhere.
            scale: turns scores into rewards; without one they are the scores.
        """
        states, actions = venv.observation_space, venv.action_space
        if not isinstance(states, spaces.Box) or not isinstance(actions, spaces.Box):
            raise TypeError(f"An agent needs states and actions in boxes, got {states} and {actions}")
        self.steps = int(venv.get_attr("episode_steps")[0])
        self.exploration = exploration
        self._scale = scale
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
            for info in infos:
                info["terminal_observation"] = self._marked(info["terminal_observation"][None])[0]
            self.exploration.episode_ended()
            if self._scale is not None:
                rewards = self._scale(rewards).astype(np.float32)
        return self._marked(np.asarray(states)), rewards, dones, infos

    def _marked(self, states: Array) -> Array:
        """Append the columns that mark the step, shape (episodes, columns) → (episodes, columns + steps)."""
        if not len(self._marks):
            return states
        return np.concatenate([states, np.repeat(self._marks[self._step][None], len(states), axis=0)], axis=1)
