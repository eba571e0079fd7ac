"""A plain training loop, for networks whose family brings none.

SGD with Nesterov's momentum; the learning rate falls by a cosine from a share of the dense training's to a hundredth of
that (Loshchilov & Hutter, "SGDR", ICLR 2017, equation 5, without restarts). There is no averaging of weights: where the
rate ends so low, the last ones hardly move. Every epoch has random numbers of its own, and so a resumed training is bit
for bit the one that was not interrupted.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ConfigError, DeviceError, ModelError, TrainingError
from autoprune.io.files import saying_why, write_atomic
from autoprune.models._base import Accuracy, Batch
from autoprune.models._trainable import TrainableAdapter
from autoprune.statistics.layers import recalibrate
from autoprune.training.results import CALIBRATION_IMAGES, EpochReport, FinetuneResult
from autoprune.training.shapes import check_shapes, shapes_of
from autoprune.training.trainers._base import Plan, Trainer, TrainingContext

CLIP = 10.0
"""Largest norm of a gradient, as in Ultralytics' training."""

LAST_SHARE = 0.01
"""Where the learning rate ends, as a share of where it begins."""


@dataclass
class _Progress:
    """A training between two epochs: all that ``last.pt`` holds.

    Attributes:
        module: in training.
        optimizer: of its parameters.
        epochs: how many there will be.
        batch: images per step.
        seed: of the training.
        patience: epochs without a better one after which it stops; 0 for never.
        epoch: finished epochs.
        best_epoch: the one with the best accuracy, from 1; 0 before there is one.
        best: its accuracy.
        loss: mean training loss of the last epoch.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: int
    batch: int
    seed: int
    patience: int
    epoch: int = 0
    best_epoch: int = 0
    best: float = -1.0
    loss: float = math.nan

    _COUNTERS = ("epochs", "batch", "seed", "patience", "epoch", "best_epoch", "best", "loss")

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or the last ones brought nothing."""
        return self.epoch >= self.epochs or 0 < self.patience <= self.epoch - self.best_epoch

    def to_bytes(self) -> bytes:
        """Return the content of ``last.pt``: tensors and plain values, which torch's safe loader reads."""
        counters = {name: getattr(self, name) for name in self._COUNTERS}
        content = {**counters, "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def restored(self, content: Mapping[str, Any], file: Path) -> _Progress:
        """Return the progress that a ``last.pt`` tells; the module and the optimizer are changed in place."""
        found = {name: tuple(tensor.shape) for name, tensor in content["module"].items()}
        check_shapes(found, shapes_of(self.module), file)
        self.module.load_state_dict(content["module"])
        self.optimizer.load_state_dict(content["optimizer"])
        return replace(self, **{name: content[name] for name in self._COUNTERS})


class PlainTrainer(Trainer):
    """Trains the networks of an adapter in this process, on its device.

    ``changes`` of a plan may hold ``patience``: after so many epochs without a better one the training stops, and the
    best epoch's weights, kept as ``weights/best.pt``, are the result.
    """

    def __init__(self, adapter: TrainableAdapter) -> None:
        self._adapter = adapter

    def train(self, module: nn.Module, plan: Plan, surroundings: TrainingContext) -> FinetuneResult:
        """Train a copy of a network."""
        unknown = set(plan.changes) - {"patience"}
        if unknown:
            raise ConfigError(
                f"{self._adapter.name} is trained by a plain loop, which has no setting {', '.join(sorted(unknown))}"
            )
        self._check(surroundings)
        network = deepcopy(module)
        progress = _Progress(
            network,
            self.optimizer(network.parameters(), batch=plan.batch, lr_scale=plan.lr_scale),
            epochs=plan.epochs,
            batch=plan.batch,
            seed=plan.seed,
            patience=int(plan.changes.get("patience", 0)),
        )
        return self._run(progress, surroundings)

    def resume(self, module: nn.Module, plan: Plan, surroundings: TrainingContext) -> FinetuneResult:
        """Go on from ``weights/last.pt``, with the settings that it tells."""
        self._check(surroundings)
        file = surroundings.out / "weights" / "last.pt"
        if not file.is_file():
            return self.train(module, plan, surroundings)
        network = deepcopy(module)
        optimizer = self.optimizer(network.parameters(), batch=1, lr_scale=1.0)  # the file has its settings
        progress = _Progress(network, optimizer, epochs=0, batch=0, seed=0, patience=0)
        return self._run(progress.restored(_read(file), file), surroundings)

    def optimizer(self, parameters: Iterable[nn.Parameter], *, batch: int, lr_scale: float) -> torch.optim.Optimizer:
        """Return SGD with the dense training's settings."""
        sgd = self._adapter.sgd
        return torch.optim.SGD(
            [parameter for parameter in parameters if parameter.requires_grad],
            lr=sgd.lr * lr_scale,
            momentum=sgd.momentum,
            weight_decay=sgd.weight_decay,
            nesterov=sgd.momentum > 0,
        )

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the adapter's loss, a mean over the batch's images."""
        return self._adapter.loss(module, batch)

    def _check(self, surroundings: TrainingContext) -> None:
        if surroundings.extensions or surroundings.devices:
            raise ConfigError(
                f"{self._adapter.name} is trained by a plain loop, on one device and without distillation, softening "
                "or sparsity; leave `distill`, `soften` and further devices out"
            )

    def _run(self, progress: _Progress, surroundings: TrainingContext) -> FinetuneResult:
        weights = surroundings.out / "weights"
        with saying_why(weights):
            weights.mkdir(parents=True, exist_ok=True)
        device = self._adapter.device
        while not progress.over:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                self._epoch(progress)
            accuracy = self._adapter.validate(progress.module)
            self._keep(progress, accuracy, weights)
            if surroundings.on_epoch is not None:
                losses = {"loss": progress.loss}
                surroundings.on_epoch(EpochReport(progress.epoch, progress.epochs, losses, accuracy))
        if progress.patience:
            progress.module.load_state_dict(_read(weights / "best.pt")["module"])
        recalibrate(progress.module, self._adapter.calibration(images=CALIBRATION_IMAGES, batch=progress.batch, seed=0))
        return FinetuneResult(progress.module, progress.epoch, progress.batch, {"loss": progress.loss})

    def _epoch(self, progress: _Progress) -> None:
        """Pass once over the training split."""
        torch.manual_seed(progress.seed + progress.epoch)
        for group in progress.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * _fallen(progress.epoch / progress.epochs)
        progress.module.train()
        total, images = 0.0, 0
        for batch in self._adapter.epoch(batch=progress.batch, seed=progress.seed + progress.epoch):
            size = len(self._adapter.inputs(batch))
            total += self._step(progress, batch) * size
            images += size
        progress.module.eval()
        progress.loss = total / max(images, 1)
        progress.epoch += 1

    def _step(self, progress: _Progress, batch: Batch) -> float:
        try:
            loss = self.loss(progress.module, batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                rate = progress.optimizer.param_groups[0]["lr"]
                raise TrainingError(
                    f"the training loss is not a number in epoch {progress.epoch + 1} ({value:g}); lower the learning "
                    f"rate, it is {rate:g} there"
                )
            progress.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"out of memory while fine-tuning on {self._adapter.device}; give a smaller batch"
            ) from error
        torch.nn.utils.clip_grad_norm_(progress.module.parameters(), CLIP)
        progress.optimizer.step()
        return value

    @staticmethod
    def _keep(progress: _Progress, accuracy: Accuracy, weights: Path) -> None:
        """Write what a kill after this epoch must not lose."""
        better = accuracy.main > progress.best
        if better:
            progress.best, progress.best_epoch = accuracy.main, progress.epoch
        content = progress.to_bytes()
        if better and progress.patience:
            write_atomic(weights / "best.pt", content)  # first: last.pt may not tell of a best epoch that is not there
        write_atomic(weights / "last.pt", content)


def _fallen(progress: float) -> float:
    """Return the share of the first learning rate where such a share of the training, in [0, 1), is over."""
    return LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * progress)) / 2


def _read(file: Path) -> Mapping[str, Any]:
    with saying_why(file, "read"):
        data = file.read_bytes()
    try:
        content: Mapping[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets through what its unpickler and its archive reader raise
        raise ModelError(f"{file} is corrupt or not of a plain training; remove its folder and train again") from error
    return content
