"""Monitor an agent: widen its exploration when candidates repeat, and hand on its own figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from autoprune.strategies._base import Score, Track
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


class _Figures(KVWriter):
    """Hands on what stable-baselines3 logs.

    Args:
        track: takes the figures.
    """

    def __init__(self, track: Track) -> None:
        self._track = track

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Hand on all numbers."""
        self._track({name: float(value) for name, value in key_values.items() if isinstance(value, int | float)})

    def close(self) -> None:
        """There is nothing to close."""


def agent_logger(track: Track) -> Logger:
    """Return a logger of stable-baselines3 that hands an agent's own figures to ``track``."""
    return Logger(None, [_Figures(track)])


def spread_of(model: BaseAlgorithm) -> float | None:
    """Return the mean standard deviation that a policy draws its actions with; None if it is not random itself."""
    log_std = getattr(model.policy, "log_std", None)
    return float(log_std.detach().exp().mean()) if isinstance(log_std, torch.Tensor) else None
