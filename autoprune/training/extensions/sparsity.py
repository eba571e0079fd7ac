"""Sparsity training (network slimming): a penalty makes channels small while the network learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoprune.arrays import Array
from autoprune.structure.graph import ChannelGraph
from autoprune.training.extensions._base import Event, Training, TrainingExtension
from autoprune.training.extensions.penalties import Parameters, Penalty
from autoprune.training.extensions.sparsity_record import SHARES, SparsityRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NEAR_ZERO = 0.01
"""A scale counts as zero below this share of the largest one of the dense network."""

WATCHED_MOMENTS = 1000
"""At most about this number of iterations of the watched layer is kept: every one of a short training."""


@dataclass(frozen=True)
class Schedule:
    """How strong the penalty is over the training.

    It rises linearly from 0 over the first share of the training, then falls by a cosine (the shape of Loshchilov and
    Hutter, "SGDR", ICLR 2017, equation 5) to a share of its full strength.

    Attributes:
        strength: s, the full strength.
        warmup: share of the training in which it rises, in [0, 1).
        decay: share of the full strength at the end, in [0, 1]; with 1 it stays constant.
    """

    strength: float
    warmup: float = 0.0
    decay: float = 1.0

    def at(self, progress: float) -> float:
        """Return the strength at a progress in [0, 1]."""
        if progress < self.warmup:
            return self.strength * progress / self.warmup
        angle = math.pi * (progress - self.warmup) / (1 - self.warmup)
        return self.strength * (self.decay + (1 - self.decay) * (1 + math.cos(angle)) / 2)


class SparsityTraining(TrainingExtension):
    """Adds a penalty's subgradient to every step, and records the scales.

    It is added after gradients are clipped, so that clipping does not weaken it. The optimizer must take it as it is:
    SGD does; Adam divides by the gradient's own size and would make every strength the same. With momentum m, N steps
    of mean rate η take at most N·η·s / (1 − m) off a scale: what is to reach 0 needs that many steps, or that strength.
    Once there it goes to and fro by about η·s.

    Close it after the training.

    Args:
        penalty: what is made small.
        schedule: how strongly.
        record: goes on with what it holds; epochs that are trained again replace theirs.
        file: where the record is written, after every epoch.
        events: folder of TensorBoard events.
    """

    def __init__(
        self, penalty: Penalty, schedule: Schedule, record: SparsityRecord, *, file: Path, events: Path
    ) -> None:
        self._penalty, self._schedule, self._record = penalty, schedule, record
        self._file, self._events = file, events
        self._watched = penalty.spans[record.watched]
        self._writer: SummaryWriter | None = None
        self._parameters: Parameters = {}
        self._batch = -1

    def attach(self, training: Training) -> None:
        """Listen to steps and epochs."""
        training.listen(Event.START, self._bind)
        training.listen(Event.EPOCH_START, self._begin_epoch)
        training.listen(Event.BATCH_START, self._begin_batch)
        training.listen(Event.GRADIENTS, self._pull)
        training.listen(Event.BATCH_END, self._look)
        training.listen(Event.EPOCH_END, self._end_epoch)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _bind(self, training: Training) -> None:
        """Find the parameters of the network that is really trained: a copy, or what a checkpoint holds."""
        self._parameters = dict(training.model.named_parameters(remove_duplicate=False))

    def _begin_epoch(self, training: Training) -> None:
        self._record.cut(training.epoch)
        self._batch = -1

    def _begin_batch(self, _: Training) -> None:
        self._batch += 1

    def _pull(self, training: Training) -> None:
        progress = (training.epoch + self._batch / training.batches) / training.epochs
        self._penalty.pull(self._parameters, self._schedule.at(progress))

    def _look(self, training: Training) -> None:
        batches = training.batches
        iteration = training.epoch * batches + self._batch
        if iteration % math.ceil(training.epochs * batches / WATCHED_MOMENTS):
            return
        scales = self._penalty.scales(self._parameters)[self._watched]
        if np.isfinite(scales).all():
            self._record.add_iteration(training.epoch + 1, iteration, scales)
            self._board().add_histogram(f"sparsity/{self._record.watched}", scales, iteration)

    def _end_epoch(self, training: Training) -> None:
        scales = self._penalty.scales(self._parameters)
        if not np.isfinite(scales).all():
            return  # the fine-tune is about to stop for its loss
        epoch = training.epoch + 1
        self._record.add_epoch(epoch, scales)
        self._record.save(self._file)
        board = self._board()
        for share, value in zip(SHARES, np.quantile(scales, SHARES), strict=True):
            board.add_scalar(f"sparsity/quantile_{100 * share:.0f}", value, epoch)
        board.add_histogram("sparsity/scales", scales, epoch)
        board.flush()

    def _board(self) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._events))
        return self._writer


def dead_units(penalty: Penalty, graph: ChannelGraph, scales: Array, limit: float) -> tuple[str, ...]:
    """Return the units all of whose scales are below a limit: layers that sparsity has switched off.

    Args:
        penalty: whose scales they are.
        graph: the channel groups.
        scales: shape (scales,).
        limit: what counts as zero.
    """
    largest = np.full(graph.channels, -np.inf)  # of a channel without a scale nothing is known
    np.maximum.at(largest, penalty.channels, scales)
    dead = []
    for unit in graph.units:
        groups = [graph.groups[index] for index in unit.groups]
        most = max(float(largest[group.span].max()) for group in groups)
        if 0 <= most < limit:
            dead.append(unit.name)
    return tuple(dead)
