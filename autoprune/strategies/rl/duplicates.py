"""An agent that tries what it has tried already looks further away.

Around a strong prior most units are at a bound of theirs, where the next width is far away: then small deviations are
all rounded to the same few candidates, and an agent that hears the same scores again learns nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from autoprune.strategies._base import Score
from autoprune.structure.space import Allocation

LEAST_NEW = 0.5
"""Share of a rollout's candidates that should be new."""

GROWTH = math.log(1.5)
"""What is added to the logarithm of the standard deviation after a rollout that brought less."""


class DuplicateMonitor:
    """Hands candidates on to be scored, and knows which were tried before.

    Args:
        score: scores them.

    Attributes:
        share: how many of the last ones were new, in [0, 1].
    """

    def __init__(self, score: Score) -> None:
        self._score = score
        self._tried: set[Allocation] = set()
        self.share = 1.0

    def __call__(self, allocations: Sequence[Allocation]) -> Sequence[float]:
        """Return the scores, in order."""
        new = set(allocations) - self._tried
        self.share = len(new) / len(allocations)
        self._tried |= new
        return self._score(allocations)


class StdGrowth(BaseCallback):
    """Lets PPO deviate further once a rollout brought little that is new.

    Args:
        novelty: knows what the last rollout brought.
    """

    def __init__(self, novelty: DuplicateMonitor) -> None:
        super().__init__()
        self._novelty = novelty

    def _on_rollout_start(self) -> None:  # after the update, which needs the deviations that were drawn with
        if self._novelty.share < LEAST_NEW:
            policy: Any = self.model.policy
            with torch.no_grad():
                policy.log_std.add_(GROWTH).clamp_(max=0.0)

    def _on_step(self) -> bool:
        return True
