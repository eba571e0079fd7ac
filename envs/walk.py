"""The walk over the units that both environments share: N episodes in lockstep, one unit a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from autoprune.errors import ConfigError
from autoprune.io.finite import check_finite
from autoprune.structure.space import Allocation
from envs.observations import Observer
from envs.problem import Array, PruningProblem
from envs.rules import RULES, Rule

RuleFactory = Callable[[PruningProblem], Rule]


class Walk:
    """N episodes that decide the same unit at the same time.

    Attributes:
        problem: what is searched.
        rule: how actions meet the budget.
        observer: the state columns.
        episodes: N.
        steps: length of an episode: units with more than one choice.
        step: how many units are decided.

    Raises:
        ConfigError: the problem is none, no rule has that name, or there would be no episode.
    """

    def __init__(self, problem: PruningProblem, rule: str | RuleFactory, episodes: int) -> None:
        if not isinstance(problem, PruningProblem):
            raise ConfigError(f"problem must be an envs.problem.PruningProblem, got {problem!r}; make one of a network")
        if episodes < 1:
            raise ConfigError(f"An environment walks at least 1 episode, got {episodes}")
        self.problem = problem
        self.rule = _factory(rule)(problem)
        self.observer = Observer(problem)
        self.episodes = episodes
        self.steps = len(problem.walked)
        self.reset()

    @property
    def finished(self) -> bool:
        """Whether every unit is decided."""
        return self.step == self.steps

    def reset(self) -> npt.NDArray[np.float32]:
        """Start again; return the first state, shape (episodes, columns)."""
        space = self.problem.space
        self.step = 0
        self._widest = np.repeat(space.dense[None, :], self.episodes, axis=0)
        self._narrowest = np.repeat(space.lower[None, :], self.episodes, axis=0)
        self._executed = np.zeros((self.episodes, self.steps))
        return self._observe()

    def advance(self, actions: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[np.float32], Array]:
        """Decide the next unit in every episode.

        Args:
            actions: one number for each episode, any shape; clipped to the rule's box.

        Returns:
            The next state, shape (episodes, columns), and the executed actions, shape (episodes,).

        Raises:
            ConfigError: every unit is decided, or an action is missing, no number, NaN or infinite.
        """
        if self.finished:
            raise ConfigError(
                f"The episode ended after {self.steps} steps, one per unit; call reset() to begin another"
            )
        unit = self.problem.walked[self.step]
        wanted = np.clip(self._numbers(actions), self.rule.low, self.rule.high)
        counts, executed = self.rule.decide(self._narrowest, unit, wanted)
        self._widest[:, unit] = self._narrowest[:, unit] = counts
        self._executed[:, self.step] = executed
        self.step += 1
        return self._observe(), executed

    @property
    def unit(self) -> str:
        """The name of the unit that the next step decides; of the last one after the end."""
        return self.problem.space.units[self.problem.walked[min(self.step, self.steps - 1)]].name

    def decided(self, episode: int) -> list[str]:
        """Return a line for each unit decided: its name, and how many of its channels the episode keeps."""
        units = self.problem.space.units
        counts = self.allocations()[episode] if self.finished else self._widest[episode]
        return [
            f"{units[unit].name}: {counts[unit]} of {units[unit].width}" for unit in self.problem.walked[: self.step]
        ]

    def allocations(self) -> list[Allocation]:
        """Return the allocation of every finished episode; each holds the constraint."""
        space = self.problem.space
        return [
            space.allocation(self.rule.finish(counts, executed))
            for counts, executed in zip(self._widest, self._executed, strict=True)
        ]

    def describe(self, allocation: Allocation, score: float) -> dict[str, Any]:
        """Return what the last step tells about an episode, for ``info``."""
        costs = self.problem.constraint.costs(np.array(allocation, dtype=np.int64))
        return {"allocation": allocation, "score": score, "costs": costs}

    def _numbers(self, actions: npt.ArrayLike) -> Array:
        """Return actions as finite numbers, shape (episodes,)."""
        try:
            numbers = np.asarray(actions, dtype=np.float64).reshape(self.episodes)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"A step takes one number for each episode, {self.episodes} in all, got {actions!r}"
            ) from error
        check_finite(
            numbers,
            lambda episode: f"The action for {self.unit} (step {self.step + 1} of {self.steps}, episode {episode + 1})",
            way_out=f"actions lie in [{self.rule.low:g}, {self.rule.high:g}]; an agent without such an action has "
            "diverged, and needs a lower learning rate",
        )
        return numbers

    def _observe(self) -> npt.NDArray[np.float32]:
        rule = self.rule
        last = self._executed[:, self.step - 1] if self.step else np.full(self.episodes, rule.low)
        return self.observer.observe(
            self.step,
            widest=self._widest,
            narrowest=self._narrowest,
            last=(last - rule.low) / (rule.high - rule.low),
        )


def _factory(rule: str | RuleFactory) -> RuleFactory:
    """Return what makes a rule, which may be told by its name.

    Raises:
        ConfigError: no rule has that name.
    """
    found = RULES.get(rule) if isinstance(rule, str) else rule
    if not callable(found):
        raise ConfigError(f"rule must be one of {', '.join(RULES)} or a class of envs.rules, got {rule!r}")
    return found
