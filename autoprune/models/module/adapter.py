"""The adapter of any ``nn.Module`` that takes images: a user's own network, loss, data and metric."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from autoprune.errors import DataError, ModelError
from autoprune.image_size import ImageSize
from autoprune.listener import tracked
from autoprune.models._base import Batch, Convert, Difference, ExportSettings, Predict, Predictions, noise
from autoprune.models._trainable import Sgd, TrainableAdapter
from autoprune.models.module.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from autoprune.models.module.data import Collate, Data, MapDataset, reason_of
from autoprune.models.module.exporting import FirstOutput, write
from autoprune.results import Metrics
from autoprune.runtimes.settings import compute_device
from autoprune.structure.graph import copied

_VALIDATION_BATCH = 16

Loss: TypeAlias = Callable[[nn.Module, torch.Tensor, Any], torch.Tensor]
"""(network in train mode, images, targets) → a scalar, averaged over the images."""

Metric: TypeAlias = Callable[[Predict, Iterable[tuple[torch.Tensor, Any]]], float | tuple[float, ...]]
"""(predict, batches of images and targets) → a number in [0, 1], higher is better; or several, as ``metric_names``.

``predict`` runs the network in eval mode and returns its output, the first tensor if there are several.
"""


class ModuleAdapter(TrainableAdapter):
    """A network of any class with its data.

    Args:
        module: the dense, trained network; a copy is kept.
        example: one input or more, shape (B, channels, height, width).
        loss: the training loss.
        train: a map-style data set (``torch.utils.data.Dataset``) of (image, target). Random augmentations may draw
            from torch's generator, which is seeded.
        val: the validation samples.
        metric: measures accuracy.
        name: in messages and policies.
        metric_names: names of the metric's results, the primary one first.
        collate: makes a batch of samples; by default torch's ``default_collate``.
        sgd: how the network was trained; fine-tuning begins with a share of its learning rate.
        free_outputs: keys of an output dictionary whose tensors may lose channels.
        device: where to compute.

    Raises:
        ModelError: the example is no batch of images, or the network does not take it.
        DeviceError: the device is unknown or not there.
    """

    resizable = False
    bytes_per_number = 4
    autocasts = False  # a user's own loss may not support bfloat16

    def __init__(
        self,
        module: nn.Module,
        *,
        example: torch.Tensor,
        loss: Loss,
        train: MapDataset,
        val: MapDataset,
        metric: Metric,
        name: str | None = None,
        metric_names: tuple[str, ...] = ("accuracy",),
        collate: Collate = default_collate,
        sgd: Sgd | None = None,
        free_outputs: Iterable[str] = (),
        device: str | torch.device = "cpu",
    ) -> None:
        _check_arguments(module, loss=loss, metric=metric, train=train, val=val, sgd=sgd, collate=collate)
        if example.ndim != 4 or len(example) == 0:
            raise ModelError(
                f"a module's example must be a batch of images, shape (B, channels, height, width), got "
                f"{tuple(example.shape)}"
            )
        self.name = name or type(module).__name__.lower()
        self.device = compute_device(device)
        self.module = copied(module).to(self.device, torch.float32).eval()
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            self.module.requires_grad_(True)  # frozen as a whole, as for inference; single frozen layers stay so
        self._dense = self.module  # what checkpoints are relative to, whichever network is opened
        self.image_size = ImageSize(*example.shape[2:])
        self.free_outputs = frozenset(free_outputs)
        self.metric_names = tuple(metric_names)
        self.sgd = sgd or Sgd()
        self._shape = tuple(example.shape[1:])
        self._data = Data(train, val, collate, self._shape)
        self._loss, self._metric = loss, metric
        self._check_runs()

    def opened(self, module: nn.Module | None = None, *, device: str | torch.device | None = None) -> ModuleAdapter:
        """Return an adapter of the same data for another network of the same classes, or on another device."""
        other = copy.copy(self)
        other.device = self.device if device is None else compute_device(device)
        other.module = copy.deepcopy(module or self.module).to(other.device).eval()
        return other

    @property
    def has_images(self) -> bool:
        """A module always comes with its data."""
        return True

    def example(self, batch: int = 2) -> torch.Tensor:
        """Return inputs of uniform noise, the same at every call."""
        return noise(batch, *self._shape, device=self.device)

    def batches(self, split: str, *, images: int, batch: int, seed: int, balanced: bool = False) -> Sequence[Batch]:
        """Return samples of a split as batches on the device; ``balanced`` has no effect, as labels are not known."""
        if images < 1 or batch < 1:
            raise DataError(f"images and batch must be positive, got {images} and {batch}")
        numbers = self._data.chosen(split, images=images, seed=seed)
        return list(self._data.batches(split, numbers, batch=batch, seed=seed, device=self.device))

    def calibration(self, *, images: int, batch: int, seed: int) -> Sequence[torch.Tensor]:
        """Return training images, augmented if their data set does so."""
        return [self.inputs(one) for one in self.batches("train", images=images, batch=batch, seed=seed)]

    def batches_per_epoch(self, batch: int) -> int:
        """Return the number of batches of `epoch`."""
        count = len(self._data.split("train"))
        return math.ceil((count - 1 if count > 1 and count % batch == 1 else count) / batch)

    def epoch(self, *, batch: int, seed: int) -> Iterable[Batch]:
        """Yield the training samples once, in an order drawn from the seed; a last batch of one sample is left out."""
        numbers = self._data.chosen("train", images=None, seed=seed)
        if len(numbers) > 1 and len(numbers) % batch == 1:
            numbers = numbers[:-1]  # batch norm cannot normalise a single value per channel
        return self._data.batches("train", numbers, batch=batch, seed=seed, device=self.device)

    def inputs(self, batch: Batch) -> torch.Tensor:
        """Return the images of a batch."""
        images: torch.Tensor = batch["images"]
        return images

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the user's loss.

        Raises:
            ModelError: it is no scalar.
        """
        found = self._loss(module, batch["images"], batch["targets"])
        if not isinstance(found, torch.Tensor) or found.shape != ():
            got = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
            raise ModelError(f"the loss of {self.name} must be a scalar tensor, averaged over the images, got {got}")
        return found

    def stages(self, module: nn.Module) -> Sequence[str]:
        """Return no stages: the execution order of a user's network is not known."""
        return ()

    def accuracy(self, module: nn.Module, batches: Sequence[Batch], *, predict: Predict | None = None) -> Metrics:
        """Measure the metric on held batches."""
        return self._measured(predict or self.deployable(module), batches)

    def validate(self, module: nn.Module) -> Metrics:
        """Measure the metric on the validation data."""
        return self.validate_deployed(self.deployable(module))

    def validate_deployed(self, predict: Predict, *, with_nms: bool = False) -> Metrics:
        """Measure the metric on the validation data with another runtime's predictions."""
        numbers = self._data.chosen("val", images=None, seed=None)
        batches = self._data.batches("val", numbers, batch=_VALIDATION_BATCH, seed=0, device=self.device)
        return self._measured(predict, tracked(batches, "Validating"))

    def deployable(self, module: nn.Module, *, with_nms: bool = False) -> nn.Module:
        """Return a copy in eval mode without gradients that returns its first output.

        It is not fused: other runtimes fold batch norms themselves. Suppression is never added; it must be part of the
        network.
        """
        deployed = copy.deepcopy(module).eval().requires_grad_(False)
        return deployed if isinstance(self._output(deployed), torch.Tensor) else FirstOutput(deployed)

    def export(self, module: nn.Module, folder: Path, settings: ExportSettings, *, convert: Convert) -> Path:
        """Export the network with a fixed input shape."""
        return write(self.deployable(module), folder, settings, shape=(settings.batch, *self._shape), convert=convert)

    def difference(self, expected: Predictions, found: Predictions, *, with_nms: bool = False) -> Difference:
        """Return the largest difference of outputs, as a share of the largest output if that is above 1."""
        assert isinstance(expected, torch.Tensor)  # see `deployable`
        assert isinstance(found, torch.Tensor)
        if expected.shape != found.shape or not (expected.isfinite().all() and found.isfinite().all()):
            return Difference(boxes=0.0, scores=math.inf)
        scale = max(1.0, float(expected.abs().max()))
        return Difference(boxes=0.0, scores=float((expected - found).abs().max()) / scale)

    def disagreement(self, expected: Predictions, found: Predictions) -> float:
        """Return the summed difference of outputs as a share of both sums (Bray & Curtis, 1957)."""
        assert isinstance(expected, torch.Tensor)  # see `deployable`
        assert isinstance(found, torch.Tensor)
        if not found.isfinite().all():
            return 1.0
        both = float((expected.abs() + found.abs()).sum())
        return float((expected - found).abs().sum()) / both if both else 0.0

    def scaled(self, width: float) -> nn.Module | None:
        """Return None: a user's class has no known width multiple."""
        return None

    def save(self, module: nn.Module, path: Path, *, notes: Mapping[str, Any] | None = None) -> None:
        """Write tensors and widths; `reopen` or `autoprune.models.module.load` builds the network again."""
        write_checkpoint(Checkpoint.of(module, self._dense, name=self.name, notes=notes), path)

    def reopen(self, path: Path) -> nn.Module:
        """Rebuild a saved network from a copy of the dense one."""
        return read_checkpoint(path).rebuild(self._dense, path).to(self.device)

    def checkpoint_size(self, module: nn.Module) -> int:
        """Return the size in bytes of the checkpoint without notes."""
        return len(Checkpoint.of(module, self._dense, name=self.name, notes=None).to_bytes())

    def _output(self, module: nn.Module) -> Any:
        with torch.no_grad():
            return module(self.example(1))

    def _check_runs(self) -> None:
        image = self.example(1)
        before = image.clone()
        try:
            with torch.no_grad():
                self.module(image)
        except Exception as error:  # a user's own code
            raise ModelError(
                f"{self.name} must take its example, a batch of shape (1, {', '.join(map(str, self._shape))}), and "
                f"does not ({reason_of(error)})"
            ) from error
        if not torch.equal(image, before):
            raise ModelError(
                f"{self.name} must leave its images as they are, for every candidate gets the same ones, and changes "
                "them in place; compute on a copy, such as `image = image - mean` for `image.sub_(mean)`"
            )

    def _measured(self, predict: Predict, batches: Iterable[Batch]) -> Metrics:
        with torch.no_grad():
            found = self._metric(predict, ((batch["images"], batch["targets"]) for batch in batches))
        try:
            figures = tuple(float(one) for one in (found if isinstance(found, (tuple, list)) else (found,)))
        except (TypeError, ValueError):
            figures = ()
        if len(figures) != len(self.metric_names) or not all(0 <= one <= 1 for one in figures):
            several = f"{len(self.metric_names)} numbers in [0, 1] ({', '.join(self.metric_names)})"
            wanted = "one number in [0, 1]" if len(self.metric_names) == 1 else several
            raise ModelError(f"the metric of {self.name} must return {wanted}, got {found}")
        return Metrics(dict(zip(self.metric_names, figures, strict=True)))


def _check_arguments(module: object, *, sgd: object, train: object, val: object, **functions: object) -> None:
    """Refuse what is no network, no data set, no function or no recipe, before a run finds out."""
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise ModelError(f"a network must be a torch.nn.Module that is not compiled, got {_kind(module)}")
    for name, data in (("train", train), ("val", val)):
        if isinstance(data, DataLoader) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise ModelError(
                f"`{name}` must be a map-style data set, with a length and samples by index, got {_kind(data)}"
            )
    for name, function in functions.items():
        if not callable(function):
            raise ModelError(f"`{name}` must be a function, got {_kind(function)}")
    if not isinstance(sgd, Sgd | None):
        raise ModelError(f"`sgd` must be an autoprune.models.module.Sgd, got {_kind(sgd)}")


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
