"""Monitor an agent: widen its exploration when candidates repeat, and write event files for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure

from autoprune.strategies._base import Score
from autoprune.structure.space import Allocation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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


class Telemetry:
    """Writes what happened at every evaluation below ``search/``, and the agent's own figures below ``agent/``.

    Args:
        folder: where event files go; nothing is written without one.

    Attributes:
        costs: returns an allocation's costs by metric.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.costs: Callable[[Allocation], Mapping[str, float]] = lambda allocation: {}
        self._writer: SummaryWriter | None = None
        self._done = 0
        self._best = float("-inf")

    def evaluation(self, allocation: Allocation, score: float, *, noise: float) -> None:
        """Note one evaluation."""
        self._done += 1
        self._best = max(self._best, score)
        if self._folder is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        scalars = {"reward": score, "best": self._best, "noise": noise}
        scalars |= {f"cost/{metric}": value for metric, value in self.costs(allocation).items()}
        for name, value in scalars.items():
            self._writer.add_scalar(f"search/{name}", value, self._done)

    def agent_logger(self) -> Logger:
        """Return a logger for stable-baselines3: its figures by time step, in a folder of their own."""
        if self._folder is None:
            return Logger(None, [])
        return configure(str(self._folder / "agent"), ["tensorboard"])

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()
