"""Fine-tuning a pruned detector with stock Ultralytics training (`recipe` says how, `session` in what surroundings)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ConfigError, DeviceError, TrainingError
from autoprune.files import saying_why
from autoprune.models._base import Accuracy, Adapter
from autoprune.models.recalibration import recalibrate
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from autoprune.training.extension import TrainingExtension
from autoprune.training.recipe import recipe
from autoprune.training.session import Session, data_settings, process_state_kept

CALIBRATION_IMAGES = 256
"""Images that batch norm is recalibrated on after the last epoch."""


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of fine-tuning brought.

    Attributes:
        epoch: its number, from 1.
        epochs: how many there will be.
        losses: mean of each term of the training loss.
        accuracy: of the averaged weights on the validation split; None where it was not measured.
    """

    epoch: int
    epochs: int
    losses: Mapping[str, float]
    accuracy: Accuracy | None


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned network.

    Attributes:
        module: the exponential moving average of the weights after the last epoch, its batch norm recalibrated on
            training images; float32, eval mode.
        epochs: how many epochs it was trained in all, interrupted ones included.
        batch: images per step; less than asked where memory ran out.
        losses: mean of each term of the training loss in the last epoch; empty where that was over before.
    """

    module: nn.Module
    epochs: int
    batch: int
    losses: Mapping[str, float]


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
    on_epoch: Callable[[EpochReport], None] | None = None,
    changes: Mapping[str, Any] | None = None,
    extensions: Sequence[TrainingExtension] = (),
) -> FinetuneResult:
    """Train a pruned network on, with the dense network's settings at a fraction of its learning rate.

    Args:
        adapter: the dense network's adapter, with its data set.
        module: the pruned network; it is not changed.
        epochs: passes over the training split.
        out: folder for Ultralytics' files: ``args.yaml``, ``results.csv``, ``weights/last.pt`` (resumable).
        batch: images per step; halved, up to three times, where a GPU's memory does not suffice.
        lr_scale: the first learning rate as a share of the dense network's first one.
        seed: of the weights' order of images and the augmentations.
        workers: processes that load images; by default one per core up to eight. Ultralytics uses none on a CPU,
            where training is slower than loading.
        on_epoch: called after every epoch.
        changes: Ultralytics' training arguments in place of the recipe's.
        extensions: what takes part in the training.

    Raises:
        ConfigError: ``epochs``, ``batch`` or ``lr_scale`` is out of its range.
        TrainingError: the loss is not a number, or there is no data set.
        RunError: a file cannot be written.
    """
    if epochs < 1 or batch < 1:
        raise ConfigError(f"epochs and batch must be at least 1, got {epochs} and {batch}")
    if not 0 < lr_scale <= 10:
        raise ConfigError(f"the learning-rate scale must lie in (0, 10], got {lr_scale}")
    detector = _trainable(adapter)
    overrides = {
        **recipe(detector.train_args, epochs=epochs, batch=batch, lr_scale=lr_scale),
        **_run_settings(detector, out, workers),
        "seed": seed,
        **(changes or {}),
    }
    return _run(detector, overrides, module, out, on_epoch, extensions)


def resume_finetune(
    adapter: Adapter,
    *,
    out: Path,
    workers: int | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    extensions: Sequence[TrainingExtension] = (),
) -> FinetuneResult:
    """Go on with an interrupted `finetune` from its last finished epoch; after the last one, return its network.

    The settings are those it was started with. As with every resume of Ultralytics the result is not bit for bit
    that of an uninterrupted run: weights and optimizer pass through half precision.

    Args:
        adapter: as for `finetune`.
        out: the folder given to the interrupted run.
        workers: as for `finetune`.
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
    checkpoint = read_checkpoint(last)  # by the safe loader, before Ultralytics opens it with the other one
    detector = _trainable(adapter)
    epochs, batch = int(checkpoint.train_args["epochs"]), int(checkpoint.train_args["batch"])
    if not 0 <= checkpoint.epoch < epochs - 1:
        module = _final(checkpoint.module, detector, batch)
        return FinetuneResult(module=module, epochs=epochs, batch=batch, losses={})
    overrides = {**_run_settings(detector, out, workers), "model": str(last), "resume": str(last)}
    return _run(detector, overrides, None, out, on_epoch, extensions)


