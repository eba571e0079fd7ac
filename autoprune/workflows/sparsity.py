"""Sparsity training as a stage of a run: resumable, and done once."""

from __future__ import annotations

import difflib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from autoprune.arrays import Array
from autoprune.choices import PenaltyName
from autoprune.config import SparsityConfig
from autoprune.errors import ConfigError, RunError
from autoprune.listener import Listener
from autoprune.models._base import Adapter
from autoprune.training.extensions.penalties import Penalty, make_penalty
from autoprune.training.extensions.sparsity import NEAR_ZERO, Schedule, SparsityTraining, dead_units
from autoprune.training.extensions.sparsity_record import SparsityRecord
from autoprune.workflows.network import Network
from autoprune.workflows.tuning import Tuning, trained

SPARSE, RECORD = "sparse", "sparsity.json"
"""The trained network and what was seen of its scales, in the run folder."""

_NAMED = 3  # units that a warning names
_FEW = 0.05  # of the scales near zero: the training was too short, or the penalty too weak


@dataclass(frozen=True)
class SparsitySettings:
    """How a sparsity training goes.

    Attributes:
        penalty: what is made small.
        schedule: how strongly.
        epochs: passes over the training split.
        lr: first learning rate.
        batch: images per step.
        seed: of the training.
        watch: the layer whose scales are recorded within the epochs; None for the first one.
    """

    penalty: PenaltyName
    schedule: Schedule
    epochs: int
    lr: float
    batch: int
    seed: int
    watch: str | None = None

    @classmethod
    def of(cls, config: SparsityConfig, *, epochs: int, lr: float, batch: int, seed: int) -> SparsitySettings:
        """Return the settings of a command; the rest are the fields above."""
        schedule = Schedule(config.sparsity, config.sparsity_warmup, config.sparsity_decay)
        return cls(
            penalty=config.penalty, schedule=schedule, epochs=epochs, lr=lr, batch=batch, seed=seed, watch=config.watch
        )


@dataclass(frozen=True)
class Sparsity:
    """How sparse a network is, next to the dense one.

    Attributes:
        dense: the dense network's scales.
        sparse: those of the trained network.
        limit: what counts as zero.
        dead: units all of whose scales are near zero.
    """

    dense: Array
    sparse: Array
    limit: float
    dead: tuple[str, ...]

    def near_zero(self, scales: Array) -> float:
        """Return the share of scales near zero."""
        return float(np.mean(scales < self.limit))


def sparsify(
    network: Network, folder: Path, settings: SparsitySettings, listener: Listener
) -> tuple[nn.Module, Sparsity]:
    """Train a dense network with a penalty, or go on where an earlier process stopped.

    Writes ``sparse``, ``sparsity.json`` and TensorBoard events into the folder. A layer that dies on the way is
    reported at the end; pruning leaves every unit its minimum all the same.

    Args:
        network: the dense network, with data; it is not changed.
        folder: the run folder.
        settings: how.
        listener: hears the progress.

    Returns:
        The network as ``sparse`` holds it (float32, eval mode), and how sparse it is.

    Raises:
        ModelError: the penalty finds nothing in the network.
        ConfigError: there is no such layer to watch.
        TrainingError: the loss is not a number.
        RunError: a file cannot be written, or the record is damaged or of another training.
    """
    adapter, path = network.adapter, network.adapter.checkpoint(folder, SPARSE)
    penalty = make_penalty(settings.penalty, adapter.module, network.graph)
    dense = _scales(penalty, adapter.module)
    record = _record(penalty, settings, dense, folder / RECORD)
    if not path.exists():
        events = folder / "tensorboard"
        extension = SparsityTraining(penalty, settings.schedule, record, file=folder / RECORD, events=events)
        adapter.save(_train(adapter, folder / "sparsity", settings, extension=extension, listener=listener), path)
    module = adapter.reopen(path)
    scales = _scales(penalty, module)
    limit = NEAR_ZERO * float(dense.max())
    found = Sparsity(dense, scales, limit, dead_units(penalty, network.graph, scales, limit))
    _tell(found, settings, len(network.graph.units), listener)
    return module, found


def _scales(penalty: Penalty, module: nn.Module) -> Array:
    return penalty.scales(dict(module.named_parameters(remove_duplicate=False)))


def _record(penalty: Penalty, settings: SparsitySettings, dense: Array, path: Path) -> SparsityRecord:
    """Return what an earlier process recorded, or a new record."""
    watched = settings.watch if settings.watch is not None else next(iter(penalty.spans))
    if watched not in penalty.spans:
        known = list(penalty.spans)
        shown = difflib.get_close_matches(watched, known, n=3, cutoff=0.0)
        raise ConfigError(
            f"`watch` must name one of the {len(known)} layers that `penalty` {settings.penalty.value} makes small, "
            f"such as {', '.join(shown)}, got {watched}"
        )
    if not path.exists():
        return SparsityRecord.start(dense, penalty=settings.penalty.value, watched=watched)
    record = SparsityRecord.load(path)
    if (record.penalty, record.watched) != (settings.penalty.value, watched):
        raise RunError(f"{path} is of another training ({record.penalty}, {record.watched}); remove it to go on")
    return record


def _train(
    adapter: Adapter, out: Path, settings: SparsitySettings, *, extension: SparsityTraining, listener: Listener
) -> nn.Module:
    tuning = Tuning(epochs=settings.epochs, lr_scale=1.0, batch=settings.batch, seed=settings.seed)
    with closing(extension):
        return trained(
            adapter,
            adapter.module,
            out,
            label="Sparsity",
            tuning=tuning,
            listener=listener,
            changes={"optimizer": "SGD", "lr0": settings.lr},
            extensions=[extension],
        ).module


def _tell(found: Sparsity, settings: SparsitySettings, units: int, listener: Listener) -> None:
    """Say what a user should do otherwise next time, if anything."""
    strength = f"`sparsity` {settings.schedule.strength:g}"
    if found.dead:
        named = ", ".join(found.dead[:_NAMED]) + (", …" if len(found.dead) > _NAMED else "")
        listener.warn(
            f"Every channel has died in {len(found.dead)} of {units} units ({named}); pruning leaves each unit its "
            f"minimum all the same, and less than {strength} keeps them alive."
        )
    elif found.near_zero(found.sparse) < _FEW:
        listener.note(
            f"Only {found.near_zero(found.sparse):.1%} of the scales are near zero after epoch {settings.epochs}; more "
            f"than {strength}, more epochs of this training or a higher learning rate bring more of them there."
        )
