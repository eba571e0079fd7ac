"""N episodes of ``PruningEnv`` in lockstep, as a stable-baselines3 ``VecEnv``: N candidates, one call of ``score``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from autoprune.structure.space import Allocation
from envs.problem import PruningProblem
from envs.rules import Projected
from envs.walk import RuleFactory, Walk

Indices = None | int | Iterable[int]


class LockstepEnv(VecEnv):
    """Like N single environments, but their last step scores all candidates together.

    Attributes:
        walk: the episodes.
        prior_actions: actions, shape (steps,), whose walk ends at the problem's prior.
        episode_steps: length of an episode.
    """

    def __init__(self, problem: PruningProblem, *, episodes: int, rule: str | RuleFactory = Projected) -> None:
        self.walk = Walk(problem, rule, episodes=episodes)
        self.prior_actions = self.walk.rule.prior_actions()
        self.episode_steps = self.walk.steps
        box = spaces.Box(self.walk.rule.low, self.walk.rule.high, shape=(1,), dtype=np.float32)
        self.render_mode = None
        self._actions: npt.NDArray[np.float32] = np.zeros((episodes, 1), dtype=np.float32)
        super().__init__(episodes, self.walk.observer.box, box)

    def reset(self) -> npt.NDArray[np.float32]:
        """Start all walks; return the first states, shape (episodes, columns)."""
        self._reset_seeds()
        self._reset_options()
        return self.walk.reset()

    def step_async(self, actions: npt.NDArray[np.float32]) -> None:
        """Take note of actions, shape (episodes, 1)."""
        self._actions = actions

    def step_wait(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_], list[Any]]:
        """Decide one unit in every walk; after the last, score all, and start again.

        Returns:
            States (episodes, columns), rewards (episodes,), whether the walks ended (episodes,), infos.
        """
        walk = self.walk
        states, executed = walk.advance(self._actions)
        infos: list[dict[str, Any]] = [{"executed_action": np.array([value], dtype=np.float32)} for value in executed]
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        if walk.finished:
            allocations = walk.allocations()
            scores = walk.problem.scores(allocations)
            rewards = np.array(scores, dtype=np.float32)
            for info, state, allocation, score in zip(infos, states, allocations, scores, strict=True):
                info.update(walk.describe(allocation, score), terminal_observation=state)
                info["TimeLimit.truncated"] = False
                info["episode"] = {"r": score, "l": walk.steps, "t": 0.0}
            states = walk.reset()
            return states, rewards, np.ones(self.num_envs, dtype=np.bool_), infos
        return states, rewards, np.zeros(self.num_envs, dtype=np.bool_), infos

    def actions_for(self, allocation: Allocation) -> npt.NDArray[np.float64]:
        """Return actions, shape (steps,), whose walk ends at an allocation or, under ``projected``, close to it."""
        return self.walk.rule.actions_for(np.array(allocation, dtype=np.int64))

    def costs(self, allocation: Allocation) -> dict[str, float]:
        """Return the limited costs of an allocation, by metric."""
        return self.walk.problem.constraint.costs(np.array(allocation, dtype=np.int64))

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute, once per asked episode: all share it."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute for all episodes: they share it."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Indices = None, **kwargs: Any) -> list[Any]:
        """Call a method, once per asked episode."""
        return [getattr(self, method_name)(*args, **kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Return False, once per asked episode."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[None]:
        """Return no images."""
        return [None] * self.num_envs
