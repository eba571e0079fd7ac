"""The adapter of Ultralytics' networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import DataError, ModelError
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
from autoprune.models._memory import check_memory
from autoprune.models.detection import metrics
from autoprune.models.detection.channels import check_channels, input_channels
from autoprune.models.detection.comparing import difference, disagreement
from autoprune.models.detection.data_set import DataSet, Sample
from autoprune.models.detection.exporting import suppressed, write
from autoprune.models.ultralytics import data as data_sets
from autoprune.models.ultralytics.checkpoint import checkpoint_bytes, read_checkpoint, settings_of, write_checkpoint
from autoprune.models.ultralytics.checks import (
    check_classes,
    check_task,
    check_unfused,
    choose_image_size,
    name_of,
    stride_of,
)
from autoprune.models.ultralytics.class_folders import read_data
from autoprune.models.ultralytics.contents import usable
from autoprune.models.ultralytics.images import Images
from autoprune.models.ultralytics.loss_sums import scoring_criterion
from autoprune.models.ultralytics.scaling import build_untrained, describe, kind_of, scaled
from autoprune.models.ultralytics.scoring import find_pairs, scoring_sum, supports
from autoprune.models.ultralytics.stock_yaml import StockYaml
from autoprune.models.ultralytics.tasks import TASKS, classes_of, end_to_end, layout_of, task_of
from autoprune.results import Metrics
from autoprune.runtimes.settings import resolve_device

_VALIDATION_BATCH, _EXAMPLES = 16, 2
_HEADS = (stock.Detect, stock.Classify, stock.RTDETRDecoder)
_PAIRS = "pairs"
"""Key of a batch under which `scoring.find_pairs` of its labels is kept."""


class UltralyticsAdapter(Adapter):
    """A network from a stock Ultralytics checkpoint, with its data set: its class decides the task (`tasks`).

    Build one with `UltralyticsAdapter.load`.

    Attributes:
        task: what the network does.
        train_args: the settings that the dense network was trained with, all of Ultralytics' keys.
        notes: what an earlier run of autoprune noted in the checkpoint.
        trust: whether the checkpoint was allowed to name classes outside Ultralytics and torch; what is written of its
            network is read again on the same terms.
        channels: of the images that it takes.
        skipped: images that could not be read so far, each with the reason; one entry per image.
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
        image_size: int,
        device: torch.device,
        notes: Mapping[str, Any] | None = None,
        trust: bool = False,
    ) -> None:
        self.name = name
        self.trust = trust
        self.device = device
        self.image_size, self.channels = image_size, input_channels(module)
        self.train_args = train_args
        self.notes = notes or {}
        self.module = _prepared(module, train_args).to(device)
        self.task = task_of(module)
        self.metric_names = tuple(self.task.metric.keys)
        self.description = StockYaml(self.task)
        self._criterion = self.module.init_criterion()  # type: ignore[operator]
        self._scoring = scoring_criterion(self.module)
        self._skipped: dict[str, str] = {}
        self._source = (
            None
            if data is None
            else self.task.images(
                data,
                task=self.task.name,
                image_size=image_size,
                stride=stride_of(module),
                train_args=train_args,
                skipped=self._skipped,
            )
        )

    @classmethod
    def load(
        cls,
        weights: Path,
        *,
        data: Path | None = None,
        image_size: int | None = None,
        device: str | torch.device = "cpu",
        trust: bool = False,
    ) -> UltralyticsAdapter:
        """Load a trained network and, if given, its data set.

        Args:
            weights: the ``.pt`` file that Ultralytics' training wrote.
            data: the data set's YAML file, a classifier's folder; without one, every method that needs images raises
                ``DataError``.
            image_size: square input size in pixels; the size that the network was trained at if None.
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
            check_task(weights, checkpoint.module)
            check_unfused(weights, checkpoint.module)
            size = choose_image_size(checkpoint.module, image_size, checkpoint.train_args)
            _check_memory(checkpoint.module, size, name=str(weights), validated=data is not None, device=target)
        data_set = None if data is None else _data_of(checkpoint.module, data, checkpoint.train_args)
        with usable(weights):
            if data_set is not None:
                check_channels(weights, input_channels(checkpoint.module), data_set.settings)
                check_classes(weights, checkpoint.module, data_set)
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
    def of(cls, module: nn.Module, *, data: Path, image_size: int | None = None) -> UltralyticsAdapter:
        """Give a network that is open already, such as ``YOLO("best.pt").model``, its data set.

        Args:
            module: a trained network, not fused; it is copied.
            data: the data set's YAML file, or a classifier's folder.
            image_size: square input size in pixels; the size that the network was trained at if None.

        Raises:
            ModelError: it is no supported network, or fused, or the image size does not suit it.
            DataError: the data set is missing or malformed, or its classes are not the network's.
        """
        file = Path(getattr(module, "pt_path", None) or "the network")
        check_task(file, module)
        check_unfused(file, module)
        train_args = settings_of(module, file)
        data_set = _data_of(module, data, train_args)
        check_channels(file, input_channels(module), data_set.settings)
        check_classes(file, module, data_set)
        return cls(
            deepcopy(module),
            name=name_of(module, file),
            train_args=train_args,
            data=data_set,
            image_size=choose_image_size(module, image_size, train_args),
            device=next(module.parameters()).device,
        )

    @classmethod
    def untrained(
        cls,
        architecture: str,
        *,
        data: Path,
        image_size: int | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> UltralyticsAdapter:
        """Build a network that has learnt nothing yet, with the classes of a data set.

        Args:
            architecture: the name of a YAML that Ultralytics brings, such as ``yolov3-tiny.yaml``, or one's own file.
            data: the data set's YAML file, or a classifier's folder.
            image_size: square input size in pixels; 640 if None.
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
        settings = {**stock.DEFAULT_CFG_DICT, "imgsz": image_size or stock.DEFAULT_CFG_DICT["imgsz"]}
        size = choose_image_size(module, image_size, settings)
        _check_memory(module, size, name=architecture, validated=True, device=target)
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
        """The data set, or None where none was given."""
        return None if self._source is None else self._source.data

    @property
    def skipped(self) -> tuple[str, ...]:
        """Images that could not be read so far, as ``path: reason``."""
        return tuple(f"{file}: {reason}" for file, reason in self._skipped.items())

    def example(self, batch: int = 2) -> torch.Tensor:
        """Return an input of uniform noise, the same at every call."""
        return noise(batch, self.channels, self.image_size, self.image_size, device=self.device)

    def batches(self, split: str, *, images: int, batch: int, seed: int, balanced: bool = False) -> Sequence[Batch]:
        """Return letterboxed, unaugmented images of a split as batches held on the device.

        The files of the split, sorted, are put in an order drawn from ``seed``; the first ``images`` of
        them that can be read are returned in that order. The others are named in `skipped`.
        """
        if images < 1 or batch < 1:
            raise DataError(f"images and batch must be positive, got {images} and {batch}")
        with stock.quiet(), data_sets.random_state_kept():
            samples = self._images.chosen(split, images=images, seed=seed, rest=not balanced)
            return [self._batch(chunk) for chunk in _chunks(samples, batch)]

    def calibration(self, *, images: int, batch: int, seed: int) -> Sequence[torch.Tensor]:
        """Return training images with the dense training's augmentations but mosaic, as its last epochs saw them.

        Batch norm that is recalibrated on plain images fits less well than on these: mAP50-95 of the project's BCCD
        yolov5nu is 0.490 as trained, 0.493 recalibrated on these and 0.450 on plain ones; with 0.9 and 0.75 of all
        widths it is 0.352 and 0.305 against 0.322 and 0.281.
        """
        with stock.quiet(), data_sets.random_state_kept():
            data_sets.seed_all(seed)
            samples = self._images.chosen("train", images=images, seed=seed, rest=False, augmented=True)
            return [self.inputs(self._images.collate(chunk, self.device)) for chunk in _chunks(samples, batch)]

    def inputs(self, batch: Batch) -> torch.Tensor:
        """Return the images of a batch."""
        images: torch.Tensor = batch["img"]
        return images

    def labelled(self, batch: Batch) -> bool:
        """Return whether any image has a label; a classifier's have one each."""
        return len(batch["cls"]) > 0

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the network's own training loss per image.

        The sum of Ultralytics' box, class and distribution terms with the gains of the dense training, each
        normalised over the batch as Ultralytics does; Ultralytics multiplies by the batch size, this does not.
        End-to-end heads (YOLOv10, YOLO26) give their combined loss, with the weights of the training's start.

        The criterion is the dense network's: it depends on nothing that pruning changes, so any pruned
        module of the same family can be passed, and nothing is attached to it.
        """
        return self.task.loss(self._criterion, module, batch)

    def loss_sum(self, module: nn.Module, batch: Batch) -> LossSum:
        """Return the same terms as sums, with what each is divided by; see `loss_sums`.

        That of plain detection comes from `scoring.scoring_sum`, in a third of the time.
        """
        if _PAIRS in batch:
            return scoring_sum(self._scoring, module(batch["img"]), batch[_PAIRS])
        return self.task.loss_sum(self._scoring, module, batch)

    def stages(self, module: nn.Module) -> Sequence[str]:
        """Return Ultralytics' layers but the last, the head."""
        layers = module.get_submodule("model")
        return [f"model.{name}" for name, _ in layers.named_children()][:-1]

    def accuracy(self, module: nn.Module, batches: Sequence[Batch], *, predict: Predict | None = None) -> Metrics:
        """Measure the accuracy on held batches: Ultralytics' ``val`` settings on square images."""
        objects = max(
            (int(batch["batch_idx"].int().bincount().max()) for batch in batches if _has_objects(batch)), default=0
        )
        return self._measured(self.deployable(module), batches, objects=objects, predict=predict)

    def validate(self, module: nn.Module) -> Metrics:
        """Measure the accuracy on the validation split as Ultralytics' ``val`` does at this image size.

        Like the stock command it batches images of similar shape and pads each batch to its own rectangle,
        so the figure is the one that ``YOLO(...).val(imgsz=...)`` reports, not that of `accuracy`.
        """
        return self._validated(self.deployable(module), rectangular=True)

    def validate_deployed(self, predict: Predict) -> Metrics:
        """Measure the accuracy of what runs elsewhere as Ultralytics' ``val`` does of an exported file."""
        return self._validated(self.deployable(self.module), rectangular=False, predict=predict)

    def _validated(self, module: nn.Module, *, rectangular: bool, predict: Predict | None = None) -> Metrics:
        workers = 0 if self.device.type == "cpu" else min(4, torch.get_num_threads())
        with stock.quiet(), data_sets.random_state_kept():
            parts, objects = self._images.validation(batch=_VALIDATION_BATCH, rectangular=rectangular, workers=workers)
            batches = (self._images.collate(samples, self.device) for samples in parts)
            return self._measured(module, batches, objects=objects, predict=predict)

    def _measured(
        self, module: nn.Module, batches: Iterable[Batch], *, objects: int, predict: Predict | None
    ) -> Metrics:
        return metrics.measure(
            module,
            batches,
            metric=self.task.metric,
            device=self.device,
            objects=objects,
            settings=self._images.data.settings,
            predict=predict,
        )

    def deployable(self, module: nn.Module, *, with_nms: bool = False) -> nn.Module:
        """Return a fused copy in eval mode without gradients, as Ultralytics exports it.

        An end-to-end head (YOLOv10, YOLO26) that is switched on is exported, and needs no suppression.
        """
        copy: Any = deepcopy(module).eval().requires_grad_(False)
        with stock.quiet():
            copy.fuse(verbose=False)
            for head in (part for part in copy.modules() if isinstance(part, _HEADS)):
                head.export = True  # returns the predictions alone, without the maps they come from
            if not (with_nms and self.task.suppresses) or end_to_end(copy):
                return copy  # type: ignore[no-any-return]
            copy.model[-1].xyxy = True  # as suppression reads boxes
            return suppressed(copy, task=self.task.name)

    def export(self, module: nn.Module, folder: Path, settings: ExportSettings, *, convert: Convert) -> Path:
        """Write a network as Ultralytics' ``export`` does: ``YOLO(file)`` predicts with it; `notes` travel inside."""
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

    def difference(self, expected: Predictions, found: Predictions) -> Difference:
        """Compare predictions; rows of an end-to-end head may be in another order."""
        return difference(expected, found, layout=layout_of(self.module, self.image_size))

    def disagreement(self, expected: Predictions, found: Predictions) -> float:
        """Compare predictions; rows of an end-to-end head may be in another order."""
        return disagreement(expected, found, layout=layout_of(self.module, self.image_size))

    def scaled(self, width: float) -> nn.Module | None:
        """Return an untrained network of the same YAML with another width multiple, widths in multiples of 8."""
        try:
            network = scaled(self.module, width)
        except ModelError:  # its YAML builds no network: a comparison goes on without this one
            return None
        return None if network is None else _prepared(network, self.train_args).to(self.device)

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
        return _prepared(checkpoint.module, checkpoint.train_args).to(self.device)

    def checkpoint_size(self, module: nn.Module) -> int:
        """Return the size in bytes of the checkpoint without notes."""
        return len(checkpoint_bytes(module, train_args=self._recorded_args()))

    def _recorded_args(self) -> dict[str, Any]:
        return {**self.train_args, "task": self.task.name, "imgsz": self.image_size}

    @property
    def _images(self) -> Images:
        """What reads the data set.

        Raises:
            DataError: there is none.
        """
        if self._source is None:
            raise DataError(f"{self.name} was loaded without a data set; give its YAML file or folder with `data`")
        return self._source

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        batch = self._images.collate(samples, self.device)
        if supports(self._scoring):
            batch[_PAIRS] = find_pairs(self._scoring, batch)
        return batch


