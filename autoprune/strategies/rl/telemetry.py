"""TensorBoard scalars of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stable_baselines3.common.logger import Logger, configure

from autoprune.structure.space import Allocation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Telemetry:
    """Writes what happened at every evaluation below ``search/``, and the agent's own figures below ``agent/``.

    Args:
        folder: where event files go; nothing is written without one.

    Attributes:
        costs: tells an allocation's costs by metric.
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
