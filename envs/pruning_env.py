"""``autoprune/ChannelPruning-v0``: one step per unit, the score as reward at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from autoprune.arrays import Array, Counts
from autoprune.envs.observations import Observer
from autoprune.envs.problem import PruningProblem
from autoprune.envs.rules import RULES, Projected, Rule
from autoprune.errors import ConfigError
from autoprune.io.finite import check_finite
from autoprune.structure.space import Allocation

Row = npt.NDArray[np.float32]

RuleFactory = Callable[[PruningProblem], Rule]


class PruningEnv(gymnasium.Env[Row, Row]):
    """Walks the units of a network in order; each action decides how many channels one unit keeps.

    The reward is 0 until the last step, then the problem's score; a problem without one leaves it at 0, for agents that
    have the candidates of several environments scored together. ``info`` names the ``unit`` just decided and the
    ``executed_action``, which differs from the given one if the rule had to cap or round it; at the end also
    ``allocation``, ``costs`` and, if there is one, ``score``.

    Args:
        problem: what is searched.
        rule: how actions meet the budget: a name of ``autoprune.envs.rules.RULES`` or a class.
        render_mode: ``ansi`` or None.

    Attributes:
        observation_space: see ``autoprune.envs.observations``; its columns are ``columns``.
        action_space: one number; its meaning and bounds are the rule's.
        columns: the names of the state's columns.
        episode_steps: length of every episode: units with more than one choice.
        rule: how actions meet the budget.
        problem: what is searched: its space, constraint and scores.

    Raises:
        ConfigError: the problem is none, or there is no such rule or render mode.

    Example:
        >>> env = PruningEnv(problem, render_mode="ansi")  # of the example in `PruningProblem`
        >>> state, info = env.reset()
        >>> len(state) == len(env.columns), env.episode_steps
        (True, 2)
        >>> for action in (0.5, -0.5):
        ...     state, reward, ended, truncated, info = env.step(np.array([action], dtype=np.float32))
        >>> ended, info["allocation"]
        (True, (16, 12))
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self, problem: PruningProblem, *, rule: str | RuleFactory = Projected, render_mode: str | None = None
    ) -> None:
        if not isinstance(problem, PruningProblem):
            raise ConfigError(f"problem must be a PruningProblem, got {problem!r}; autoprune.make_env makes one")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode must be ansi or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.rule = _factory(rule)(problem)
        self.problem, self._observer = problem, Observer(problem)
        self.columns = self._observer.names
        self.episode_steps = len(problem.walked)
        self.observation_space = self._observer.box
        self.action_space = spaces.Box(self.rule.low, self.rule.high, shape=(1,), dtype=np.float32)
        self._begin()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Row, dict[str, Any]]:
        """Start a walk; return the first state, shape (columns,). Nothing in a walk is random."""
        super().reset(seed=seed)
        self._begin()
        return self._observe(), {}

    def step(self, action: Row) -> tuple[Row, float, bool, bool, dict[str, Any]]:
        """Decide one unit; return state, reward, whether the walk ended, False, info.

        Raises:
            ConfigError: the walk has ended, or the action is no finite number.
        """
        if self._finished():
            raise ConfigError(
                f"The episode ended after {self.episode_steps} steps, one per unit; call reset() to begin another"
            )
        unit, name = self.problem.walked[self._step], self._unit_name
        wanted = float(np.clip(self._number(action), self.rule.low, self.rule.high))
        count, executed = self.rule.decide(self._narrowest, unit, wanted)
        self._widest[unit] = self._narrowest[unit] = count
        self._executed[self._step] = executed
        self._step += 1
        info: dict[str, Any] = {"unit": name, "executed_action": np.array([executed], dtype=np.float32)}
        if not self._finished():
            return self._observe(), 0.0, False, False, info
        allocation = self._allocation()
        info |= {"allocation": allocation, "costs": self.costs(allocation)}
        if self.problem.score is None:
            return self._observe(), 0.0, True, False, info
        (score,) = self.problem.scores([allocation])
        return self._observe(), score, True, False, info | {"score": score}

    def render(self) -> str | None:
        """Return a line for each unit decided, e.g. ``conv3: 24 of 64``; None without a render mode.

        Under the rule ``projected`` the widths before the end are what the actions so far would give.
        """
        if self.render_mode != "ansi":
            return None
        units = self.problem.space.units
        counts = self._allocation() if self._finished() else self._widest
        decided = self.problem.walked[: self._step]
        return "\n".join(f"{units[unit].name}: {counts[unit]} of {units[unit].width}" for unit in decided)

    # -- for agents --------------------------------------------------------------------------------

    @property
    def prior_actions(self) -> Array:
        """The actions, shape (steps,), whose walk ends at the problem's prior."""
        return self.rule.prior_actions()

    def actions_for(self, allocation: Allocation) -> Array:
        """Return actions, shape (steps,), whose walk ends at an allocation or, under ``projected``, close to it."""
        return self.rule.actions_for(np.array(allocation, dtype=np.int64))

    def costs(self, allocation: Allocation) -> dict[str, float]:
        """Return the limited costs of an allocation, by metric."""
        return self.problem.constraint.costs(np.array(allocation, dtype=np.int64))

    # -- the walk ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        space = self.problem.space
        self._step = 0
        self._widest: Counts = space.dense.copy()
        self._narrowest: Counts = space.lower.copy()
        self._executed: Array = np.zeros(self.episode_steps)

    def _finished(self) -> bool:
        return self._step == self.episode_steps

    @property
    def _unit_name(self) -> str:
        return self.problem.space.units[self.problem.walked[self._step]].name

    def _allocation(self) -> Allocation:
        return self.problem.space.allocation(self.rule.finish(self._widest, self._executed))

    def _observe(self) -> Row:
        low, high = self.rule.low, self.rule.high
        last = float(self._executed[self._step - 1]) if self._step else low
        return self._observer.observe(
            self._step, widest=self._widest, narrowest=self._narrowest, last=(last - low) / (high - low)
        )

    def _number(self, action: npt.ArrayLike) -> float:
        try:
            number = float(np.asarray(action, dtype=np.float64).reshape(()))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"A step takes one number, got {action!r}") from error
        check_finite(
            [number],
            lambda _: f"The action for {self._unit_name} (step {self._step + 1} of {self.episode_steps})",
            way_out=f"actions lie in [{self.rule.low:g}, {self.rule.high:g}]; an agent without such an action has "
            "diverged, and needs a lower learning rate",
        )
        return number


def _factory(rule: str | RuleFactory) -> RuleFactory:
    """Return what makes a rule, which may be given by its name.

    Raises:
        ConfigError: no rule has that name.
    """
    found = RULES.get(rule) if isinstance(rule, str) else rule
    if not callable(found):
        raise ConfigError(f"rule must be one of {', '.join(RULES)} or a class of autoprune.envs.rules, got {rule!r}")
    return found
