"""The adapter of Ultralytics' networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import DataError, ModelError
from autoprune.image_size import ImageSize, SizeLike
from autoprune.models import stock
from autoprune.models._base import (
    Adapter,
    Batch,
    Convert,
    Difference,
    ExportSettings,
    LossSum,
    Predict,
    Predictions,
    noise,
)
from autoprune.models.detection.channels import check_channels, input_channels
from autoprune.models.detection.comparing import difference, disagreement
from autoprune.models.detection.data_set import DataSet
from autoprune.models.detection.exporting import write
from autoprune.models.detection.metrics import detected, labelled_objects
from autoprune.models.ultralytics import data as data_sets
from autoprune.models.ultralytics.checkpoint import checkpoint_bytes, read_checkpoint, settings_of, write_checkpoint
from autoprune.models.ultralytics.checks import (
    check_activations,
    check_network,
    check_task,
    choose_image_size,
    data_for,
    name_of,
    prepared,
    stride_of,
)
from autoprune.models.ultralytics.contents import usable
from autoprune.models.ultralytics.data import read_data
from autoprune.models.ultralytics.images import Images
from autoprune.models.ultralytics.scaling import build_untrained, describe, kind_of, scaled
from autoprune.models.ultralytics.scoring import find_pairs, scoring_sum, supports
from autoprune.models.ultralytics.stock_yaml import StockYaml
from autoprune.models.ultralytics.tasks import TASKS, end_to_end, task_of
from autoprune.models.ultralytics.validation import deployed, measure_batches, measure_split
from autoprune.results import Detection, Metrics
from autoprune.runtimes.settings import compute_device, resolve_device

_PAIRS = "pairs"
"""Key of a batch's `scoring.find_pairs`."""


