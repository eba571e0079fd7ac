"""One fine-tune in a process: stock training that prints nothing, reports to nobody, and can be resumed exactly."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import TrainingError, is_out_of_memory
from autoprune.image_size import ImageSize
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.models.ultralytics.data import random_state_kept, read_data
from autoprune.training.extensions._base import Event, ExtensibleTraining, LossTerms
from autoprune.training.state_file import telling_damage
from autoprune.training.ultralytics.muon import float32_steps
from autoprune.training.ultralytics.state import begin_epoch, read_training, restore, state_file, write_state
from autoprune.training.ultralytics.trainer import KeepsNetwork

VALIDATED = "on_validated"
"""The event at which an epoch is validated, and not saved yet."""

BATCH_NORM_MOMENTUM = 0.1
"""At least, while a network trains: with Ultralytics' 0.03 running statistics are those of the last 33 batches or so,
several epochs of a small data set, and what an epoch is validated with. What a training ends with is recalibrated.
How much 0.03 costs was not measured; at 0.1 an epoch of DeepPCB yolo11n showed 0.485, recalibrated 0.506."""


class Session(ExtensibleTraining, KeepsNetwork):
    """A trainer heard by nobody but autoprune, writing ``state.pt``, ``last.pt``, and ``best.pt`` if it may stop early.

    With ``resume`` it goes on from ``state.pt`` (see `state`), with the network and the arguments that it was given the
    first time; Ultralytics' own resume, from ``last.pt``, is not used.

    It comes before Ultralytics' trainer of the task; `sessions` has the two together.

    No integration of Ultralytics (ClearML, Comet, MLflow, TensorBoard, W&B, its platform) hears of the run. The
    class is not named a trainer, because Ultralytics loads its integrations for classes that are. It is made from
    its arguments alone, because Ultralytics makes it anew in every process of a training on several GPUs.

    Args:
        cfg: Ultralytics' arguments; `overrides` come first.
        overrides: Ultralytics' arguments; ``data`` is a data set's YAML file, ``patience`` above 0 stops early.
        _callbacks: ignored; Ultralytics hands them to every trainer.
    """

    summed = True
    """Whether the task's loss is multiplied by the batch's size."""

    def __init__(
        self, cfg: Any = stock.DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: Any = None
    ) -> None:
        ExtensibleTraining.__init__(self)
        self._best: Mapping[str, torch.Tensor] = {}
        self._gradients: Mapping[str, torch.Tensor] = {}
        self.last_step = self._batch = -1
        self.added: set[str] = set()
        self.listen(Event.EPOCH_START, Session._begin_epoch)
        self.listen(Event.BATCH_END, Session._step_in_time)
        self.listen(Event.EPOCH_END, _refuse_nan)  # first: nothing is made of what is no number
        self.listen(Event.EPOCH_END, _drop_added)
        threads = torch.get_num_threads()
        KeepsNetwork.__init__(self, cfg, overrides, None)
        self.image_size = ImageSize.of(self.args.imgsz)  # of which Ultralytics goes on with the longer side alone
        torch.set_num_threads(threads)  # Ultralytics takes one core less than there are: one of two
        self.callbacks: dict[str, list[Any]] = defaultdict(list)  # Ultralytics' analytics; its validator shares them

    def _setup_train(self) -> None:
        """Prepare the training as Ultralytics does; what it refuses is the user's to change.

        Raises:
            TrainingError: nothing is left to train, or a last batch of one image cannot be normalised.
        """
        try:
            super()._setup_train()
        except (ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise TrainingError(f"Ultralytics refuses this training: {error}") from error

    @property
    def keeps_best(self) -> bool:
        """Whether the training may stop early, so that the best epoch's weights are its result."""
        return bool(self.args.patience)

    @property
    def averaged(self) -> nn.Module:
        """Return the network with the exponential moving average of the weights."""
        network: nn.Module = self.ema.ema
        return network

    @property
    def batches(self) -> int:
        """Return how many batches an epoch has."""
        return len(self.train_loader)

    @property
    def _state_file(self) -> Path:
        return state_file(Path(self.save_dir))

    def add_loss(self, terms: LossTerms) -> None:
        """Hang terms onto the loss of the network in training; its averaged weights keep their own loss."""
        network: Any = stock.unwrap_model(self.model)
        own = network.criterion if network.criterion is not None else network.init_criterion()
        network.criterion = CriterionWithTerms(own, terms, self.added, summed=self.summed)

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """Return a trainable copy of a network, whose running statistics keep up."""
        network = super().get_model(cfg, weights, verbose)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
                module.momentum = max(module.momentum, BATCH_NORM_MOMENTUM)
        return network

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Take the arguments as they are; Ultralytics would take those in ``last.pt``, and its network."""
        self.resume = bool(self.args.resume)

    def resume_training(self, ckpt: object) -> None:
        """Go on from the session's own state instead of Ultralytics' checkpoint."""
        if not self.resume:
            return
        state = read_training(self._state_file)
        restore(self, state, self._state_file)
        with telling_damage(self._state_file):
            self.last_step, self._gradients = int(state["last_step"]), dict(state["gradients"])
            self.restore_extensions(state["extensions"], self._state_file)
            self._best = dict(state["best"])

    def optimizer_step(self) -> None:
        """Leave the step to `_step_in_time`: how many batches the loop has counted, no resume could tell it."""

    def pending_gradients(self) -> Mapping[str, torch.Tensor]:
        """Return the gradients of batches that no step was made of yet, if a step takes several batches."""
        if self.last_step == self._batch:
            return {}
        parameters = stock.unwrap_model(self.model).named_parameters()
        return {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}

    def _begin_epoch(self) -> None:
        self._batch = self.batches * self.epoch - 1
        self.last_step = min(self.last_step, self._batch)  # an epoch may be repeated
        with telling_damage(self._state_file):
            for name, gradient in self._gradients.items():
                parameter = stock.unwrap_model(self.model).get_parameter(name)
                parameter.grad = gradient.to(parameter.device)
        self._gradients = {}
        begin_epoch(self)

    def _step_in_time(self) -> None:
        """Make a step of the optimizer once there are gradients of as many batches as a step takes."""
        self._batch += 1
        if self._batch - self.last_step >= self.accumulate:
            super().optimizer_step()
            self.last_step = self._batch

    def build_optimizer(self, *args: Any, **settings: Any) -> torch.optim.Optimizer:
        """Return Ultralytics' optimizer, whose steps are events."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(*args, **settings)
        optimizer.register_step_pre_hook(lambda *_: self.run_callbacks(Event.GRADIENTS))
        optimizer.register_step_post_hook(lambda *_: self.run_callbacks(Event.STEPPED))
        return optimizer

    def get_dataset(self) -> dict[str, Any]:
        """Return the data set; Ultralytics' own look-up would ask the network for a font."""
        data = read_data(Path(self.args.data), self.args.task, single_class=self.args.single_cls)
        return dict(data.settings)

    def get_validator(self) -> Any:
        """Return Ultralytics' validator, for both sides of the images."""
        validator = super().get_validator()
        validator.args.imgsz = list(self.image_size)  # RT-DETR's boxes are shares of them
        return validator

    def save_model(self) -> bool:
        """Write each checkpoint whole or not at all, so that a kill while it is written leaves the one before."""
        self.run_callbacks(VALIDATED)
        weights = Path(self.save_dir) / "weights"
        last, best = weights / "last.pt", weights / "best.pt"
        self.last = last.with_suffix(".tmp")
        self.best = best.with_suffix(".tmp") if self.keeps_best else self.last
        self.best.unlink(missing_ok=True)  # of a process that was killed
        try:
            super().save_model()
            if self.keeps_best and self.best.exists():
                self._best = {name: tensor.clone() for name, tensor in self.ema.ema.state_dict().items()}
                self.best.replace(best)
            self.last.replace(last)
            write_state(self, self._best)  # last: until it is there, a resume makes the other files anew
        finally:
            self.last, self.best = last, best
        return True

    def final_eval(self) -> None:
        """Leave out the last validation: the caller measures what it keeps."""


