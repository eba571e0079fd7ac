"""Fine-tuning a pruned detector with stock Ultralytics training.

The recipe follows He et al. (AMC, ECCV 2018) in spirit: train on with a fraction of the dense network's
learning rate. Each setting below that differs from Ultralytics' defaults says why.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ConfigError, DeviceError, TrainingError
from autoprune.files import saying_why
from autoprune.models._base import Accuracy, Adapter
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from autoprune.models.ultralytics.data import TrainingImages, random_state_kept
from autoprune.training.trainer import PrunedTrainer

DEFAULT_LEARNING_RATES: Mapping[str, float] = {"SGD": 0.01, "AdamW": 0.001, "Adam": 0.001}
"""Dense learning rates where the checkpoint does not tell one (Ultralytics' own recommendations)."""


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
        module: the exponential moving average of the weights after the last epoch; float32, eval mode.
        epochs: how many epochs it was trained in all, interrupted ones included.
        batch: images per step; less than asked where memory ran out.
        losses: mean of each term of the training loss in the last epoch.
    """

    module: nn.Module
    epochs: int
    batch: int
    losses: Mapping[str, float]


class _Finetuning(PrunedTrainer):
    """`PrunedTrainer` on the adapter's data set, heard by nobody but autoprune.

    No integration of Ultralytics (ClearML, Comet, MLflow, TensorBoard, W&B, its platform) hears of the run. The
    class is not named a trainer, because Ultralytics loads its integrations for classes that are.
    """

    def __init__(self, adapter: UltralyticsAdapter, overrides: dict[str, Any]) -> None:
        self._adapter = adapter
        self._listeners: dict[str, Callable[[Any], None]] = {}
        threads = torch.get_num_threads()
        super().__init__(overrides=overrides, _callbacks=None)
        torch.set_num_threads(threads)  # Ultralytics takes one core less than there are: one of two
        self.callbacks: dict[str, list[Any]] = defaultdict(list)  # Ultralytics' analytics; its validator shares them

    def listen(self, event: str, listener: Callable[[Any], None]) -> None:
        """Call ``listener(trainer)`` at an event of Ultralytics' training loop."""
        self._listeners[event] = listener

    def run_callbacks(self, event: str) -> None:
        """Call this run's listeners and nobody else."""
        if event in self._listeners:
            self._listeners[event](self)

    def get_dataset(self) -> dict[str, Any]:
        """Return the adapter's data set; Ultralytics' own look-up would ask the network for a font."""
        return dict(_data_settings(self._adapter))

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build a split as Ultralytics does, with the label cache in the run's folder."""
        training = mode == "train"
        return TrainingImages(
            cache_folder=self.save_dir,
            img_path=img_path,
            imgsz=self.args.imgsz,
            batch_size=batch,
            augment=training,
            hyp=self.args,
            rect=not training,
            stride=max(int(self.model.stride.max()), 32),
            pad=0.0 if training else 0.5,
            data=self.data,
            task=self.args.task,
        )

    def final_eval(self) -> None:
        """Leave out the last validation: the caller measures what it keeps."""


def finetune(
    adapter: Adapter,
    module: nn.Module,
    *,
    epochs: int,
    out: Path,
    batch: int = 16,
    lr_scale: float = 0.1,
    seed: int = 0,
    workers: int = 0,
    on_epoch: Callable[[EpochReport], None] | None = None,
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
        workers: processes that load images; Ultralytics uses none on a CPU, where training is slower than loading.
        on_epoch: called after every epoch.

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
    }
    return _run(detector, overrides, module, out, on_epoch)


def resume_finetune(
    adapter: Adapter,
    *,
    out: Path,
    workers: int = 0,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> FinetuneResult:
    """Go on with an interrupted `finetune` from its last finished epoch.

    The settings are those it was started with. As with every resume of Ultralytics the result is not bit for bit
    that of an uninterrupted run: weights and optimizer pass through half precision.

    Args:
        adapter: as for `finetune`.
        out: the folder given to the interrupted run.
        workers: as for `finetune`.
        on_epoch: called after every epoch that is left.

    Raises:
        TrainingError: there is nothing to resume in ``out``.
        ModelError: ``weights/last.pt`` is corrupt.
        RunError: a file cannot be written.
    """
    last = out / "weights" / "last.pt"
    if not last.is_file():
        raise TrainingError(f"there is no fine-tuning to resume: {last} does not exist")
    read_checkpoint(last)  # by the safe loader, before Ultralytics opens it with the other one
    detector = _trainable(adapter)
    overrides = {**_run_settings(detector, out, workers), "model": str(last), "resume": str(last)}
    return _run(detector, overrides, None, out, on_epoch)


def recipe(dense: Mapping[str, Any], *, epochs: int, batch: int, lr_scale: float) -> dict[str, Any]:
    """Return Ultralytics' training arguments for a fine-tune.

    Loss gains, augmentations, momentum and weight decay are those of the dense training.

    Args:
        dense: the arguments that the dense network was trained with.
        epochs: passes over the training split.
        batch: images per step.
        lr_scale: share of the dense learning rate to start with.
    """
    optimizer, rate = _dense_rate(dense)
    return {
        **{key: dense[key] for key in _INHERITED},
        "epochs": epochs,
        "batch": batch,
        "nbs": batch,  # one step per batch: with Ultralytics' 64 a small data set gives three steps per epoch
        "optimizer": optimizer,  # named: "auto" ignores lr0
        "lr0": rate * lr_scale,
        "lrf": 0.01,
        "cos_lr": True,
        "warmup_epochs": min(1.0, 0.1 * epochs),  # the weights are good already: only the optimizer's moments warm up
        "warmup_bias_lr": 0.0,  # Ultralytics' 0.1 is for biases that start at nothing
        "close_mosaic": max(1, round(0.5 * epochs)) if epochs > 1 else 0,
        "patience": epochs,  # no early stop: the schedule ends where the learning rate does
    }


_INHERITED = (
    *("momentum", "weight_decay", "box", "cls", "cls_pw", "dfl"),
    *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr"),
    *("mosaic", "mixup", "cutmix"),
)


def _dense_rate(dense: Mapping[str, Any]) -> tuple[str, float]:
    """Return the optimizer and first learning rate of the dense training, or a default where it was automatic."""
    name = {known.lower(): known for known in DEFAULT_LEARNING_RATES}.get(str(dense["optimizer"]).lower())
    if name is None:  # "auto" in older checkpoints, or an optimizer whose learning rate means something else
        return "AdamW", DEFAULT_LEARNING_RATES["AdamW"]
    rate = float(dense["lr0"])
    return name, rate if rate > 0 else DEFAULT_LEARNING_RATES[name]


def _run_settings(adapter: UltralyticsAdapter, out: Path, workers: int) -> dict[str, Any]:
    """Return the arguments that say where and on what to run."""
    on_cuda = adapter.device.type == "cuda"
    return {
        "task": adapter.task,
        "mode": "train",
        "model": f"{adapter.name}.pt",  # a name for args.yaml; the network itself is handed over
        "data": str(_data_settings(adapter)["yaml_file"]),
        "imgsz": adapter.image_size,
        "device": str(adapter.device),
        # Half precision on GPUs that have bfloat16: for float16 Ultralytics first downloads a network to test it.
        "amp": "bf16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else False,
        "workers": workers,
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
    _data_settings(adapter)
    return adapter


def _data_settings(adapter: UltralyticsAdapter) -> Mapping[str, Any]:
    if adapter.data is None:
        raise TrainingError("fine-tuning needs a data set; give its YAML file with --data")
    return adapter.data.settings


def _run(
    adapter: UltralyticsAdapter,
    overrides: dict[str, Any],
    module: nn.Module | None,
    out: Path,
    on_epoch: Callable[[EpochReport], None] | None,
) -> FinetuneResult:
    reports: list[EpochReport] = []

    def report(trainer: Any) -> None:
        reports.append(_report(trainer))
        if on_epoch is not None:
            on_epoch(reports[-1])

    with _process_state_kept(adapter.device), saying_why(out):
        try:
            trainer = _Finetuning(adapter, overrides)
            if module is not None:
                trainer.model = trainer.get_model(weights=module)
            trainer.listen("on_train_epoch_end", _refuse_nan)
            trainer.listen("on_fit_epoch_end", report)
            trainer.train()
        except AssertionError as error:
            if module is not None:
                raise
            raise TrainingError(f"the fine-tuning in {out} is complete: there is nothing to resume") from error
        except RuntimeError as error:
            if "out of memory" not in str(error).lower():
                raise
            raise DeviceError(f"out of memory while fine-tuning on {adapter.device}; give a smaller batch") from error
    network = _final(trainer, adapter)
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


def _final(trainer: Any, adapter: UltralyticsAdapter) -> nn.Module:
    """Return the averaged weights, with the settings that the dense network carries."""
    network: Any = deepcopy(trainer.ema.ema).float().eval()
    dense: Any = adapter.module
    network.args, network.criterion, network.names = dense.args, None, dense.names
    for name, parameter in network.named_parameters():
        parameter.requires_grad = ".dfl." not in name
    final: nn.Module = network
    return final


@contextmanager
def _process_state_kept(device: torch.device) -> Iterator[None]:
    """Put back what training changes in the process: random states, determinism, environment, thread counts."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    generators = [device] if device.type == "cuda" else []
    with (
        stock.quiet(),
        stock.child_environment(),
        random_state_kept(),
        torch.random.fork_rng(devices=generators),
    ):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.backends.cudnn.deterministic = cudnn
            memory.fill_uninitialized_memory = fill
