"""Fine-tuning a pruned network with stock Ultralytics training (`recipe` says how, `session` in what surroundings).

Where the parts of a training are: the learning rate's cosine and warm-up, the optimizer and early stopping's default
in `recipe`; half precision on GPUs (AMP) in `_Training.settings` below; the exponential moving average of the weights
is Ultralytics' own (``ModelEMA``), it is what is validated, saved and returned; the checks after every save are
`trainer`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ConfigError, DeviceError, TrainingError
from autoprune.files import saying_why
from autoprune.models._base import Adapter
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.models.ultralytics.checkpoint import Checkpoint, read_checkpoint
from autoprune.training.extension import TrainingExtension
from autoprune.training.parallel import train_in_processes
from autoprune.training.recipe import recipe
from autoprune.training.results import EpochReport, FinetuneResult, final_network, report_of
from autoprune.training.session import data_settings, process_state_kept
from autoprune.training.sessions import session_of


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
        out: folder for Ultralytics' files: ``args.yaml``, ``results.csv``, ``weights/last.pt`` (resumable).
        batch: images per step; halved, up to three times, where a GPU's memory does not suffice.
        lr_scale: the first learning rate as a share of the dense network's first one.
        seed: of the weights' order of images and the augmentations.
        workers: processes that load images; by default one per core up to eight. Ultralytics uses none on a CPU,
            where training is slower than loading.
        devices: where to train, each in a process of its own with its share of the batch, e.g. ``cuda:0`` and
            ``cuda:1``; by default on the adapter's device in this process. The processes' words go to
            ``processes.log`` in ``out``.
        on_epoch: called after every epoch.
        changes: Ultralytics' training arguments in place of the recipe's. With ``patience`` above 0 the training
            stops after so many epochs without a better one, and the best epoch's weights are the result; they are
            kept as ``weights/best.pt``.
        extensions: what takes part in the training; not with ``devices``.

    Raises:
        ConfigError: ``epochs``, ``batch`` or ``lr_scale`` is out of its range, or there are extensions and devices.
        TrainingError: the loss is not a number, or there is no data set.
        DeviceError: memory runs out.
        RunError: a file cannot be written.
    """
    if epochs < 1 or batch < 1:
        raise ConfigError(f"epochs and batch must be at least 1, got {epochs} and {batch}")
    if not 0 < lr_scale <= 10:
        raise ConfigError(f"the learning-rate scale must lie in (0, 10], got {lr_scale}")
    training = _Training(_trainable(adapter), out, workers, tuple(devices), on_epoch, tuple(extensions))
    arguments = recipe(training.adapter.train_args, epochs=epochs, batch=batch, lr_scale=lr_scale)
    return training.run({**arguments, **training.settings(), "seed": seed, **(changes or {})}, module)