def _run_settings(adapter: UltralyticsAdapter, out: Path, workers: int | None) -> dict[str, Any]:
    """Return the arguments that say where and on what to run."""
    on_cuda = adapter.device.type == "cuda"
    return {
        "task": adapter.task,
        "mode": "train",
        "model": f"{adapter.name}.pt",  # a name for args.yaml; the network itself is handed over
        "data": str(data_settings(adapter)["yaml_file"]),
        "imgsz": adapter.image_size,
        "device": str(adapter.device),
        # Half precision on GPUs that have bfloat16: for float16 Ultralytics first downloads a network to test it.
        "amp": "bf16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else False,
        "workers": min(8, os.cpu_count() or 1) if workers is None else workers,
        "save_dir": str(out),
        "exist_ok": True,
        "plots": False,
        "val": True,
        "verbose": False,
        "deterministic": True,
    }


def _trainable(adapter: Adapter) -> UltralyticsAdapter:
    if not isinstance(adapter, UltralyticsAdapter):
        raise TrainingError(f"{adapter.name} is no Ultralytics detector, and only those can be fine-tuned")
    data_settings(adapter)
    return adapter


def _run(
    adapter: UltralyticsAdapter,
    overrides: dict[str, Any],
    module: nn.Module | None,
    out: Path,
    on_epoch: Callable[[EpochReport], None] | None,
    extensions: Sequence[TrainingExtension],
) -> FinetuneResult:
    reports: list[EpochReport] = []

    def report(trainer: Any) -> None:
        reports.append(_report(trainer))
        if on_epoch is not None:
            on_epoch(reports[-1])

    with process_state_kept(adapter.device), saying_why(out):
        try:
            trainer = Session(adapter, overrides)
            if module is not None:
                trainer.model = trainer.get_model(weights=module)
            for extension in extensions:
                extension.attach(trainer)
            trainer.listen("on_train_epoch_end", _refuse_nan)
            trainer.listen("on_fit_epoch_end", report)
            trainer.train()
        except RuntimeError as error:
            if "out of memory" not in str(error).lower():
                raise
            raise DeviceError(f"out of memory while fine-tuning on {adapter.device}; give a smaller batch") from error
    network = _final(trainer.ema.ema, adapter, int(trainer.batch_size))
    return FinetuneResult(
        module=network, epochs=int(trainer.epochs), batch=int(trainer.batch_size), losses=reports[-1].losses
    )


def _report(trainer: Any) -> EpochReport:
    metrics = trainer.metrics or {}
    accuracy = None
    if "metrics/mAP50-95(B)" in metrics:
        accuracy = Accuracy(map50=metrics["metrics/mAP50(B)"], map50_95=metrics["metrics/mAP50-95(B)"])
    losses = {name: float(value) for name, value in trainer.tloss.items()}
    return EpochReport(epoch=trainer.epoch + 1, epochs=trainer.epochs, losses=losses, accuracy=accuracy)


def _refuse_nan(trainer: Any) -> None:
    """Stop at a loss that is not a number, where Ultralytics would go on from the last good epoch three times."""
    losses = {name: float(value) for name, value in trainer.tloss.items()}
    if not all(map(math.isfinite, losses.values())):
        terms = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        raise TrainingError(
            f"the training loss is not a number in epoch {trainer.epoch + 1} ({terms}); lower the learning rate "
            f"(it starts at {trainer.args.lr0:g})"
        )


def _final(averaged: nn.Module, adapter: UltralyticsAdapter, batch: int) -> nn.Module:
    """Return a copy of the averaged weights with its own batch norm statistics and the dense network's settings.

    Ultralytics lets batch norm forget 3% of its statistics per step, so that after a training of a few dozen steps they
    are those of weights long gone: after 6 epochs of 13 steps recalibration brought mAP50-95 from 0.441 to 0.467. Where
    the learning rate had long been low it changed at most 0.004.
    """
    network: Any = deepcopy(averaged).to(adapter.device).float()
    recalibrate(network, adapter.calibration(images=CALIBRATION_IMAGES, batch=batch, seed=0))
    dense: Any = adapter.module
    network.args, network.criterion, network.names = dense.args, None, dense.names
    for name, parameter in network.named_parameters():
        parameter.requires_grad = ".dfl." not in name
    final: nn.Module = network
    return final
