"""What was seen of the scales during a sparsity training, in a file that a resumed training goes on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from autoprune.arrays import Array
from autoprune.errors import RunError
from autoprune.io.files import saying_why, write_atomic
from autoprune.io.records import read_record

SCHEMA_VERSION = 1

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Quintiles: so much of the scales is no larger; the last is the maximum."""

BINS = 50
"""Of the histograms; the last one holds what is beyond it, too."""

_HEADROOM = 1.1  # the histograms reach this far beyond the largest scale of the dense network


@dataclass(frozen=True)
class EpochScales:
    """All scales after one epoch.

    Attributes:
        epoch: its number, from 1; 0 is the dense network.
        quintiles: one per share of ``SHARES``.
        counts: scales in each bin of the record.
    """

    epoch: int
    quintiles: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class WatchedScales:
    """The scales of the watched layer at one iteration.

    Attributes:
        epoch: the epoch that the iteration belongs to, from 1.
        iteration: its number over all epochs, from 0.
        scales: one per channel.
    """

    epoch: int
    iteration: int
    scales: tuple[float, ...]


@dataclass
class SparsityRecord:
    """How scales changed in a sparsity training.

    Attributes:
        schema_version: of the file's entries.
        penalty: what made them small, by its name.
        watched: the layer whose scales are looked at within the epochs.
        edges: of the histograms' bins, ascending.
        epochs: all scales after each epoch, the dense network's first.
        iterations: the watched layer's.
    """

    schema_version: int
    penalty: str
    watched: str
    edges: tuple[float, ...]
    epochs: list[EpochScales] = field(default_factory=list)
    iterations: list[WatchedScales] = field(default_factory=list)

    @classmethod
    def start(cls, scales: Array, *, penalty: str, watched: str) -> SparsityRecord:
        """Return a record that begins with the dense network's scales."""
        highest = _HEADROOM * float(scales.max()) or 1.0
        record = cls(SCHEMA_VERSION, penalty, watched, _rounded(np.linspace(0.0, highest, BINS + 1)))
        record.add_epoch(0, scales)
        return record

    def add_epoch(self, epoch: int, scales: Array) -> None:
        """Note all scales after an epoch."""
        edges = np.asarray(self.edges)
        counts, _ = np.histogram(np.clip(scales, edges[0], edges[-1]), bins=edges)
        self.epochs.append(EpochScales(epoch, _rounded(np.quantile(scales, SHARES)), tuple(counts.tolist())))

    def add_iteration(self, epoch: int, iteration: int, scales: Array) -> None:
        """Note the watched layer's scales."""
        self.iterations.append(WatchedScales(epoch, iteration, _rounded(scales)))

    def cut(self, epoch: int) -> None:
        """Forget what came after an epoch: it is trained again."""
        self.epochs = [seen for seen in self.epochs if seen.epoch <= epoch]
        self.iterations = [seen for seen in self.iterations if seen.epoch <= epoch]

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all.

        Raises:
            RunError: the file cannot be written.
        """
        write_atomic(path, json.dumps(asdict(self), allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> SparsityRecord:
        """Read a record.

        Raises:
            RunError: the file cannot be read, or is none.
        """
        try:
            with saying_why(path, "read"):
                text = path.read_text(encoding="utf-8")
            return read_record(text, cls, "the record", version=SCHEMA_VERSION)
        except ValueError as error:
            raise RunError(
                f"{path} is no record of a sparsity training ({error}); remove it, and the training goes on without "
                "what it says of earlier epochs"
            ) from error


def _rounded(values: Array | Sequence[float]) -> tuple[float, ...]:
    """Return numbers to four digits: a file that is written after every epoch should be short."""
    return tuple(float(f"{value:.4g}") for value in values)