def resume_finetune(
    adapter: Adapter,
    *,
    out: Path,
    workers: int | None = None,
    devices: Sequence[str] = (),
    on_epoch: Callable[[EpochReport], None] | None = None,
    extensions: Sequence[TrainingExtension] = (),
) -> FinetuneResult:
    """Go on with an interrupted `finetune` from its last finished epoch; after its end, return its network.

    The settings are those it was started with. As with every resume of Ultralytics the result is not bit for bit
    that of an uninterrupted run: weights and optimizer pass through half precision.

    Args:
        adapter: as for `finetune`.
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
    checkpoint = read_checkpoint(last)  # by the safe loader, before Ultralytics opens it with the other one
    training = _Training(_trainable(adapter), out, workers, tuple(devices), on_epoch, tuple(extensions))
    if _is_over(checkpoint):
        return training.saved({})
    return training.run({**training.settings(), "model": str(last), "resume": str(last)}, None)


def _trainable(adapter: Adapter) -> UltralyticsAdapter:
    if not isinstance(adapter, UltralyticsAdapter):
        raise TrainingError(f"{adapter.name} is no Ultralytics network, and only those can be fine-tuned")
    data_settings(adapter)
    return adapter


def _is_over(checkpoint: Checkpoint) -> bool:
    """Return whether the training that wrote a ``last.pt`` went through all epochs, or stopped early."""
    finished, patience = checkpoint.epoch + 1, int(checkpoint.train_args["patience"])
    return not 0 < finished < int(checkpoint.train_args["epochs"]) or (
        patience > 0 and finished - checkpoint.best_epoch >= patience
    )


@dataclass(frozen=True)
class _Training:
    """What a fresh and a resumed fine-tune have in common; the fields are the arguments of `finetune`."""

    adapter: UltralyticsAdapter
    out: Path
    workers: int | None
    devices: tuple[str, ...]
    on_epoch: Callable[[EpochReport], None] | None
    extensions: tuple[TrainingExtension, ...]

    def __post_init__(self) -> None:
        if self.devices and self.extensions:
            raise ConfigError(f"what takes part in a training needs one device, got {', '.join(self.devices)}")

    def settings(self) -> dict[str, Any]:
        """Return the arguments that say where and on what to run."""
        adapter = self.adapter
        on_cuda = adapter.device.type == "cuda"
        return {
            "task": adapter.task.name,
            "mode": "train",
            "model": f"{adapter.name}.pt",  # a name for args.yaml; the network itself is handed over
            "data": str(data_settings(adapter)["yaml_file"]),
            "imgsz": adapter.image_size,
            "device": ",".join(self.devices) or str(adapter.device),
            # Half precision on GPUs that have bfloat16: for float16 Ultralytics first downloads a network to test it.
            "amp": "bf16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else False,
            "workers": min(8, os.cpu_count() or 1) if self.workers is None else self.workers,
            "save_dir": str(self.out),
            "exist_ok": True,
            "plots": False,
            "val": True,
            "verbose": False,
            "deterministic": True,
        }

    def run(self, arguments: dict[str, Any], module: nn.Module | None) -> FinetuneResult:
        """Train a network, or where there is none the one of the checkpoint that the arguments resume."""
        with process_state_kept(self.adapter.device), saying_why(self.out):
            if self.devices:
                reports = self._in_processes(arguments, module)
                return self.saved(reports[-1].losses if reports else {})
            try:
                return self._here(arguments, module)
            except RuntimeError as error:
                if "out of memory" not in str(error).lower():
                    raise
                raise DeviceError(
                    f"out of memory while fine-tuning on {self.adapter.device}; give a smaller batch"
                ) from error

    def saved(self, losses: Mapping[str, float]) -> FinetuneResult:
        """Return the result of a training that is over, from its files."""
        weights = self.out / "weights"
        last = read_checkpoint(weights / "last.pt")
        batch, epochs = int(last.train_args["batch"]), int(last.train_args["epochs"])
        result = read_checkpoint(weights / "best.pt") if int(last.train_args["patience"]) else last
        return FinetuneResult(
            module=final_network(result.module, self.adapter, batch),
            epochs=last.epoch + 1 if last.epoch >= 0 else epochs,
            batch=batch,
            losses=losses,
        )

    def _here(self, arguments: dict[str, Any], module: nn.Module | None) -> FinetuneResult:
        reports: list[EpochReport] = []

        def report(trainer: Any) -> None:
            reports.append(report_of(trainer, self.adapter))
            if self.on_epoch is not None:
                self.on_epoch(reports[-1])

        session = session_of(self.adapter)(overrides=arguments)
        if module is not None:
            session.model = session.get_model(weights=module)
        for extension in self.extensions:
            extension.attach(session)
        session.listen("on_fit_epoch_end", report)
        session.train()
        batch = int(session.batch_size)
        averaged = read_checkpoint(session.best).module if session.keeps_best else session.ema.ema
        return FinetuneResult(
            module=final_network(averaged, self.adapter, batch),
            epochs=reports[-1].epoch,
            batch=batch,
            losses=reports[-1].losses,
        )

    def _in_processes(self, arguments: dict[str, Any], module: nn.Module | None) -> Sequence[EpochReport]:
        if module is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            start = self.out / "start.pt"  # the processes get the network as a file
            self.adapter.save(module, start)
            arguments = {**arguments, "model": str(start)}
        return train_in_processes(session_of(self.adapter)(overrides=arguments), self.adapter, self.on_epoch)
