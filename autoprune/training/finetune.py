"""Fine-tuning a pruned network, however its family trains (`registry` has one line for each way)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.choices import MOST_LR_SCALE
from autoprune.errors import ConfigError
from autoprune.models._base import Adapter
from autoprune.training.extensions._base import TrainingExtension
from autoprune.training.plan import Plan, TrainingContext
from autoprune.training.registry import trainer_of
from autoprune.training.results import EpochReport, FinetuneResult


def finetune(
    adapter: Adapter,
    module: nn.Module,
    *,
    epochs: int,
    out: Path,
    batch: int = 16,
    lr_scale: float = 1.0,
    seed: int = 0,
    workers: int | None = None,
    devices: Sequence[str] = (),
    on_epoch: Callable[[EpochReport], None] | None = None,
    changes: Mapping[str, Any] | None = None,
    extensions: Sequence[TrainingExtension] = (),
    recovers: bool = False,
    resume: bool = False,
) -> FinetuneResult:
    """Train a network on, with the dense network's settings.

    A call that was interrupted, by a kill too, is repeated with ``resume``. On a CPU it then ends with the network that
    it would have ended with, bit for bit; on GPUs the images, their order and augmentations are the same, and so are
    the numbers but for what CUDA's kernels add in an order of their own.

    Args:
        adapter: the dense network's adapter, with its data set.
        module: the network, pruned or dense; it is not changed.
        epochs: passes over the training split.
        out: folder for the training's files.
        batch: images per step.
        lr_scale: the first learning rate as a multiple of the recipe's.
        seed: of the weights' order of images and the augmentations.
        workers: processes that load images; by default what the family's training chooses.
        devices: where to train, each in a process of its own with its share of the batch, e.g. ``cuda:0`` and
            ``cuda:1``; by default on the adapter's device in this process. The processes' words go to
            ``processes.log`` in ``out``.
        on_epoch: called after every epoch.
        changes: settings in place of the recipe's. With ``patience`` above 0 the training stops after that many epochs
            without a better one, and the best epoch's weights are the result; they are kept as ``weights/best.pt``.
            What else there is depends on the family, Ultralytics' training arguments for its networks.
        extensions: what takes part in the training; not with ``devices``.
        recovers: use the optimizer and learning rate that bring pruned networks back best, in place of those of the
            dense training; for families that have one.
        resume: go on with what an interrupted call with the same arguments has left in ``out``, if anything.

    Raises:
        ConfigError: ``epochs``, ``batch`` or ``lr_scale`` is out of its range, there are extensions and devices, or the
            family's training knows no such changes or extensions.
        TrainingError: the loss is not a number, there is no data set, or ``out`` has the training of another network.
        ModelError: the file to go on from is damaged.
        DeviceError: memory runs out.
        RunError: a file cannot be written.
    """
    if epochs < 1 or batch < 1:
        raise ConfigError(f"epochs and batch must be at least 1, got {epochs} and {batch}")
    if not 0 < lr_scale <= MOST_LR_SCALE:
        raise ConfigError(f"the learning-rate scale must lie in (0, {MOST_LR_SCALE}], got {lr_scale}")
    plan = Plan(epochs=epochs, batch=batch, lr_scale=lr_scale, seed=seed, changes=changes or {}, recovers=recovers)
    context = TrainingContext(
        out=out, workers=workers, devices=tuple(devices), on_epoch=on_epoch, extensions=tuple(extensions)
    )
    trainer = trainer_of(adapter)
    return trainer.resume(module, plan, context) if resume else trainer.train(module, plan, context)
