"""What the rest of autoprune needs to know about a network, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from autoprune.formats import FormatSpec
from autoprune.models._description import Description
from autoprune.results import Metrics

Batch = Mapping[str, Any]
"""One batch of inputs with their labels, already on the device; opaque outside its adapter."""

Predictions: TypeAlias = "torch.Tensor | tuple[torch.Tensor, ...]"
"""What a deployable network returns, batch first: one tensor, or several (boxes, and what masks are made of)."""

Predict = Callable[[torch.Tensor], Predictions]
"""Maps inputs, shape (B, *input_shape), to their predictions, as a deployable network does."""

Convert = Callable[[Path, Path], None]
"""Writes an ONNX file, the first path, in a runtime's own format to the second."""


@dataclass(frozen=True)
class ExportSettings:
    """What kind of file is written.

    Attributes:
        spec: its format.
        half: trace the network in half precision, which only a GPU does; else in single precision.
        dynamic: leave batch and image size open.
    """

    spec: FormatSpec
    half: bool = False
    dynamic: bool = False


@dataclass(frozen=True)
class Difference:
    """How far the predictions of one network lie from those of another, at most.

    Attributes:
        boxes: of a coordinate of a box or a keypoint, in pixels; 0 where none is predicted.
        scores: of a class's score, which lies in [0, 1], or of another number that is no place in the image.
    """

    boxes: float
    scores: float


@dataclass(frozen=True)
class LossSum:
    """A loss that is not divided yet: each of its T terms, summed over images, and what it has to be divided by.

    A term may be divided by something else than the number of images, such as the objects in them. Sums of batches
    add up to the sum of all their images, so the loss does not depend on how images fall into batches.

    Attributes:
        totals: summed terms, shape (T,).
        weights: their divisors, shape (T,).
    """

    totals: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of_mean(cls, loss: torch.Tensor, images: int) -> LossSum:
        """Return the sum of a scalar loss that is a mean over so many images."""
        return cls(loss.view(1) * images, torch.full_like(loss, images).view(1))

    def __add__(self, other: LossSum) -> LossSum:
        """Return the sum over the images of both."""
        return LossSum(self.totals + other.totals, self.weights + other.weights)

    def mean(self) -> float:
        """Return the loss, of which no term counts less than zero; not finite where a term has no weight."""
        return float((self.totals / self.weights).clamp(min=0).sum())


