"""Interfaces of a network with its task: adapters, stock descriptions, and the values that they exchange."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import nn

from autoprune.formats import FormatSpec
from autoprune.image_size import ImageSize
from autoprune.results import Detection, Metrics
from autoprune.structure.graph import Tie

Batch = Mapping[str, Any]
"""One batch of inputs with their labels, on the device; opaque outside its adapter."""

Predictions: TypeAlias = "torch.Tensor | tuple[torch.Tensor, ...]"
"""Output of a deployable network, batch first: one tensor, or several (boxes, and prototypes of masks)."""

Predict = Callable[[torch.Tensor], Predictions]
"""Maps inputs, shape (B, *input_shape), to their predictions, as a deployable network does."""

Convert = Callable[[Path, Path], None]
"""Writes a traced network, the first path, in a runtime's own format to the second."""


@dataclass(frozen=True)
class ExportSettings:
    """How a network is exported.

    Attributes:
        spec: the file's format.
        half: trace the network in half precision (GPU only); else in single precision.
        dynamic: leave batch and image size variable.
        batch: images of an input.
        nms: put non-maximum suppression behind the network.
        opset: version of ONNX's operators; None for the newest one that all runtimes support.
    """

    spec: FormatSpec
    half: bool = False
    dynamic: bool = False
    batch: int = 1
    nms: bool = False
    opset: int | None = None


@dataclass(frozen=True)
class Difference:
    """The largest differences between the predictions of two networks.

    Attributes:
        boxes: of the coordinates of boxes and keypoints, in pixels; 0 if there are none.
        scores: of class scores, which lie in [0, 1], and of other numbers that are no coordinates.
    """

    boxes: float
    scores: float


@dataclass(frozen=True)
class LossSum:
    """An unnormalised loss: each of its T terms, summed over images, and its divisor.

    A divisor may be another number than that of the images, such as the objects in them. Sums of batches add up, so the
    loss does not depend on the batch size.

    Attributes:
        totals: summed terms, shape (T,).
        weights: their divisors, shape (T,).
    """

    totals: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of_mean(cls, loss: torch.Tensor, images: int) -> LossSum:
        """Return the sum of a scalar loss that is a mean over ``images`` images."""
        return cls(loss.view(1) * images, torch.full_like(loss, images).view(1))

    def __add__(self, other: LossSum) -> LossSum:
        """Return the sum over the images of both."""
        return LossSum(self.totals + other.totals, self.weights + other.weights)

    def mean(self) -> float:
        """Return the normalised loss, each term at least 0; not finite if a term has no weight."""
        return float((self.totals / self.weights).clamp(min=0).sum())


