"""Fine-tuning as a stage of a run: resumable, and done once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.config import BudgetedConfig, QuantizeConfig
from autoprune.listener import Advance, Listener
from autoprune.models._base import Adapter
from autoprune.results import Metrics
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Allocation
from autoprune.training.extensions._base import Event, Training, TrainingExtension
from autoprune.training.extensions.distill import Distillation
from autoprune.training.extensions.fake_quantization import FakeQuantization
from autoprune.training.extensions.gradual_zeroing import GradualZeroing
from autoprune.training.finetune import finetune
from autoprune.training.plan import default_patience, short_scale
from autoprune.training.results import EpochReport, FinetuneResult, read_epochs, rise_at_end
from autoprune.training.shapes import check_shapes, shapes_of
from autoprune.training.ultralytics.callbacks import UltralyticsCallbacks
from autoprune.training.ultralytics.recipe import from_scratch_recipe, train_arguments
from autoprune.workflows.network import Network
from autoprune.workflows.stock_yaml import describe
from autoprune.workflows.tuning_state import FINETUNE, take_over


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the pruned networks of a run are fine-tuned.

    Attributes:
        epochs: passes over the training images.
        lr_scale: first learning rate as a multiple of the recipe's.
        batch: images per step.
        seed: fixes the training.
        teacher: the dense network if it teaches, else None.
        distill_weight: how much the teacher counts.
        patience: epochs without a better one after which the training stops, 0 for never; None for `default_patience`.
        devices: several GPUs to train on; empty for the adapter's own device.
        arguments: the family's own settings in place of its recipe's, see `train_arguments`.
        callbacks: whether Ultralytics' own integrations hear the training.
    """

    epochs: int
    lr_scale: float
    batch: int
    seed: int
    teacher: nn.Module | None = None
    distill_weight: float = 1.0
    patience: int | None = None
    devices: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    callbacks: bool = False

    @classmethod
    def of(cls, config: BudgetedConfig, teacher: nn.Module) -> Tuning:
        """Return the settings of a run that prunes to a budget; the teacher teaches only if it is asked to."""
        arguments = arguments_of(config.train_args)
        return cls(
            epochs=config.finetune_epochs or 0,
            lr_scale=config.lr_scale,
            batch=config.batch,
            seed=config.seed,
            teacher=teacher if config.distill else None,
            patience=arguments.pop("patience", None),
            arguments=arguments,
            callbacks=config.ultralytics_callbacks,
        )

    @property
    def stops_after(self) -> int:
        """Epochs without a better one after which the training stops; 0 for never."""
        return default_patience(self.epochs) if self.patience is None else self.patience

    def extensions(self) -> Sequence[TrainingExtension]:
        """Return what takes part in the fine-tuning."""
        teaching = [] if self.teacher is None else [Distillation(self.teacher, weight=self.distill_weight)]
        return [*teaching, *([UltralyticsCallbacks()] if self.callbacks else [])]


def arguments_of(texts: Sequence[str]) -> dict[str, Any]:
    """Return the training arguments that a user wrote; Ultralytics is asked only if there are any.

    Raises:
        ConfigError: Ultralytics refuses one.
    """
    return train_arguments(texts) if texts else {}