class Adapter(ABC):
    """A dense network with its task: data, loss, metric, checkpoint format.

    Attributes:
        name: short name for users, e.g. ``yolov8n``.
        module: the dense network; float32, eval mode, on ``device``. Never modified by anyone.
        device: where modules and batches live.
        image_size: height and width of the square input, in pixels; the longer side of one that is not square.
        resizable: whether the same weights take square images of other sizes, multiples of 32.
        free_outputs: keys of a training-mode output dictionary whose tensors may change
            their channel count (e.g. Ultralytics' ``feats``); every other output is pinned.
        description: what the network's own tool builds networks from; None where it has no such thing.
        suffixes: of the files that a checkpoint consists of. They lie side by side; `save` and
            `autoprune.models.open_adapter` take the path of the first one.
        bytes_per_number: what a number takes in a checkpoint.
        metric_names: of what `validate` measures, the one that decides first.
        autocasts: whether network and loss also compute under ``torch.autocast``.
        reader: what users open an exported file with, besides its runtime; None where there is nothing.
    """

    name: str
    module: nn.Module
    device: torch.device
    image_size: int
    resizable: bool = True
    free_outputs: frozenset[str] = frozenset()
    description: Description | None = None
    suffixes: tuple[str, ...] = (".pt",)
    bytes_per_number: int = 2
    metric_names: tuple[str, ...] = ("mAP50-95", "mAP50")
    autocasts: bool = True
    reader: str | None = None

    def checkpoint(self, folder: Path, name: str) -> Path:
        """Return where the checkpoint of this name lies in a folder, as `save` takes it."""
        return folder / f"{name}{self.suffixes[0]}"

    def saved_size(self, path: Path) -> int:
        """Return the size in bytes of a checkpoint that ``save`` wrote."""
        return sum(path.with_suffix(suffix).stat().st_size for suffix in self.suffixes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: channels, height, width; (3, image_size, image_size) for a detector of colour images."""
        return tuple(self.example(1).shape[1:])

    @property
    @abstractmethod
    def has_images(self) -> bool:
        """Whether there is a data set; without one, every method that needs images raises ``DataError``."""

    @property
    @abstractmethod
    def skipped(self) -> tuple[str, ...]:
        """Images that could not be read so far, as ``path: reason``."""

    @abstractmethod
    def example(self, batch: int = 2) -> torch.Tensor:
        """Return an example input of shape (batch, *input_shape), float32, on the device."""

    @abstractmethod
    def batches(self, split: str, *, images: int, batch: int, seed: int, balanced: bool = False) -> Sequence[Batch]:
        """Return ``images`` images of a split, chosen by the seed, as batches held on the device.

        Images without labels never come before as many with labels, as far as there are any.

        Args:
            split: ``train``, ``val`` or ``test``.
            images: how many; fewer are returned where the split holds fewer.
            batch: images per batch (the last may hold fewer).
            seed: the choice is a function of the split's files and this.
            balanced: return no more images without labels than with.

        Raises:
            DataError: the split is missing, has no readable image or no labels.
        """

    @abstractmethod
    def calibration(self, *, images: int, batch: int, seed: int) -> Sequence[torch.Tensor]:
        """Return inputs for recalibrating batch norm: training images as the network met them in training.

        Args:
            images: how many, at most half of them without labels; fewer are returned where there are fewer.
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
        """Return the loss that candidates are scored by, not yet divided.

        As `loss`, but a batch counts by what is in it: a training loss that is divided by the labels of its batch
        gives a batch without labels many times the weight of the others, and rewards networks that find nothing.

        ``module`` is in train mode (batch statistics); whether gradients flow is the caller's choice.
        """
        return LossSum.of_mean(self.loss(module, batch), len(self.inputs(batch)))

    @abstractmethod
    def stages(self, module: nn.Module) -> Sequence[str]:
        """Return the paths of submodules that the forward pass runs once each, in this order.

        What a stage returns depends on the network's input and on what earlier stages returned, and on no weight
        outside of stages. Layers that run after all of them (the head) need not be among them. A network without such
        an order has none; what its neighbours compute can then not be reused.

        Args:
            module: the dense network or a pruned one.
        """

    @abstractmethod
    def accuracy(self, module: nn.Module, batches: Sequence[Batch], *, predict: Predict | None = None) -> Metrics:
        """Measure the accuracy of an eval-mode module on held batches.

        Args:
            module: the network.
            batches: of ``batches``.
            predict: what predicts in the network's stead, such as itself on another runtime; None for the network.
        """

    @abstractmethod
    def validate(self, module: nn.Module) -> Metrics:
        """Measure the accuracy on the validation split, as the network's own tool reports it."""

    @abstractmethod
    def deployable(self, module: nn.Module, *, with_nms: bool = False) -> nn.Module:
        """Return a new module as it will be exported: fused, eval mode, head included.

        Args:
            module: the dense network or a pruned one.
            with_nms: whether non-maximum suppression is part of it, where the network needs any. The network is then a
                submodule of what is returned.
        """

    @abstractmethod
    def export(self, module: nn.Module, folder: Path, settings: ExportSettings, *, convert: Convert) -> Path:
        """Write a network as it is deployed into a folder, with all that its own tool needs to predict with it.

        Args:
            module: the dense network or a pruned one.
            folder: an empty folder.
            settings: what is written.
            convert: for the formats that are made of ONNX.

        Returns:
            What was written, a file or a folder named ``model`` with the suffix that tells its format.

        Raises:
            ModelError: the format cannot express the network.
        """

    @abstractmethod
    def validate_deployed(self, predict: Predict) -> Metrics:
        """Measure the accuracy of the network on the validation split, where something else than itself runs it.

        Every image is letterboxed to ``image_size``, which a file's input shape asks for, and so the figure may differ
        from that of `validate`.
        """

    @abstractmethod
    def difference(self, expected: Predictions, found: Predictions) -> Difference:
        """Compare predictions of two deployed networks for the same images; infinite where they cannot be compared."""

    @abstractmethod
    def disagreement(self, expected: Predictions, found: Predictions) -> float:
        """Return by how much two deployed networks disagree on the same images, in [0, 1].

        It is a mean over predictions in which sure ones count most; 0 where they are equal.
        """

    @abstractmethod
    def scaled(self, width: float) -> nn.Module | None:
        """Return an untrained network of the same family whose widths are the dense one's times ``width``.

        None where the family has no such scale. Its weights are a function of the global random state.
        """

    @abstractmethod
    def save(self, module: nn.Module, path: Path, *, notes: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint of the family; ``notes`` (plain JSON values) travel inside it.

        Each of its files is written whole or not at all, the one at ``path`` last: where it is, all are.
        """

    @abstractmethod
    def reopen(self, path: Path) -> nn.Module:
        """Read what ``save`` wrote, of the dense network or a pruned one; float32, eval mode, on the device.

        Raises:
            ModelError: the file is missing, corrupt, or holds no network of the family.
        """

    @abstractmethod
    def checkpoint_size(self, module: nn.Module) -> int:
        """Return the size in bytes of the checkpoint that ``save`` would write."""
