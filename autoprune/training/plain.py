"""A plain training loop, for networks whose family brings none.

SGD with Nesterov's momentum; the learning rate falls by a cosine from a share of the dense training's to a hundredth of
that (Loshchilov & Hutter, "SGDR", ICLR 2017, equation 5, without restarts). There is no averaging of weights: if the
rate ends so low, the last ones hardly move. Every epoch has random numbers of its own, and so a resumed training is bit
for bit the one that was not interrupted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ConfigError, DeviceError, TrainingError, is_out_of_memory
from autoprune.io.files import make_folder, write_atomic
from autoprune.models._base import Batch
from autoprune.models._trainable import TrainableAdapter
from autoprune.results import Metrics
from autoprune.statistics.layers import enough_values
from autoprune.training.extensions._base import Event, ExtensibleTraining, LossTerms
from autoprune.training.plan import Plan, Trainer, TrainingContext
from autoprune.training.results import EpochReport, FinetuneResult, keep_epoch, recalibrated
from autoprune.training.shapes import check_shapes, shapes_of
from autoprune.training.state_file import read_state, state_bytes, telling_damage

CLIP = 10.0
"""Largest norm of a gradient, as in Ultralytics' training."""

LAST_SHARE = 0.01
"""Where the learning rate ends, as a share of where it begins."""

SETTINGS = ("patience", "optimizer", "lr0", "lrf")
"""What a plan may change, under Ultralytics' names: see `PlainTrainer`."""

_COUNTERS = ("epochs", "batch", "seed", "patience", "last_share", "epoch", "best_epoch", "best", "losses")


