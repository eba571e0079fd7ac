"""``autoprune/ChannelPruning-v0``: one step per unit, the score as reward at the end."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from autoprune.errors import ConfigError
from envs.problem import PruningProblem
from envs.rules import Projected
from envs.walk import RuleFactory, Walk

Row = npt.NDArray[np.float32]


class PruningEnv(gymnasium.Env[Row, Row]):
    """Walks the units of a network in order; each action decides how many channels one unit keeps.

    The reward is 0 until the last step, then the problem's score. ``info`` names the ``unit`` just decided and the
    ``executed_action``, which differs from the given one where the rule had to cap or round it; at the end also
    ``allocation``, ``score`` and ``costs``.

    Args:
        problem: what is searched.
        rule: how actions meet the budget: a name of ``envs.rules.RULES`` or a class.
        render_mode: ``ansi`` or None.

    Attributes:
        observation_space: see ``envs.observations``; its columns are ``columns``.
        action_space: one number; its meaning and bounds are the rule's.

    Raises:
        ConfigError: the problem is none, or there is no such rule or render mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self, problem: PruningProblem, *, rule: str | RuleFactory = Projected, render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode must be ansi or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.walk = Walk(problem, rule, episodes=1)
        self.columns = self.walk.observer.names
        self.observation_space = self.walk.observer.box
        self.action_space = spaces.Box(self.walk.rule.low, self.walk.rule.high, shape=(1,), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Row, dict[str, Any]]:
        """Start a walk; return the first state, shape (columns,). Nothing in a walk is random."""
        super().reset(seed=seed)
        return self.walk.reset()[0], {}

    def step(self, action: Row) -> tuple[Row, float, bool, bool, dict[str, Any]]:
        """Decide one unit; return state, reward, whether the walk ended, False, info.

        Raises:
            ConfigError: the walk has ended, or the action is no finite number.
        """
        walk = self.walk
        unit = walk.unit
        states, executed = walk.advance(action)
        info: dict[str, Any] = {"unit": unit, "executed_action": executed.astype(np.float32)}
        if not walk.finished:
            return states[0], 0.0, False, False, info
        allocations = walk.allocations()
        (score,) = walk.problem.scores(allocations)
        return states[0], score, True, False, info | walk.describe(allocations[0], score)

    def render(self) -> str | None:
        """Return a line for each unit decided, e.g. ``conv3: 24 of 64``; None without a render mode.

        Under the rule ``projected`` the widths before the end are what the actions so far would give.
        """
        return "\n".join(self.walk.decided(0)) if self.render_mode == "ansi" else None