class CriterionWithTerms:
    """A loss of Ultralytics with terms added; hung onto a network while it trains.

    Args:
        criterion: Ultralytics' own, as ``init_criterion`` of a network makes it.
        terms: what is added.
        names: is given the names of the terms.
        summed: whether the criterion multiplies by the batch's size, so that the terms are, too.
    """

    def __init__(self, criterion: Any, terms: LossTerms, names: set[str], *, summed: bool = True) -> None:
        self._criterion, self._terms, self._names, self._summed = criterion, terms, names, summed

    def __call__(self, output: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the terms, which Ultralytics sums, and what to log."""
        loss, items = self._criterion(output, batch)
        terms = self._terms(output, batch["img"])
        self._names.update(terms)
        added = torch.stack(list(terms.values())) * (len(batch["img"]) if self._summed else 1)
        return torch.cat([loss.reshape(-1), added]), {**items, **{name: one.detach() for name, one in terms.items()}}

    def update(self) -> None:
        """Pass on the end of an epoch: end-to-end losses shift their weights then."""
        shift: Callable[[], None] | None = getattr(self._criterion, "update", None)
        if shift is not None:
            shift()


def data_settings(adapter: UltralyticsAdapter) -> Mapping[str, Any]:
    """Return the data set in Ultralytics' form, or raise ``TrainingError`` if the adapter has none."""
    if adapter.data is None:
        raise TrainingError("fine-tuning needs a data set; give its YAML file with `data`")
    return adapter.data.settings


def _refuse_nan(trainer: Any) -> None:
    """Stop at a loss that is not a number, where Ultralytics would go on from the last good epoch three times."""
    losses = {name: float(value) for name, value in trainer.tloss.items()}
    if not all(map(math.isfinite, losses.values())):
        terms = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        raise TrainingError(
            f"the training loss is not a number in epoch {trainer.epoch + 1} ({terms}); lower the learning rate "
            f"(it starts at {trainer.args.lr0:g})"
        )


def _drop_added(trainer: Any) -> None:
    """Take out of the epoch's losses what the validation's loss does not have."""
    trainer.loss_items = {name: value for name, value in trainer.loss_items.items() if name not in trainer.added}


@contextmanager
def process_state_kept(device: torch.device) -> Iterator[None]:
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
        float32_steps(device),
        torch.random.fork_rng(devices=generators),
        warnings.catch_warnings(),
    ):
        # Ultralytics asks for determinism if there is any; torch warns of each operation that has none.
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.backends.cudnn.deterministic = cudnn
            memory.fill_uninitialized_memory = fill