class PlainTraining(ExtensibleTraining):
    """A running training, as extensions see it (`extensions._base.Training`), and all that ``last.pt`` holds.

    Attributes:
        model: in training, with what extensions hang onto it.
        plain: a network with the same weights after each epoch, which is validated and saved.
        optimizer: of the model's parameters.
        device: where it is trained.
        batches: how many an epoch has, at most.
        epochs: how many there will be.
        batch: images per step.
        seed: of the training.
        patience: epochs without a better one after which it stops; 0 for never.
        last_share: where the learning rate ends, as a share of where it begins.
        epoch: finished epochs.
        start_epoch: those that an earlier process finished.
        best_epoch: the one with the best accuracy, from 1; 0 before there is one.
        best: its accuracy.
        losses: mean of each term of the training loss in the last epoch.
    """

    averaged = None
    epoch = start_epoch = best_epoch = 0
    best = -1.0

    def __init__(self, module: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer], plan: Plan) -> None:
        super().__init__()
        self.model: Any = deepcopy(module)
        self.plain = deepcopy(module).eval()
        self.optimizer = optimizer(self.model)
        self.device = torch.device("cpu")
        self.batches = 1
        self.epochs, self.batch, self.seed = plan.epochs, plan.batch, plan.seed
        self.patience = int(plan.changes.get("patience", 0))
        self.last_share = float(plan.changes.get("lrf", LAST_SHARE))
        self.losses: Mapping[str, float] = {}
        self.terms: list[LossTerms] = []
        self.call: tuple[torch.Tensor, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or the last ones brought nothing."""
        return self.epoch >= self.epochs or 0 < self.patience <= self.epoch - self.best_epoch

    def add_loss(self, terms: LossTerms, /) -> None:
        """Add terms to the loss of every batch."""

        def note(_: nn.Module, places: tuple[Any, ...], names: Mapping[str, Any], output: Any) -> None:
            self.call = next(one for one in (*places, *names.values()) if isinstance(one, torch.Tensor)), output

        if not self.terms:
            self.model.register_forward_hook(note, with_kwargs=True)
        self.terms.append(terms)

    def added(self) -> Mapping[str, torch.Tensor]:
        """Return the terms that were added to the loss of the batch that the model was just run on.

        Raises:
            TrainingError: the loss did not run the network itself, but parts of it.
        """
        if not self.terms:
            return {}
        if self.call is None:
            raise TrainingError(
                "distillation needs a loss that calls the network it is given, and this one calls only parts of it; "
                "fine-tune without `distill`"
            )
        (images, output), self.call = self.call, None
        return {name: value for terms in self.terms for name, value in terms(output, images).items()}

    def finish_epoch(self) -> None:
        """Copy the weights to the network that is validated and saved."""
        with torch.no_grad():
            for mine, theirs in zip(_tensors(self.plain), _tensors(self.model), strict=True):
                mine.copy_(theirs)
        self.epoch += 1

    def to_bytes(self) -> bytes:
        """Return the content of ``last.pt``: tensors and plain values, which torch's safe loader reads."""
        content = {
            **{name: getattr(self, name) for name in _COUNTERS},
            "module": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "extensions": self.extension_states(),
        }
        return state_bytes(content)

    def restore(self, file: Path) -> None:
        """Go on where a ``last.pt`` tells, with the settings that it holds.

        Raises:
            TrainingError: it is of another network.
            ModelError: it is damaged.
        """
        content = read_state(file)
        with telling_damage(file):
            check_shapes(
                {name: tuple(one.shape) for name, one in content["module"].items()}, shapes_of(self.plain), file
            )
            for network in (self.model, self.plain):
                network.load_state_dict(content["module"])
            self.optimizer.load_state_dict(content["optimizer"])
            vars(self).update({name: content[name] for name in _COUNTERS})
            self.restore_extensions(content["extensions"], file)
            self.start_epoch = int(content["epoch"])


class PlainTrainer(Trainer):
    """Trains the networks of an adapter in this process, on its device.

    ``changes`` of a plan may hold ``patience``: after this many epochs without a better one the training stops, and
    the best epoch's weights, kept as ``weights/best.pt``, are the result; ``lr0``, the first learning rate itself, and
    ``lrf``, where it ends as a share of that; ``optimizer``, which is SGD.
    """

    def __init__(self, adapter: TrainableAdapter) -> None:
        self._adapter = adapter

    def train(self, module: nn.Module, plan: Plan, context: TrainingContext) -> FinetuneResult:
        """Train a copy of a network."""
        return self._run(self._started(module, plan, context), context)

    def resume(self, module: nn.Module, plan: Plan, context: TrainingContext) -> FinetuneResult:
        """Go on from ``weights/last.pt``, with the settings that it tells."""
        training, file = self._started(module, plan, context), context.out / "weights" / "last.pt"
        if file.is_file():
            training.restore(file)
        return self._run(training, context)

    def optimizer(self, parameters: Iterable[nn.Parameter], *, batch: int, lr_scale: float) -> torch.optim.Optimizer:
        """Return SGD with the dense training's settings."""
        return self._sgd(parameters, self._adapter.sgd.lr * lr_scale)

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the adapter's loss, a mean over the batch's images."""
        return self._adapter.loss(module, batch)

    def _sgd(self, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        sgd = self._adapter.sgd
        return torch.optim.SGD(
            [parameter for parameter in parameters if parameter.requires_grad],
            lr=rate,
            momentum=sgd.momentum,
            weight_decay=sgd.weight_decay,
            nesterov=sgd.momentum > 0,
        )

    def _started(self, module: nn.Module, plan: Plan, context: TrainingContext) -> PlainTraining:
        name, changes = self._adapter.name, plan.changes
        if unknown := set(changes) - set(SETTINGS):
            raise ConfigError(f"{name} is trained by a plain loop, which has no setting {', '.join(sorted(unknown))}")
        if changes.get("optimizer", "SGD") != "SGD":
            raise ConfigError(f"{name} is trained by a plain loop, whose optimizer is SGD, got {changes['optimizer']}")
        if context.devices:
            raise ConfigError(f"{name} is trained by a plain loop, on one device; leave further devices out")
        rate = float(changes["lr0"]) if "lr0" in changes else self._adapter.sgd.lr * plan.lr_scale
        training = PlainTraining(module, lambda network: self._sgd(network.parameters(), rate), plan)
        training.device, training.batches = self._adapter.device, self._adapter.batches_per_epoch(plan.batch)
        for extension in context.extensions:
            extension.attach(training)
        return training

    def _run(self, training: PlainTraining, context: TrainingContext) -> FinetuneResult:
        weights, device = make_folder(context.out / "weights"), self._adapter.device
        if not training.over:
            training.run_callbacks(Event.START)
        while not training.over:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                self._epoch(training)
            accuracy = self._adapter.validate(training.plain)
            report = EpochReport(training.epoch, training.epochs, training.losses, accuracy)
            keep_epoch(report, context.out)
            _keep(training, accuracy, weights)
            if context.on_epoch is not None:
                context.on_epoch(report)
        training.run_callbacks(Event.END)
        if training.patience:
            training.plain.load_state_dict(read_state(weights / "best.pt")["module"])
        module = recalibrated(training.plain, self._adapter, training.batch)
        return FinetuneResult(module, training.epoch, training.batch, training.losses)

    def _epoch(self, training: PlainTraining) -> None:
        """Pass once over the training split."""
        torch.manual_seed(training.seed + training.epoch)
        for group in training.optimizer.param_groups:
            share = _fallen(training.epoch / training.epochs, training.last_share)
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * share
        training.model.train()
        training.run_callbacks(Event.EPOCH_START)
        totals, images = defaultdict[str, float](float), 0
        for batch in self._adapter.epoch(batch=training.batch, seed=training.seed + training.epoch):
            size = len(self._adapter.inputs(batch))
            training.run_callbacks(Event.BATCH_START)
            for name, value in self._step(training, batch).items():
                totals[name] += value * size
            training.run_callbacks(Event.BATCH_END)
            images += size
        training.losses = {name: total / max(images, 1) for name, total in totals.items()}
        training.run_callbacks(Event.EPOCH_END)
        training.finish_epoch()

    def _step(self, training: PlainTraining, batch: Batch) -> Mapping[str, float]:
        """Make a step, and return the terms of its loss."""

        def loss() -> Mapping[str, torch.Tensor]:
            return {"loss": self.loss(training.model, batch), **training.added()}

        values = backward(loss, training.model, training.optimizer, place=f"epoch {training.epoch + 1}")
        training.run_callbacks(Event.GRADIENTS)
        training.optimizer.step()
        training.run_callbacks(Event.STEPPED)
        return values


def backward(
    loss: Callable[[], Mapping[str, torch.Tensor]],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    place: str,
    lower: str = "the learning rate",
) -> dict[str, float]:
    """Give a network the clipped gradients of a step, and return the terms of its loss.

    Args:
        loss: returns its terms by name.
        module: the network.
        optimizer: makes the step afterwards.
        place: in the training, for messages.
        lower: what users lower if a term is not a number.

    Raises:
        TrainingError: a term is not a number, or no weight has a gradient.
        DeviceError: memory runs out.
    """
    try:
        with enough_values():
            terms = loss()
        values = {name: float(term.detach()) for name, term in terms.items()}
        if broken := next((value for value in values.values() if not math.isfinite(value)), None):
            rate = optimizer.param_groups[0]["lr"]
            raise TrainingError(
                f"the training loss is not a number in {place} ({broken:g}, at a learning rate of {rate:g}); "
                f"lower {lower}"
            )
        optimizer.zero_grad(set_to_none=True)
        total = torch.stack(list(terms.values())).sum()
        if not total.requires_grad:
            raise TrainingError("the loss must depend on weights that are trained, and has no gradient")
        total.backward()  # type: ignore[no-untyped-call]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        device = next(module.parameters()).device
        raise DeviceError(f"out of memory on {device} in {place}; give a smaller `batch`") from error
    torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
    return values


def _keep(training: PlainTraining, accuracy: Metrics, weights: Path) -> None:
    """Write what a kill after this epoch must not lose."""
    better = accuracy.primary > training.best
    if better:
        training.best, training.best_epoch = accuracy.primary, training.epoch
    content = training.to_bytes()
    if better and training.patience:
        write_atomic(weights / "best.pt", content)  # first: last.pt may not tell of a best epoch that is not there
    write_atomic(weights / "last.pt", content)


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _fallen(progress: float, last: float) -> float:
    """Return the share of the first learning rate where such a share of the training, in [0, 1), is over."""
    return last + (1 - last) * (1 + math.cos(math.pi * progress)) / 2
