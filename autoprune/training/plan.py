"""How and where a network is trained, and what a family of models has to know for that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.models._base import Batch
from autoprune.training.extensions._base import TrainingExtension
from autoprune.training.results import EpochReport, FinetuneResult

SHORT_EPOCHS, SHORT_SCALE = 10, 0.3
"""A training of fewer epochs than these starts at this share of the rate: it has no time to come back from a high one.

The bundled detector, searched to 75% of its latency, 3 epochs by AdamW (dense 0.788, pruned 0.776): 0.747 at the dense
rate, 0.783 at 0.3 and at 0.1 of it. Searched to 51% of its FLOPs at 160 px (dense 0.708, pruned 0.691), two seeds:
0.696 and 0.695 at 0.3 of it, by MuSGD 0.691 and 0.690 at 0.003, one seed 0.681 at 0.01. Steps alone do not
tell, in one run each: 5 epochs of yolo11n at 30% of its FLOPs are 190 steps, and have 0.527 at 0.3 of AdamW's rate,
0.509 by MuSGD at 0.01; 10 epochs of yolov5nu are 130 steps, 0.521 by AdamW and 0.541 by MuSGD.
"""

LONG_EPOCHS = 100
"""A training of this many epochs or more stops early by default."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a network is trained.

    Attributes:
        epochs: passes over the training split.
        batch: images per step.
        lr_scale: the first learning rate as a multiple of the recipe's.
        seed: of the order of images and the augmentations.
        changes: the family's own settings in place of its recipe's.
        recovers: whether a network that was just pruned is to be brought back, by the optimizer that does it best if
            the epochs suffice, or else one trains on as the dense network was trained.
    """

    epochs: int
    batch: int
    lr_scale: float
    seed: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    recovers: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """Where a training runs, and who takes part; the same for a fresh and a resumed one.

    Attributes:
        out: folder for its files.
        workers: processes that load images; None for the family's own choice.
        devices: several, each in a process of its own; empty for the adapter's device in this process.
        on_epoch: called after every epoch.
        extensions: what takes part.
    """

    out: Path
    workers: int | None = None
    devices: tuple[str, ...] = ()
    on_epoch: Callable[[EpochReport], None] | None = None
    extensions: tuple[TrainingExtension, ...] = ()


def is_long(epochs: int) -> bool:
    """Return whether a fine-tune has the time to come back from a high learning rate."""
    return epochs >= SHORT_EPOCHS


def short_scale(epochs: int) -> float:
    """Return the share of its learning rate that a fine-tune of a number of epochs starts at."""
    return 1.0 if is_long(epochs) else SHORT_SCALE


def default_patience(epochs: int) -> int:
    """Return after how many epochs without a better one a long fine-tune stops; 0 for never, below ``LONG_EPOCHS``.

    A quarter of the epochs, but at least half of ``LONG_EPOCHS``: much of the gain comes late, when the rate is low.
    """
    return max(LONG_EPOCHS // 2, epochs // 4) if epochs >= LONG_EPOCHS else 0


class Trainer(ABC):
    """Trains the networks of one adapter."""

    @abstractmethod
    def train(self, module: nn.Module, plan: Plan, context: TrainingContext) -> FinetuneResult:
        """Train a copy of a network.

        An epoch is noted with `keep_epoch` before the state is written that a resume goes on from: after a kill between
        the two it is trained and noted again, and none is missing.

        Raises:
            ConfigError: the family's training has no such setting, device or extension.
            TrainingError: the loss is not a number, or there is no data set.
            DeviceError: memory runs out.
            RunError: a file cannot be written.
        """

    @abstractmethod
    def resume(self, module: nn.Module, plan: Plan, context: TrainingContext) -> FinetuneResult:
        """Go on with an interrupted training from its last finished epoch; after its end, return its network.

        Where there is nothing to go on with, the training begins.

        Args:
            module: the network that it began with.
            plan: that of the interrupted training.
            context: that of the interrupted training.

        Raises:
            ModelError: the file that it is kept in is damaged.
            TrainingError: the file is of another network; else as for `train`.
        """

    @abstractmethod
    def optimizer(self, parameters: Iterable[nn.Parameter], *, batch: int, lr_scale: float) -> torch.optim.Optimizer:
        """Return the optimizer of the dense training at its first learning rate, for a few steps of one's own.

        Args:
            parameters: those to be trained.
            batch: images per step.
            lr_scale: learning rate as a share of the dense training's.
        """

    @abstractmethod
    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the scalar that a step of the training descends; ``module`` is in train mode."""