class UltralyticsAdapter(Adapter):
    """A network from a stock Ultralytics checkpoint, with its data set; its class determines the task (`tasks`).

    Build one with `UltralyticsAdapter.load`.

    Attributes:
        task: the network's task.
        train_args: the settings of the dense network's training, all of Ultralytics' keys.
        notes: notes of an earlier run of autoprune in the checkpoint.
        trust: whether the checkpoint may name classes outside Ultralytics and torch; `reopen` uses the same setting.
        channels: of the input images.
    """

    free_outputs = frozenset({"feats"})
    reader = "YOLO"

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        train_args: Mapping[str, Any],
        data: DataSet | None,
        image_size: ImageSize,
        device: torch.device,
        notes: Mapping[str, Any] | None = None,
        trust: bool = False,
    ) -> None:
        self.name = name
        self.trust = trust
        self.device, self.training_device = compute_device(device), device
        self.image_size, self.channels = image_size, input_channels(module)
        self.train_args = train_args
        self.notes = notes or {}
        self.module = prepared(module, train_args).to(self.device)
        self.task = task_of(module)
        self.suppresses = self.task.suppresses and not end_to_end(module)
        self.metric_names = tuple(self.task.metric.keys)
        self.description = StockYaml(self.task)
        self._criterion = self.module.init_criterion()  # type: ignore[operator]
        self._scoring = self.task.scoring(self.module)
        self.concurrent = self.device.type == "cpu" and supports(self._scoring)
        self._skipped = skipped = dict[str, str]()
        self._source: Images | None = None
        if data is not None:
            stride = stride_of(module)
            self._source = self.task.images(
                data, task=self.task.name, image_size=image_size, stride=stride, train_args=train_args, skipped=skipped
            )

    @classmethod
    def load(
        cls,
        weights: Path,
        *,
        data: Path | None = None,
        image_size: SizeLike | None = None,
        device: str | torch.device = "cpu",
        trust: bool = False,
    ) -> UltralyticsAdapter:
        """Load a trained network and, if given, its data set.

        Args:
            weights: a ``.pt`` file of Ultralytics' training.
            data: the data set's YAML file, or a classifier's folder; without it methods that need images raise
                ``DataError``.
            image_size: of the input, one number for squares or (height, width); the training's if None.
            device: where to compute, e.g. ``cpu`` or ``cuda:0``.
            trust: allow the checkpoint to name classes outside Ultralytics and torch (runs code from the file).

        Raises:
            ModelError: the checkpoint is missing, corrupt, refused by the safe loader, or no supported network;
                or the image size does not suit the network.
            DataError: the data set is missing or malformed, or its classes or channels are not the network's.
            DeviceError: the device is unknown or not there.
        """
        target = resolve_device(device)
        checkpoint = read_checkpoint(weights, trust=trust)
        with usable(weights):
            check_network(weights, checkpoint.module)
            size = choose_image_size(checkpoint.module, image_size, checkpoint.train_args)
            check_activations(checkpoint.module, size, name=str(weights), validated=data is not None, device=target)
        data_set = None if data is None else data_for(checkpoint.module, weights, data, checkpoint.train_args)
        with usable(weights):
            return cls(
                checkpoint.module,
                name=name_of(checkpoint.module, weights),
                train_args=checkpoint.train_args,
                data=data_set,
                image_size=size,
                device=target,
                notes=checkpoint.notes,
                trust=trust,
            )

    @classmethod
    def of(cls, module: nn.Module, *, data: Path, image_size: SizeLike | None = None) -> UltralyticsAdapter:
        """Return the adapter of a network in memory, such as ``YOLO("best.pt").model``, with a data set.

        Args:
            module: a trained network, not fused; it is copied.
            data: the data set's YAML file, or a classifier's folder.
            image_size: of the input, one number for squares or (height, width); the training's if None.

        Raises:
            ModelError: it is no supported network, or fused, or the image size does not suit it.
            DataError: the data set is missing or malformed, or its classes are not the network's.
        """
        file = Path(getattr(module, "pt_path", None) or "the network")
        check_network(file, module)
        train_args = settings_of(module, file)
        return cls(
            deepcopy(module),
            name=name_of(module, file),
            train_args=train_args,
            data=data_for(module, file, data, train_args),
            image_size=choose_image_size(module, image_size, train_args),
            device=next(module.parameters()).device,
        )

    @classmethod
    def untrained(
        cls,
        architecture: str,
        *,
        data: Path,
        image_size: SizeLike | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> UltralyticsAdapter:
        """Build an untrained network with the classes of a data set.

        Args:
            architecture: the name of a YAML of Ultralytics, such as ``yolov3-tiny.yaml``, or the path of one.
            data: the data set's YAML file, or a classifier's folder.
            image_size: as for `load`; 640 if None.
            device: where to compute.
            seed: of the weights.

        Raises:
            ModelError: there is no such architecture, or its task is not supported.
            DataError: the data set is missing or malformed.
            DeviceError: the device is unknown or not there.
        """
        target, description = resolve_device(device), describe(architecture)
        data_set = read_data(data, TASKS[kind_of(description)].name)
        module = build_untrained(description, data_set.settings, seed=seed)
        check_channels(Path(architecture), input_channels(module), data_set.settings)
        size = choose_image_size(module, image_size, stock.DEFAULT_CFG_DICT)
        settings = {**stock.DEFAULT_CFG_DICT, "imgsz": size.plain}
        check_activations(module, size, name=architecture, validated=True, device=target)
        return cls(
            module,
            name=name_of(module, Path(architecture)),
            train_args=settings,
            data=data_set,
            image_size=size,
            device=target,
        )

    @property
    def has_images(self) -> bool:
        """Whether it was loaded with a data set."""
        return self._source is not None

    @property
    def data(self) -> DataSet | None:
        """The data set, or None."""
        return None if self._source is None else self._source.data

    def with_data(self, place: Path) -> UltralyticsAdapter:
        """Return a copy that reads the same data set from another file or folder."""
        moved = copy(self)
        moved._source = self._images.moved(place)
        return moved

    def example(self, batch: int = 2) -> torch.Tensor:
        """Return an input of uniform noise, the same at every call."""
        return noise(batch, self.channels, *self.image_size, device=self.device)

    def batches(self, split: str, *, images: int, batch: int, seed: int, balanced: bool = False) -> Sequence[Batch]:
        """Return letterboxed, unaugmented images of a split as batches held on the device.

        They are the first ``images`` readable files in an order drawn from ``seed``; unreadable ones are in `skipped`.
        """
        if images < 1 or batch < 1:
            raise DataError(f"images and batch must be positive, got {images} and {batch}")
        with stock.quiet(), data_sets.random_state_kept():
            samples = self._images.chosen(split, images=images, seed=seed, rest=not balanced)
            return [self._paired(one) for one in self._images.collated(samples, batch=batch, device=self.device)]

    def calibration(self, *, images: int, batch: int, seed: int) -> Sequence[torch.Tensor]:
        """Return training images with the augmentations of the dense training's last epochs (no mosaic).

        Batch norm recalibrated on these is better than on plain images: mAP50-95 of a yolov5nu on BCCD is 0.490 as
        trained, 0.493 recalibrated on these and 0.450 on plain ones; with 0.9 and 0.75 of all widths 0.352 and 0.305
        instead of 0.322 and 0.281.
        """
        with stock.quiet(), data_sets.random_state_kept():
            data_sets.seed_all(seed)
            samples = self._images.chosen("train", images=images, seed=seed, rest=False, augmented=True)
            return [self.inputs(one) for one in self._images.collated(samples, batch=batch, device=self.device)]

    def inputs(self, batch: Batch) -> torch.Tensor:
        """Return the images of a batch."""
        images: torch.Tensor = batch["img"]
        return images

    def labelled(self, batch: Batch) -> bool:
        """Return whether any image has a label; a classifier's have one each."""
        return len(batch["cls"]) > 0

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the network's own training loss per image.

        The sum of Ultralytics' box, class and distribution terms with the gains of the dense training, each normalised
        over the batch as Ultralytics does, but not multiplied by the batch size. End-to-end heads (YOLOv10, YOLO26)
        give their combined loss, with the weights of the training's start. The criterion is the dense network's, which
        fits every pruned network of the family.
        """
        return self.task.loss(self._criterion, module, batch)

    def loss_sum(self, module: nn.Module, batch: Batch) -> LossSum:
        """Return the same terms as sums, with their divisors; see `loss_sums`.

        For plain detection `scoring.scoring_sum` computes them in a third of the time.
        """
        if _PAIRS in batch:
            return scoring_sum(self._scoring, module(batch["img"]), batch[_PAIRS])
        return self.task.loss_sum(self._scoring, module, batch)

    def stages(self, module: nn.Module) -> Sequence[str]:
        """Return Ultralytics' layers but the last, the head."""
        layers = module.get_submodule("model")
        return [f"model.{name}" for name, _ in layers.named_children()][:-1]

    def accuracy(self, module: nn.Module, batches: Sequence[Batch], *, predict: Predict | None = None) -> Metrics:
        """Measure the accuracy on held batches with the settings of Ultralytics' ``val``."""
        return measure_batches(
            self.deployable(module), batches, images=self._images, task=self.task, device=self.device, predict=predict
        )

    def detections(
        self, module: nn.Module, batch: Batch, *, predict: Predict | None = None
    ) -> Sequence[Sequence[Detection]] | None:
        """Return what a network detects; None of classifiers and of oriented boxes."""
        if not self.task.upright:
            return None
        network = self.deployable(module)
        return detected(network, batch, metric=self.task.metric, device=self.device, predict=predict)

    def objects(self, batch: Batch) -> Sequence[Sequence[Detection]]:
        """Return the labelled objects."""
        return labelled_objects(batch, self.module.names) if self.task.upright else []  # type: ignore[arg-type]

    def validate(self, module: nn.Module) -> Metrics:
        """Measure the accuracy on the validation split as Ultralytics' ``val`` does at this image size.

        Like the stock command it batches images of similar shape and pads each batch to its own rectangle, so the
        result is that of ``YOLO(...).val(imgsz=...)``, not that of `accuracy`. At a size that is no square every image
        is letterboxed to it, as of an exported file: stock ``val`` takes no such size of a checkpoint.
        """
        return measure_split(
            self.deployable(module), images=self._images, task=self.task, device=self.device, rectangular=True
        )

    def validate_deployed(self, predict: Predict, *, with_nms: bool = False) -> Metrics:
        """Measure the accuracy of another runtime's predictions as Ultralytics' ``val`` does of an exported file."""
        network, task = self.deployable(self.module), self.task.suppressed() if with_nms else self.task
        return measure_split(
            network, images=self._images, task=task, device=self.device, rectangular=False, predict=predict
        )

    def deployable(self, module: nn.Module, *, with_nms: bool = False) -> nn.Module:
        """Return a fused copy in eval mode without gradients, as Ultralytics exports it.

        An end-to-end head (YOLOv10, YOLO26) that is switched on is exported, and needs no suppression.
        """
        return deployed(module, self.task, with_nms=with_nms)

    def export(self, module: nn.Module, folder: Path, settings: ExportSettings, *, convert: Convert) -> Path:
        """Export a network as Ultralytics does, with `notes` inside: ``YOLO(file)`` predicts with it."""
        return write(
            module,
            folder,
            settings,
            image_size=self.image_size,
            task=self.task.name,
            end2end=end_to_end(module),
            notes=self.notes,
            convert=convert,
        )

    def difference(self, expected: Predictions, found: Predictions, *, with_nms: bool = False) -> Difference:
        """Return the largest differences; rows of an end-to-end head or of suppression may be in another order."""
        layout = self.task.layout(self.module, self.image_size)
        return difference(expected, found, layout=replace(layout, rows=layout.rows or with_nms))

    def disagreement(self, expected: Predictions, found: Predictions) -> float:
        """Return the disagreement; rows of an end-to-end head may be in another order."""
        return disagreement(expected, found, layout=self.task.layout(self.module, self.image_size))

    def scaled(self, width: float) -> nn.Module | None:
        """Return an untrained network of the same YAML with another width multiple, widths in multiples of 8."""
        try:
            network = scaled(self.module, width)
        except ModelError:  # its YAML builds no network
            return None
        return None if network is None else prepared(network, self.train_args).to(self.device)

    def save(self, module: nn.Module, path: Path, *, notes: Mapping[str, Any] | None = None) -> None:
        """Write a stock checkpoint that ``YOLO(path)`` opens without autoprune installed.

        Raises:
            RunError: the file cannot be written.
        """
        write_checkpoint(module, path, train_args=self._recorded_args(), notes=notes)

    def reopen(self, path: Path) -> nn.Module:
        """Read a stock checkpoint, by the safe loader unless the dense network's was trusted."""
        checkpoint = read_checkpoint(path, trust=self.trust)
        check_task(path, checkpoint.module)
        return prepared(checkpoint.module, checkpoint.train_args).to(self.device)

    def checkpoint_size(self, module: nn.Module) -> int:
        """Return the size in bytes of the checkpoint without notes."""
        return len(checkpoint_bytes(module, train_args=self._recorded_args()))

    def _recorded_args(self) -> dict[str, Any]:
        return {**self.train_args, "task": self.task.name, "imgsz": self.image_size.plain}

    @property
    def _images(self) -> Images:
        """The reader of the data set; ``DataError`` without one."""
        if self._source is None:
            raise DataError(f"{self.name} was loaded without a data set; give its YAML file or folder with `data`")
        return self._source

    def _paired(self, batch: Batch) -> Batch:
        return {**batch, _PAIRS: find_pairs(self._scoring, batch)} if supports(self._scoring) else batch