class Adapter(ABC):
    """A dense network with its task: data, loss, metric, checkpoint format.

    Attributes:
        name: short name for users, e.g. ``yolov8n``.
        module: the dense network; float32, eval mode, on ``device``. It is never modified.
        device: of modules and batches.
        image_size: height and width of the input.
        resizable: whether the same weights take images of other sizes, multiples of 32.
        free_outputs: keys of a training-mode output dictionary whose tensors may change
            their channel count (e.g. Ultralytics' ``feats``); every other output is pinned.
        description: the format from which the network's own tool builds networks; None if there is none.
        suffixes: of the files of a checkpoint. They lie in one folder; `save` and `autoprune.models.open_adapter` take
            the path of the first one.
        bytes_per_number: size of a number in a checkpoint.
        metric_names: metrics of `validate`, the primary one first.
        autocasts: whether network and loss also work under ``torch.autocast``.
        concurrent: whether `loss_sum` of one network may compute several batches at once, in threads.
        suppresses: whether its files can have non-maximum suppression inside.
        reader: the class that opens an exported file, in addition to its runtime; None if there is none.
    """

    name: str
    module: nn.Module
    device: torch.device
    image_size: ImageSize
    resizable: bool = True
    free_outputs: frozenset[str] = frozenset()
    description: Description | None = None
    suffixes: tuple[str, ...] = (".pt",)
    bytes_per_number: int = 2
    metric_names: tuple[str, ...] = ("mAP50-95", "mAP50")
    autocasts: bool = True
    concurrent: bool = False
    suppresses: bool = False
    reader: str | None = None
    _skipped: Mapping[str, str] = MappingProxyType({})

    training_device: torch.device | None = None
    """Where the family's training runs, if that is not ``device``."""

    def checkpoint(self, folder: Path, name: str) -> Path:
        """Return the path of the checkpoint of this name in a folder, as `save` takes it."""
        return folder / f"{name}{self.suffixes[0]}"

    def saved_size(self, path: Path) -> int:
        """Return the size in bytes of a checkpoint that ``save`` wrote."""
        return sum(path.with_suffix(suffix).stat().st_size for suffix in self.suffixes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: channels, height, width; (3, *image_size) for a detector of colour images."""
        return tuple(self.example(1).shape[1:])

    @property
    @abstractmethod
    def has_images(self) -> bool:
        """Whether there is a data set; without one, methods that need images raise ``DataError``."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Images that could not be read so far, as ``path: reason``; none of a family that takes this for an error."""
        return tuple(f"{file}: {reason}" for file, reason in self._skipped.items())

    @abstractmethod
    def example(self, batch: int = 2) -> torch.Tensor:
        """Return an example input of shape (batch, *input_shape), float32, on the device."""

    @abstractmethod
    def batches(self, split: str, *, images: int, batch: int, seed: int, balanced: bool = False) -> Sequence[Batch]:
        """Return ``images`` images of a split, chosen by the seed, as batches held on the device.

        At any point at least half of the images so far have labels, as long as there are any left.

        Args:
            split: ``train``, ``val`` or ``test``.
            images: how many; fewer are returned if the split has fewer.
            batch: images per batch (the last may hold fewer).
            seed: the choice is a function of the split's files and this.
            balanced: return no more images without labels than with.

        Raises:
            DataError: the split is missing, has no readable image or no labels.
        """

    @abstractmethod
    def calibration(self, *, images: int, batch: int, seed: int) -> Sequence[torch.Tensor]:
        """Return inputs for recalibrating batch norm: training images, augmented as in training.

        Args:
            images: how many, at most half of them without labels; fewer are returned if there are fewer.
            batch: images per tensor (the last may hold fewer).
            seed: of the choice and the augmentations.

        Returns:
            Tensors of shape (B, *input_shape) on the device.

        Raises:
            DataError: as `batches`.
        """

    @abstractmethod
    def inputs(self, batch: Batch) -> torch.Tensor:
        """Return the input tensor of a batch, shape (B, *input_shape)."""

    def labelled(self, batch: Batch) -> bool:
        """Return whether any image of a batch has a label."""
        return True

    @abstractmethod
    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the training loss, a scalar averaged over the batch's images.

        ``module`` is in train mode (batch statistics); whether gradients flow is the caller's choice.
        """

    def loss_sum(self, module: nn.Module, batch: Batch) -> LossSum:
        """Return the loss that scores candidates, unnormalised.

        As `loss`, but batches are weighted by their content: a training loss that is normalised by the labels of its
        batch would give a batch without labels many times the weight of others and reward networks that find nothing.

        ``module`` is in train mode (batch statistics); whether gradients flow is the caller's choice.
        """
        return LossSum.of_mean(self.loss(module, batch), len(self.inputs(batch)))

    @abstractmethod
    def stages(self, module: nn.Module) -> Sequence[str]:
        """Return the paths of submodules that the forward pass runs once each, in this order.

        The output of a stage depends on the network's input, earlier stages' outputs and its own weights alone. Layers
        that run after all stages (the head) may be left out. A network without such an order has no stages; candidates
        then cannot reuse cached outputs.

        Args:
            module: the dense network or a pruned one.
        """

    @abstractmethod
    def accuracy(self, module: nn.Module, batches: Sequence[Batch], *, predict: Predict | None = None) -> Metrics:
        """Measure the accuracy of an eval-mode module on held batches.

        Args:
            module: the network.
            batches: of ``batches``.
            predict: predicts instead of the network, such as its exported file; None for the network.
        """

    @abstractmethod
    def validate(self, module: nn.Module) -> Metrics:
        """Measure the accuracy on the validation split, as the network's own tool does."""

    def detections(
        self, module: nn.Module, batch: Batch, *, predict: Predict | None = None
    ) -> Sequence[Sequence[Detection]] | None:
        """Return what a network detects in each image of a batch; None if its task has no upright boxes.

        Args:
            module: the network.
            batch: of ``batches``.
            predict: predicts instead of the network, such as its exported file; None for the network.
        """
        return None

    def objects(self, batch: Batch) -> Sequence[Sequence[Detection]]:
        """Return the labelled objects of each image of a batch; empty if its task has no upright boxes."""
        return []

    @abstractmethod
    def deployable(self, module: nn.Module, *, with_nms: bool = False) -> nn.Module:
        """Return a new module as it will be exported: fused, eval mode, head included.

        Args:
            module: the dense network or a pruned one.
            with_nms: add non-maximum suppression, if the network needs any. The network is then a submodule of the
                returned module.
        """

    @abstractmethod
    def export(self, module: nn.Module, folder: Path, settings: ExportSettings, *, convert: Convert) -> Path:
        """Export a network into a folder, with the metadata that its own tool needs to predict with the file.

        Args:
            module: the dense network or a pruned one.
            folder: an empty folder.
            settings: format and precision.
            convert: converts ONNX to the formats that are made of it.

        Returns:
            The path of the file or folder, named ``model`` with the format's suffix.

        Raises:
            ModelError: the format cannot express the network.
        """

    @abstractmethod
    def validate_deployed(self, predict: Predict, *, with_nms: bool = False) -> Metrics:
        """Measure the accuracy on the validation split with another runtime's predictions.

        Every image is letterboxed to ``image_size``, as a file has a fixed input shape, so the result may differ from
        that of `validate`.

        Args:
            predict: predicts.
            with_nms: whether the predictions are those of ``deployable(…, with_nms=True)``.
        """

    @abstractmethod
    def difference(self, expected: Predictions, found: Predictions, *, with_nms: bool = False) -> Difference:
        """Return how far two deployed networks' predictions for the same images differ; infinite if shapes do.

        Args:
            expected: predictions of one network.
            found: of the other.
            with_nms: whether they are those of ``deployable(…, with_nms=True)``.
        """

    @abstractmethod
    def disagreement(self, expected: Predictions, found: Predictions) -> float:
        """Return the disagreement of two deployed networks' predictions for the same images, in [0, 1].

        It is a mean over predictions, weighted by confidence; 0 if they are equal.
        """

    @abstractmethod
    def scaled(self, width: float) -> nn.Module | None:
        """Return an untrained network of the same family whose widths are the dense one's times ``width``.

        None if the family has no such scale. Its weights are drawn from the global random state.
        """

    @abstractmethod
    def save(self, module: nn.Module, path: Path, *, notes: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint of the family, with ``notes`` (plain JSON values) inside.

        Each of its files is written completely or not at all, the one at ``path`` last: if it exists, all do.
        """

    @abstractmethod
    def reopen(self, path: Path) -> nn.Module:
        """Read a checkpoint of ``save``, of the dense network or a pruned one; float32, eval mode, on the device.

        Raises:
            ModelError: the file is missing, corrupt, or holds no network of the family.
        """

    @abstractmethod
    def checkpoint_size(self, module: nn.Module) -> int:
        """Return the size in bytes of the checkpoint that ``save`` would write."""


class Description(ABC):
    """A format from which a network's own tool builds networks, such as Ultralytics' YAML.

    Attributes:
        suffix: of a description's file, e.g. ``.yaml``.
        kept: message on what the tool does with a checkpoint that carries its own network's description.
        lost: message on what it does with one that carries the dense network's.
    """

    suffix: str
    kept: str
    lost: str

    @abstractmethod
    def ties(self, module: nn.Module) -> Sequence[Tie]:
        """Return the constraints between widths that every describable network meets.

        Widths are assumed to be multiples of 8.

        Args:
            module: the dense network.

        Raises:
            ModelError: no description expresses the network.
        """

    @abstractmethod
    def described(self, module: nn.Module) -> tuple[nn.Module, str]:
        """Return a copy of a network with its own description inside, and the description as text.

        Raises:
            ModelError: no description expresses the network; the message names its first layer that differs.
        """


def noise(*shape: int, device: torch.device) -> torch.Tensor:
    """Return uniform noise in [0, 1) of a shape, on a device."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(device)
