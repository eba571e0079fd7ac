"""The adapter of Darknet's detectors, ``.cfg`` and ``.weights``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.choices import DARKNET
from autoprune.errors import DataError
from autoprune.image_size import ImageSize, SizeLike
from autoprune.listener import tracked
from autoprune.models._base import Batch, Convert, Difference, ExportSettings, Predict, Predictions, noise
from autoprune.models._memory import check_memory
from autoprune.models._trainable import Sgd, TrainableAdapter
from autoprune.models.darknet.build import check_classes, choose_image_size, classes_of, input_shape, stride_of
from autoprune.models.darknet.cfg import scaled_cfg
from autoprune.models.darknet.files import Header, checkpoint_size, read, weights_of, write
from autoprune.models.darknet.images import Augmentation, load_augmented, load_sample
from autoprune.models.darknet.loss import Head, Truths, yolo_loss
from autoprune.models.darknet.network import DarknetNetwork, DeployedDarknet
from autoprune.models.detection.channels import check_channels
from autoprune.models.detection.comparing import BOXES, difference, disagreement
from autoprune.models.detection.data_set import (
    DataSet,
    Label,
    Sample,
    check_samples,
    has_labels,
    read_data_set,
    readable,
    shuffled,
    to_batch,
)
from autoprune.models.detection.data_set import balanced as in_balance
from autoprune.models.detection.exporting import suppressed
from autoprune.models.detection.exporting import write as write_exported
from autoprune.models.detection.metrics import Metric, detected, labelled_objects, measure
from autoprune.results import Detection, Metrics
from autoprune.runtimes.settings import compute_device

_TASK = "detect"
_VALIDATION_BATCH, _EXAMPLES = 16, 2
_METRIC = Metric(confidence=0.005, overlap=0.45)
"""Thresholds of ``darknet detector valid`` (``detector.c``: ``validate_detector``)."""


class DarknetAdapter(TrainableAdapter):
    """A detector from Darknet's files, with its data set.

    Build one with `DarknetAdapter.load`.

    Attributes:
        channels: of the input images.
        data: the data set, or None.
        notes: notes of an earlier run of autoprune in the cfg.
        header: of the weights file; ``seen`` counts the images of the dense training alone.
    """

    suffixes = DARKNET
    bytes_per_number = 4
    reader = "YOLO"

    def __init__(
        self,
        network: DarknetNetwork,
        header: Header,
        *,
        data: DataSet | None,
        image_size: ImageSize,
        device: torch.device,
    ) -> None:
        cfg = network.cfg
        self.name = Path(cfg.file).stem
        self.device = device
        self.image_size = image_size
        self.data = data
        self.notes = cfg.notes
        self.header = header
        self.sgd = Sgd(
            lr=cfg.net.number("learning_rate", 0.001),
            momentum=cfg.net.number("momentum", 0.9),
            weight_decay=cfg.net.number("decay", 0.0001),
        )
        self.module: DarknetNetwork = network.to(device)
        self.channels, self._stride = input_shape(cfg).channels, stride_of(cfg)
        self._heads = [Head.of(cfg.layers[index]) for index, _ in network.heads()]
        self._augmentation = Augmentation.of(cfg)
        self._skipped: dict[str, str] = {}

    @classmethod
    def load(
        cls,
        cfg: Path,
        *,
        data: Path | None = None,
        image_size: SizeLike | None = None,
        device: str | torch.device = "cpu",
    ) -> DarknetAdapter:
        """Load a trained detector and, if given, its data set.

        Args:
            cfg: the ``.cfg`` file; the ``.weights`` file of the same name lies next to it.
            data: the data set's YAML file; without one, every method that needs images raises ``DataError``.
            image_size: of the input, one number for squares or (height, width); the cfg's own if None.
            device: where to compute, e.g. ``cpu`` or ``cuda:0``.

        Raises:
            ModelError: a file is missing or malformed, the two do not belong together, or the image size does not suit.
            DataError: the data set is missing or malformed, or has other classes or channels.
            DeviceError: the device is unknown or not there.
        """
        target, weights = compute_device(device), weights_of(cfg)
        network, header = read(cfg, weights, resize=lambda found: choose_image_size(found, image_size))
        data_set = None
        if data is not None:
            data_set = read_data_set(data)
            check_channels(cfg, input_shape(network.cfg).channels, data_set.settings)
            check_classes(network.cfg, data_set)
        shape = input_shape(network.cfg)
        size = ImageSize(shape.height, shape.width)
        images = _VALIDATION_BATCH if data is not None else _EXAMPLES
        check_memory(
            network,
            size,
            name=str(cfg),
            channels=shape.channels,
            stride=stride_of(network.cfg),
            images=images,
            device=target,
        )
        return cls(network, header, data=data_set, image_size=size, device=target)

    def with_data(self, place: Path) -> DarknetAdapter:
        """Return a copy that reads the same data set from another file."""
        moved = copy(self)
        moved.__dict__.pop("_validation", None)  # where its images lay
        moved.data = read_data_set(place)
        return moved

    @property
    def has_images(self) -> bool:
        """Whether it was loaded with a data set."""
        return self.data is not None

    def example(self, batch: int = 2) -> torch.Tensor:
        """Return an input of uniform noise, the same at every call."""
        return noise(batch, self.channels, *self.image_size, device=self.device)

    def batches(self, split: str, *, images: int, batch: int, seed: int, balanced: bool = False) -> Sequence[Batch]:
        """Return letterboxed images of a split as batches; see `images.letterbox`."""
        if images < 1 or batch < 1:
            raise DataError(f"images and batch must be positive, got {images} and {batch}")
        samples = self._chosen(split, seed, self._sample, rest=not balanced)
        return list(self._batched(self._first(samples, images, split), batch))

    def calibration(self, *, images: int, batch: int, seed: int) -> Sequence[torch.Tensor]:
        """Return training images with the augmentations of Darknet's training; see `images.load_augmented`."""
        samples = self._chosen("train", seed, self._augmented(seed), rest=False)
        return [self.inputs(one) for one in self._batched(self._first(samples, images, "train"), batch)]

    def batches_per_epoch(self, batch: int) -> int:
        """Return how many batches `epoch` gives if every image can be read."""
        return math.ceil(len(self._data().files("train")) / batch)

    def epoch(self, *, batch: int, seed: int) -> Iterable[Batch]:
        """Give the training split once, augmented; a last image that is alone is left out."""
        files = shuffled(self._data(), "train", seed)
        chunks = self._batched(self._samples(files, self._augmented(seed)), batch)
        alone = (chunk for number, chunk in enumerate(chunks) if number == 0 or len(self.inputs(chunk)) > 1)
        return chunks if batch == 1 else alone

    def inputs(self, batch: Batch) -> torch.Tensor:
        """Return the images of a batch."""
        images: torch.Tensor = batch["img"]
        return images

    def labelled(self, batch: Batch) -> bool:
        """Return whether any image has a label."""
        return len(batch["cls"]) > 0

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return Darknet's loss per image; see `loss.yolo_loss`."""
        truths = Truths(batch["batch_idx"].long(), batch["cls"].view(-1).long(), batch["bboxes"])
        return yolo_loss(self._heads, module(batch["img"]), truths, self.image_size)

    def stages(self, module: nn.Module) -> Sequence[str]:
        """Return all layers but the last ``[yolo]``."""
        layers = module.get_submodule("layers")
        return [f"layers.{name}" for name, _ in layers.named_children()][:-1]

    def accuracy(self, module: nn.Module, batches: Sequence[Batch], *, predict: Predict | None = None) -> Metrics:
        """Measure the accuracy on held batches, with the thresholds of ``darknet detector valid``."""
        objects = max((int(x["batch_idx"].int().bincount().max()) for x in batches if len(x["cls"])), default=0)
        return self._measured(self.deployable(module), tracked(batches, "Measuring"), objects, predict)

    def validate(self, module: nn.Module) -> Metrics:
        """Measure the accuracy on the letterboxed validation split.

        Darknet's own mAP differs: it is 11-point or area, by an option; this one is Ultralytics'.
        """
        return self._validated(self.deployable(module))

    def validate_deployed(self, predict: Predict, *, with_nms: bool = False) -> Metrics:
        """Measure the accuracy of the network on another runtime, on the same images as `validate`."""
        return self._validated(self.deployable(self.module), predict)

    def detections(
        self, module: nn.Module, batch: Batch, *, predict: Predict | None = None
    ) -> Sequence[Sequence[Detection]] | None:
        """Return what a network detects."""
        return detected(self.deployable(module), batch, metric=_METRIC, device=self.device, predict=predict)

    def objects(self, batch: Batch) -> Sequence[Sequence[Detection]]:
        """Return the labelled objects."""
        return labelled_objects(batch, dict(enumerate(self._names)))

    def deployable(self, module: nn.Module, *, with_nms: bool = False) -> nn.Module:
        """Return a fused copy; see `DeployedDarknet`."""
        assert isinstance(module, DarknetNetwork)
        deployed = DeployedDarknet(module, names=self._names, stride=self._stride, corners=with_nms)
        return suppressed(deployed) if with_nms else deployed

    def export(self, module: nn.Module, folder: Path, settings: ExportSettings, *, convert: Convert) -> Path:
        """Write a file that Ultralytics' ``YOLO`` opens, with the `notes` and the names of the data set's classes."""
        return write_exported(
            self.deployable(module),
            folder,
            settings,
            image_size=self.image_size,
            task=_TASK,
            end2end=False,
            notes=self.notes,
            convert=convert,
        )

    def difference(self, expected: Predictions, found: Predictions, *, with_nms: bool = False) -> Difference:
        """Compare predictions."""
        return difference(expected, found, layout=BOXES)

    def disagreement(self, expected: Predictions, found: Predictions) -> float:
        """Compare predictions."""
        return disagreement(expected, found, layout=BOXES)

    def scaled(self, width: float) -> nn.Module | None:
        """Return an untrained network of the same cfg, ``filters`` in multiples of 8; None if it has groups."""
        cfg = scaled_cfg(self.module.cfg, width)
        return None if cfg is None else DarknetNetwork(cfg).eval().to(self.device)

    def save(self, module: nn.Module, path: Path, *, notes: Mapping[str, Any] | None = None) -> None:
        """Write the cfg and, next to it, the weights.

        Raises:
            ModelError: a cfg cannot express the network.
            RunError: a file cannot be written.
        """
        assert isinstance(module, DarknetNetwork)
        write(module, self.header, cfg=path, weights=path.with_suffix(self.suffixes[1]), notes=notes)

    def reopen(self, path: Path) -> nn.Module:
        """Read a cfg and the weights next to it."""
        return DarknetAdapter.load(path, image_size=self.image_size, device=self.device).module

    def checkpoint_size(self, module: nn.Module) -> int:
        """Return the size in bytes of cfg and weights together, without notes."""
        assert isinstance(module, DarknetNetwork)
        return checkpoint_size(module, self.header)

    @property
    def _names(self) -> tuple[str, ...]:
        """Names of the classes; numbered ones without a data set, as Darknet's files have no names."""
        if self.data is not None:
            return self.data.names
        return tuple(f"class_{index}" for index in range(classes_of(self.module.cfg)))

    def _data(self) -> DataSet:
        if self.data is None:
            raise DataError(f"{self.name} was loaded without a data set; give its YAML file with `data`")
        return self.data

    def _samples(self, files: Iterable[str], load: Callable[[Label], Sample]) -> Iterator[Sample]:
        return readable(files, self._data(), task=_TASK, load=load, skipped=self._skipped)

    def _sample(self, label: Label) -> Sample:
        return load_sample(label, self.image_size, self.channels)

    def _chosen(self, split: str, seed: int, load: Callable[[Label], Sample], *, rest: bool) -> Iterator[Sample]:
        """Yield the images of a split in an order drawn from the seed; see `choosing.balanced`."""
        return in_balance(
            shuffled(self._data(), split, seed),
            labelled=has_labels,
            read=lambda file: next(self._samples([file], load), None),
            rest=rest,
        )

    def _first(self, samples: Iterator[Sample], images: int, split: str) -> Sequence[Sample]:
        found = list(islice(samples, images))
        check_samples(found, self._data(), split, self._skipped)
        return found

    def _augmented(self, seed: int) -> Callable[[Label], Sample]:
        """Return a function that loads images with augmentations drawn from the seed."""
        random = np.random.default_rng(seed)
        return lambda label: load_augmented(
            label, self.image_size, self._augmentation, random=random, channels=self.channels
        )

    def _batched(self, samples: Iterable[Sample], batch: int) -> Iterator[Batch]:
        remaining = iter(samples)
        while chunk := list(islice(remaining, batch)):
            yield to_batch(chunk, self.device)

    @cached_property
    def _validation(self) -> Sequence[Label]:
        """Labels of the images of the validation split that can be decoded, found once."""
        data = self._data()

        def load(label: Label) -> Sample:
            self._sample(label)  # a readable header does not mean readable pixels
            return label

        labels = [dict(label) for label in self._samples(tracked(data.files("val"), "Reading images"), load)]
        check_samples(labels, data, "val", self._skipped)
        return labels

    def _validated(self, module: nn.Module, predict: Predict | None = None) -> Metrics:
        labels = self._validation
        samples = map(self._sample, tracked(labels, "Validating"))
        objects = max(len(label["cls"]) for label in labels)
        return self._measured(module, self._batched(samples, _VALIDATION_BATCH), objects, predict)

    def _measured(self, module: nn.Module, batches: Iterable[Batch], objects: int, predict: Predict | None) -> Metrics:
        return measure(
            module,
            batches,
            metric=_METRIC,
            device=self.device,
            objects=objects,
            settings=self._data().settings,
            predict=predict,
        )
