"""Fine-tuning a pruned network, however its family trains (`trainers` has one file for each way)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import ConfigError, TrainingError
from autoprune.models._base import Adapter
from autoprune.training.extension import TrainingExtension
from autoprune.training.results import EpochReport, FinetuneResult
from autoprune.training.trainers import trainer_of
from autoprune.training.trainers._base import Plan, Surroundings


def finetune(
    adapter: Adapter,
    module: nn.Module,
    *,
    epochs: int,
    out: Path,
    batch: int = 16,
    lr_scale: float = 0.1,
    seed: int = 0,
    workers: int | None = None,
    devices: Sequence[str] = (),
    on_epoch: Callable[[EpochReport], None] | None = None,
    changes: Mapping[str, Any] | None = None,
    extensions: Sequence[TrainingExtension] = (),
) -> FinetuneResult:
    """Train a pruned network on, with the dense network's settings at a fraction of its learning rate.

    Args:
        adapter: the dense network's adapter, with its data set.
        module: the pruned network; it is not changed.
        epochs: passes over the training split.
        out: folder for the training's files, such as ``weights/last.pt`` (resumable).
        batch: images per step.
        lr_scale: the first learning rate as a share of the dense network's first one.
        seed: of the weights' order of images and the augmentations.
        workers: processes that load images; by default what the family's training chooses.
        devices: where to train, each in a process of its own with its share of the batch, e.g. ``cuda:0`` and
            ``cuda:1``; by default on the adapter's device in this process. The processes' words go to
            ``processes.log`` in ``out``.
        on_epoch: called after every epoch.
        changes: settings in place of the recipe's. With ``patience`` above 0 the training stops after so many epochs
            without a better one, and the best epoch's weights are the result; they are kept as ``weights/best.pt``.
            What else there is depends on the family, Ultralytics' training arguments for its networks.
        extensions: what takes part in the training; not with ``devices``.

    Raises:
        ConfigError: ``epochs``, ``batch`` or ``lr_scale`` is out of its range, there are extensions and devices, or the
            family's training knows no such changes or extensions.
        TrainingError: the loss is not a number, or there is no data set.
        DeviceError: memory runs out.
        RunError: a file cannot be written.
    """
    if epochs < 1 or batch < 1:
        raise ConfigError(f"epochs and batch must be at least 1, got {epochs} and {batch}")
    if not 0 < lr_scale <= 10:
        raise ConfigError(f"the learning-rate scale must lie in (0, 10], got {lr_scale}")
    plan = Plan(epochs=epochs, batch=batch, lr_scale=lr_scale, seed=seed, changes=changes or {})
    surroundings = Surroundings(
        out=out, workers=workers, devices=tuple(devices), on_epoch=on_epoch, extensions=tuple(extensions)
    )
    return trainer_of(adapter).train(module, plan, surroundings)


def resume_finetune(
    adapter: Adapter,
    module: nn.Module,
    *,
    out: Path,
    workers: int | None = None,
    devices: Sequence[str] = (),
    on_epoch: Callable[[EpochReport], None] | None = None,
    extensions: Sequence[TrainingExtension] = (),
) -> FinetuneResult:
    """Go on with an interrupted `finetune` from its last finished epoch; after its end, return its network.

    The settings are those it was started with. Ultralytics' resume is not bit for bit an uninterrupted run (weights
    and optimizer pass through half precision), the plain loop's is.

    Args:
        adapter: as for `finetune`.
        module: as for `finetune`.
        out: the folder given to the interrupted run.
        workers: as for `finetune`.
        devices: as for `finetune`.
        on_epoch: called after every epoch that is left.
        extensions: those of the interrupted run.

    Raises:
        TrainingError: there is nothing to resume in ``out``, or as for `finetune`.
        ModelError: ``weights/last.pt`` is corrupt.
        RunError: a file cannot be written.
    """
    last = out / "weights" / "last.pt"
    if not last.is_file():
        raise TrainingError(f"there is no fine-tuning to resume: {last} does not exist")
    surroundings = Surroundings(
        out=out, workers=workers, devices=tuple(devices), on_epoch=on_epoch, extensions=tuple(extensions)
    )
    return trainer_of(adapter).resume(module, surroundings)