def _data_of(module: nn.Module, data: Path, train_args: Mapping[str, Any]) -> DataSet:
    """Read a data set as the training of a network did."""
    return read_data(data, task_of(module).name, single_class=bool(train_args["single_cls"]))


def _check_memory(module: nn.Module, size: int, *, name: str, validated: bool, device: torch.device) -> None:
    """Make sure that the images of one batch fit into memory: of the validation where there is data, else examples."""
    images = _VALIDATION_BATCH if validated else _EXAMPLES
    check_memory(
        module, size, name=name, channels=input_channels(module), stride=stride_of(module), images=images, device=device
    )


def _chunks(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    return (samples[start : start + size] for start in range(0, len(samples), size))


def _has_objects(batch: Batch) -> bool:
    return len(batch.get("batch_idx", ())) > 0  # a classifier's have no such key


def _prepared(module: nn.Module, train_args: Mapping[str, Any]) -> nn.Module:
    """Put a loaded network into the form that training, loss and gradients need."""
    network: Any = module.float().eval()
    with stock.quiet():
        network.args = stock.get_cfg(dict(train_args))  # the loss reads its gains as attributes
    network.criterion = None
    network.nc = classes_of(network)  # RT-DETR's loss reads it, and an untrained network has none
    for name, parameter in network.named_parameters():
        parameter.requires_grad = ".dfl." not in name  # the fixed bins of the distribution are no weights
    prepared: nn.Module = network
    return prepared