@dataclass(frozen=True)
class Tuned:
    """A network before and after training.

    Attributes:
        before: metrics on the validation split before training, or None if they mean nothing.
        after: the same after training, or None if it was not trained.
        costs: by metric, in its unit.
    """

    before: Metrics | None
    after: Metrics | None
    costs: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        before, after = (one.to_json() if one is not None else None for one in (self.before, self.after))
        return {"before": before, "after": after, "costs": dict(self.costs)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Tuned:
        """Read what ``to_json`` gave."""
        before, after = (Metrics.from_json(one) if (one := values[name]) else None for name in ("before", "after"))
        return cls(before, after, values["costs"])


class Validation:
    """Validates a network once: what a progress bar ends with is what the table shows.

    Args:
        adapter: has the data.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._found: Metrics | None = None

    def __call__(self, network: nn.Module) -> Metrics:
        """Return the metrics on the validation split, those of the first call."""
        if self._found is None:
            self._found = self._adapter.validate(network)
        return self._found


def tune(
    adapter: Adapter,
    module: nn.Module,
    folder: Path,
    *,
    tuning: Tuning,
    notes: Mapping[str, Any],
    listener: Listener,
    measure: Callable[[nn.Module], Metrics] | None = None,
    series: str = "finetune",
) -> nn.Module:
    """Fine-tune a pruned network and write ``model`` into a folder; go on where an earlier process or worker stopped.

    Args:
        adapter: has the data.
        module: the pruned network; it is not changed.
        folder: gets ``model``.
        tuning: how.
        notes: travel inside the checkpoint.
        listener: hears the progress.
        measure: returns what tables will say of the fine-tuned network; the progress bar then ends with that.
        series: of the curves.

    Returns:
        The network as ``model`` holds it: float32, eval mode.

    Raises:
        TrainingError: the training failed, or ``model`` holds another network.
    """
    path = adapter.checkpoint(folder, "model")
    take_over(folder, wanted=not path.exists())
    if not path.exists():

        def finished(result: FinetuneResult) -> str:
            adapter.save(result.module, path, notes=notes)
            return "" if measure is None else _shown(adapter, measure(_opened(adapter, path, module)))

        started = replace(tuning, lr_scale=tuning.lr_scale * short_scale(tuning.epochs))
        result = trained(
            adapter,
            module,
            folder / FINETUNE,
            label="Fine-tuning",
            tuning=started,
            listener=listener,
            changes={"patience": tuning.stops_after, **tuning.arguments},
            extensions=tuning.extensions(),
            finish=finished,
            series=series,
            recovers=True,
        )
        curve = [epoch.accuracy.primary for epoch in read_epochs(folder / FINETUNE) if epoch.accuracy is not None]
        if rise := rise_at_end(curve):
            listener.note(
                f"{adapter.metric_names[0]} still rose by {rise:.3f} in the last quarter of the epochs. "
                "Some of that comes with the falling learning rate; a longer training may bring more."
            )
        if result.epochs < tuning.epochs:
            listener.note(
                f"Stopped after {result.epochs} of {tuning.epochs} epochs: the last {tuning.stops_after} brought "
                "nothing better, the best one's weights are kept."
            )
    return _opened(adapter, path, module)


def train_from_nothing(adapter: Adapter, folder: Path, *, tuning: Tuning, listener: Listener) -> Path:
    """Train an adapter's own network, which has learnt nothing yet; go on where an earlier process stopped.

    Returns:
        Its checkpoint, ``model`` in the folder.
    """
    path = adapter.checkpoint(folder, "model")
    if not path.exists():
        result = trained(
            adapter,
            adapter.module,
            folder / "training",
            label="Training",
            tuning=tuning,
            listener=listener,
            changes=from_scratch_recipe(epochs=tuning.epochs, batch=tuning.batch),
        )
        adapter.save(result.module, path)
    return path


def soften(
    network: Network,
    allocation: Allocation,
    folder: Path,
    *,
    tuning: Tuning,
    notes: Mapping[str, Any],
    listener: Listener,
) -> nn.Module:
    """Train the dense network while channels fall to zero, remove these, and write ``softened`` into a folder.

    The learning rate does not fall meanwhile: what remains has to take over until the end, and the fine-tuning that
    follows has a fall of its own.

    Args:
        network: the dense network, whose own weights say which channels go.
        allocation: kept channels per unit.
        folder: goes on where an earlier process stopped.
        tuning: its epochs are those of the softening.
        notes: travel inside the checkpoint.
        listener: hears the progress.

    Returns:
        The pruned network as ``softened`` holds it: float32, eval mode.
    """
    keep, adapter = network.pruner.kept(allocation), network.adapter
    path = adapter.checkpoint(folder, "softened")
    if not path.exists():
        result = trained(
            adapter,
            adapter.module,
            folder / "soften",
            label="Softening",
            tuning=tuning,
            listener=listener,
            changes={"lrf": 1.0},
            extensions=[GradualZeroing(network.graph, keep)],
        )
        pruned = Slicer(result.module, network.graph).materialise(keep)
        adapter.save(describe(pruned, adapter, folder, required=False), path, notes=notes)
    return _opened(adapter, path, network.pruner.materialise(allocation))


QAT = "qat"
"""What a network is called that was tuned for int8."""


def tune_for_int8(config: QuantizeConfig, adapter: Adapter, folder: Path, listener: Listener) -> Path:
    """Fine-tune an adapter's own network as if it were in int8; go on where an earlier process stopped.

    Returns:
        The float network, ``qat`` in the folder.
    """
    path = adapter.checkpoint(folder, QAT)
    if not path.exists():
        tuning = Tuning(epochs=config.qat_epochs, lr_scale=config.qat_lr_scale, batch=config.batch, seed=config.seed)
        result = trained(
            adapter,
            adapter.module,
            folder / QAT,
            label="Tuning for int8",
            tuning=tuning,
            listener=listener,
            extensions=[FakeQuantization()],
        )
        adapter.save(result.module, path)
    return path


def trained(
    adapter: Adapter,
    module: nn.Module,
    out: Path,
    *,
    label: str,
    tuning: Tuning,
    listener: Listener,
    changes: Mapping[str, Any] | None = None,
    extensions: Sequence[TrainingExtension] = (),
    finish: Callable[[FinetuneResult], str] = lambda result: "",
    series: str | None = None,
    recovers: bool = False,
) -> FinetuneResult:
    """Train a network in a folder, or go on with it there.

    Args:
        adapter: has the data.
        module: the network; it is not changed.
        out: as for `finetune`.
        label: of the progress display.
        tuning: how.
        listener: hears the progress.
        changes: as for `finetune`.
        extensions: what takes part.
        finish: called with the result while its bar is shown; returns what the bar ends with.
        series: of the curves; the label in lower case if None.
        recovers: as for `finetune`.
    """
    series = series or label.lower()
    with listener.progress(label, tuning.epochs) as advance:

        def show(report: EpochReport) -> None:
            listener.log(report.epoch, report.figures(series, adapter.metric_names))
            advance(report.epoch, f"{_shown(adapter, report.accuracy)} while training" if report.accuracy else "")

        result = finetune(
            adapter,
            module,
            epochs=tuning.epochs,
            out=out,
            batch=tuning.batch,
            lr_scale=tuning.lr_scale,
            seed=tuning.seed,
            devices=tuning.devices,
            on_epoch=show,
            changes=changes,
            extensions=extensions if tuning.devices else [*extensions, EpochBar(listener)],
            recovers=recovers,
            resume=True,
        )
        if ended := finish(result):
            advance(result.epochs, ended)
        return result


def _shown(adapter: Adapter, accuracy: Metrics) -> str:
    return f"{adapter.metric_names[0]} {accuracy.primary:.3f}"


class EpochBar(TrainingExtension):
    """Shows a bar of the batches within every epoch.

    Args:
        listener: hears the progress.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._open = ExitStack()
        self._advance: Advance | None = None
        self._batch = 0

    def attach(self, training: Training) -> None:
        """Listen to epochs and batches."""
        training.listen(Event.EPOCH_START, self._begin)
        training.listen(Event.BATCH_END, self._count)
        training.listen(Event.EPOCH_END, lambda _: self._open.close())

    def _begin(self, training: Training) -> None:
        self._open.close()  # an epoch may be begun again
        self._batch = 0
        label = f"Epoch {training.epoch + 1}"
        self._advance = self._open.enter_context(self._listener.progress(label, training.batches))

    def _count(self, _: Training) -> None:
        self._batch += 1
        if self._advance is not None:
            self._advance(self._batch)


def _opened(adapter: Adapter, path: Path, pruned: nn.Module) -> nn.Module:
    """Open what was saved, and make sure that it is the network that was pruned: its parameters, and so its FLOPs."""
    module = adapter.reopen(path)
    check_shapes(shapes_of(module), shapes_of(pruned), path)
    return module
