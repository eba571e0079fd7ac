"""What a fine-tune tells and gives: a report per epoch, and the network at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from autoprune.io.files import read_bytes, write_atomic
from autoprune.models._base import Adapter
from autoprune.results import Metrics
from autoprune.statistics.layers import recalibrate

CALIBRATION_IMAGES = 256
"""Images that batch norm is recalibrated on after the last epoch."""


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of fine-tuning brought.

    Attributes:
        epoch: its number, from 1.
        epochs: how many there will be, unless the training stops early.
        losses: mean of each term of the training loss.
        accuracy: of the averaged weights on the validation split; None if it was not measured.
    """

    epoch: int
    epochs: int
    losses: Mapping[str, float]
    accuracy: Metrics | None

    def figures(self, series: str, metric_names: Sequence[str]) -> dict[str, float]:
        """Return its figures as curves name them.

        Example:
            >>> EpochReport(1, 20, {"box": 0.5}, Metrics({"mAP50-95": 0.4})).figures("finetune", ["mAP50-95"])
            {'finetune/loss/box': 0.5, 'finetune/mAP50-95': 0.4}
        """
        figures = {f"{series}/loss/{name}": value for name, value in self.losses.items()}
        if self.accuracy is not None:
            figures |= {f"{series}/{name}": self.accuracy[name] for name in metric_names}
        return figures


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned network.

    Attributes:
        module: the weights after the last epoch, or after the best one if the training may stop early, of Ultralytics'
            networks their exponential moving average; batch norm recalibrated on training images; float32, eval mode.
        epochs: how many epochs it was trained in all, interrupted ones included.
        batch: images per step; less than asked if memory ran out.
        losses: mean of each term of the training loss in the last epoch.
    """

    module: nn.Module
    epochs: int
    batch: int
    losses: Mapping[str, float]


EPOCHS = "epochs.json"
"""In the folder of a training: what every epoch brought."""


def keep_epoch(report: EpochReport, folder: Path) -> None:
    """Add an epoch to those in a training's folder; one that is trained once more takes its former place.

    Raises:
        RunError: the file cannot be written.
    """
    kept = [one for one in read_epochs(folder) if one.epoch < report.epoch]
    values = [{**vars(one), "accuracy": one.accuracy and one.accuracy.to_json()} for one in (*kept, report)]
    write_atomic(folder / EPOCHS, json.dumps(values) + "\n")


def read_epochs(folder: Path) -> list[EpochReport]:
    """Return what the epochs of a training in a folder brought, in order; empty if nothing was noted, or legibly."""
    try:
        found = json.loads(read_bytes(folder / EPOCHS))
        return [
            EpochReport(**{**one, "accuracy": one["accuracy"] and Metrics.from_json(one["accuracy"])}) for one in found
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return []  # it only draws a curve


def rise_at_end(accuracies: Sequence[float]) -> float | None:
    """Return how much higher the accuracy was in the last quarter of the epochs than in the one before.

    None if it was not: if the difference of the two means is below twice its standard error, or there are fewer
    than eight epochs.

    Args:
        accuracies: one per epoch.
    """
    size = len(accuracies) // 4
    if size < 2:
        return None
    before, last = np.array(accuracies[-2 * size : -size]), np.array(accuracies[-size:])
    rise = float(last.mean() - before.mean())
    error = float(np.sqrt((last.var(ddof=1) + before.var(ddof=1)) / size))
    return rise if rise > 2 * error else None


def recalibrated(module: nn.Module, adapter: Adapter, batch: int) -> nn.Module:
    """Give a network, in place, the batch norm statistics of its own weights, and return it.

    Trainings forget only a few percent of the statistics per step, so that after a few dozen steps they are those of
    weights long gone: after 6 epochs of 13 steps of Ultralytics' training recalibration brought mAP50-95 from 0.441 to
    0.467. If the learning rate had long been low it changed at most 0.004.
    """
    recalibrate(module, adapter.calibration(images=CALIBRATION_IMAGES, batch=batch, seed=0))
    return module
