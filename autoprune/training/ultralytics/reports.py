"""The reports of Ultralytics' training: from the trainer in this process, and from the file that others write."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.io.files import write_atomic
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.results import Metrics
from autoprune.training.results import EpochReport


def report_of(trainer: Any, adapter: UltralyticsAdapter) -> EpochReport:
    """Return the report of the epoch that a trainer has just finished."""
    losses = {name: float(value) for name, value in trainer.tloss.items()}
    return EpochReport(trainer.epoch + 1, trainer.epochs, losses, _accuracy(trainer.metrics or {}, adapter))


def reports_in(path: Path, adapter: UltralyticsAdapter, *, epochs: int) -> Sequence[EpochReport]:
    """Return the reports in a ``results.csv`` that a training process writes; a line not yet complete is left out.

    Args:
        path: the file, which need not exist yet.
        adapter: of the network in training.
        epochs: how many there will be.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    return [
        EpochReport(
            epoch=int(row["epoch"]),
            epochs=epochs,
            losses={name.removeprefix("train/"): float(row[name]) for name in row if name.startswith("train/")},
            accuracy=_accuracy({name: float(value) for name, value in row.items()}, adapter),
        )
        for row in rows
    ]


def cut_reports(path: Path, *, epochs: int) -> None:
    """Leave only the first epochs in a ``results.csv``: the others are trained again.

    Raises:
        RunError: the file cannot be written.
    """
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        write_atomic(path, "".join(lines[: 1 + epochs]))


def _accuracy(metrics: Mapping[str, float], adapter: UltralyticsAdapter) -> Metrics | None:
    keys = adapter.task.metric.keys
    measured = all(key in metrics for key in keys.values())
    return Metrics({name: metrics[key] for name, key in keys.items()}) if measured else None
