"""The walk over the units that both environments share: N episodes in lockstep, one unit a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from autoprune.space import Allocation
from envs.observations import Observer
from envs.problem import Array, PruningProblem
from envs.rules import Rule

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
    """

    def __init__(self, problem: PruningProblem, rule: RuleFactory, episodes: int) -> None:
        self.problem = problem
        self.rule = rule(problem)
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
            actions: shape (episodes,); clipped to the rule's box.

        Returns:
            The next state, shape (episodes, columns), and the executed actions, shape (episodes,).
        """
        unit = self.problem.walked[self.step]
        wanted = np.clip(np.asarray(actions, dtype=np.float64), self.rule.low, self.rule.high)
        counts, executed = self.rule.decide(self._narrowest, unit, wanted)
        self._widest[:, unit] = self._narrowest[:, unit] = counts
        self._executed[:, self.step] = executed
        self.step += 1
        return self._observe(), executed

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

    def _observe(self) -> npt.NDArray[np.float32]:
        rule = self.rule
        last = self._executed[:, self.step - 1] if self.step else np.full(self.episodes, rule.low)
        return self.observer.observe(
            self.step,
            widest=self._widest,
            narrowest=self._narrowest,
            last=(last - rule.low) / (rule.high - rule.low),
        )
