"""``autoprune/ChannelPruning-v0``: one step per unit, the score as reward at the end."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs.problem import PruningProblem
from envs.rules import Projected
from envs.walk import RuleFactory, Walk

Row = npt.NDArray[np.float32]


class PruningEnv(gymnasium.Env[Row, Row]):
    """Walks the units of a network in order; each action decides how many channels one unit keeps.

    The reward is 0 until the last step, then the problem's score. ``info`` names the ``unit`` just decided and the
    ``executed_action``, which differs from the given one where the rule had to cap or round it; at the end also
    ``allocation``, ``score`` and ``costs``.

    Attributes:
        observation_space: see ``envs.observations``; its columns are ``columns``.
        action_space: one number; its meaning and bounds are the rule's.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, problem: PruningProblem, *, rule: RuleFactory = Projected) -> None:
        self.walk = Walk(problem, rule, episodes=1)
        self.columns = self.walk.observer.names
        self.observation_space = self.walk.observer.box
        self.action_space = spaces.Box(self.walk.rule.low, self.walk.rule.high, shape=(1,), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Row, dict[str, Any]]:
        """Start a walk; return the first state, shape (columns,). Nothing in a walk is random."""
        super().reset(seed=seed)
        return self.walk.reset()[0], {}

    def step(self, action: Row) -> tuple[Row, float, bool, bool, dict[str, Any]]:
        """Decide one unit; return state, reward, whether the walk ended, False, info."""
        walk = self.walk
        unit = walk.problem.space.units[walk.problem.walked[walk.step]].name
        states, executed = walk.advance(np.asarray(action).reshape(1))
        info: dict[str, Any] = {"unit": unit, "executed_action": executed.astype(np.float32)}
        if not walk.finished:
            return states[0], 0.0, False, False, info
        allocations = walk.allocations()
        score = float(walk.problem.score(allocations)[0])
        return states[0], score, True, False, info | walk.describe(allocations[0], score)
