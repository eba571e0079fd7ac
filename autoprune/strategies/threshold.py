"""Prune by one importance threshold over the channels of all units (network slimming)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.strategies._base import Evaluate, SearchTask, Strategy, lowest_level
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Space


class ThresholdStrategy(Strategy):
    """Keeps the channels above one importance threshold (Liu et al., "Network Slimming", ICCV 2017, section 3).

    The threshold is the lowest with which the budget holds; what rounding left is given back. One proposal. The scores
    are compared across units as they come: most criteria divide each tensor's by their mean
    (``Importance.normalised``), so that a unit loses many channels where a few of them stand out, not where its weights
    are small.

    Args:
        constraint: the limits.
        importance: per group of the graph the score of each of its channels, shape (size,), higher is more important;
            what ``Importance.__call__`` returns.
    """

    def __init__(self, constraint: Constraint, importance: Sequence[Array]) -> None:
        self._constraint = constraint
        self._importance = unit_scores(constraint.space, importance)

    @classmethod
    def of(cls, task: SearchTask) -> ThresholdStrategy:
        """Make it for a task."""
        return cls(task.constraint, task.importance)

    def run(self, evaluate: Evaluate) -> None:
        """Propose what stays above the threshold."""
        space = self._constraint.space
        thresholds = np.unique(np.concatenate([[-np.inf], *self._importance]))

        def above(level: int) -> Counts:
            return np.array(
                [np.count_nonzero(scores > thresholds[level]) for scores in self._importance], dtype=np.int64
            )

        def rounded(level: int) -> Counts:
            return space.round_down(above(level) / space.dense)

        # The last level keeps no channel, which rounds to the lower bounds, and those hold.
        level = lowest_level(self._constraint, len(thresholds), rounded)
        log_ratios = np.log(np.maximum(above(level), 0.5) / space.dense)
        evaluate([space.allocation(self._constraint.greedy_fill(rounded(level), log_ratios))])


def unit_scores(space: Space, importance: Sequence[Array]) -> list[Array]:
    """Return per unit the scores of its channels, descending, shape (width,).

    The groups of a unit keep equal shares, each its own best channels: what is kept with one more channel is the mean
    of the groups' scores of that rank. A narrower group gives each of its ranks to several.
    """

    def ranked(group: int, width: int) -> Array:
        scores = np.sort(np.asarray(importance[group], dtype=np.float64))[::-1]
        return scores[np.arange(width) * len(scores) // width]

    return [np.mean([ranked(group, unit.width) for group in unit.groups], axis=0) for unit in space.units]
