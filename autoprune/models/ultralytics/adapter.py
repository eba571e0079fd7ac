"""The adapter of Ultralytics' YOLO detectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import DataError
from autoprune.models._base import Accuracy, Adapter, Batch, Convert, Difference, ExportSettings, Predict
from autoprune.models._device import resolve_device
from autoprune.models.detection import metrics
from autoprune.models.detection.data_set import (
    DataSet,
    Label,
    Sample,
    check_samples,
    read_data_set,
    readable,
    shuffled,
    to_batch,
)
from autoprune.models.detection.exporting import difference, disagreement, write
from autoprune.models.detection.suppression import suppressed
from autoprune.models.ultralytics import data as data_sets
from autoprune.models.ultralytics import stock
from autoprune.models.ultralytics.checkpoint import checkpoint_bytes, read_checkpoint, write_checkpoint
from autoprune.models.ultralytics.checks import (
    TASKS,
    check_classes,
    check_task,
    check_unfused,
    choose_image_size,
    name_of,
    stride_of,
)
from autoprune.models.ultralytics.data import LabelledImages
from autoprune.models.ultralytics.scaling import build_untrained, scaled
from autoprune.models.ultralytics.scoring import find_pairs, scoring_loss, supports
from autoprune.models.ultralytics.stock_yaml import StockYaml

_VALIDATION_BATCH = 16
_PAIRS = "pairs"
"""Key of a batch under which `scoring.find_pairs` of its labels is kept."""


class UltralyticsAdapter(Adapter):
    """A YOLO detector from a stock Ultralytics checkpoint, with its data set.

    Build one with `UltralyticsAdapter.load`.

    Attributes:
        data: the data set, or None where none was given.
        train_args: the settings that the dense network was trained with, all of Ultralytics' keys.
        notes: what an earlier run of autoprune noted in the checkpoint.
        skipped: images that could not be read so far, each with the reason; one entry per image.
    """

    free_outputs = frozenset({"feats"})
    description = StockYaml()
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
    ) -> None:
        self.name = name
        self.device = device
        self.image_size = image_size
        self.data = data
        self.train_args = train_args
        self.notes = notes or {}
        self.module = _prepared(module, train_args).to(device)
        self.task = TASKS[type(module)]
        self._criterion = self.module.init_criterion()  # type: ignore[operator]
        self._skipped: dict[str, str] = {}
        self._validation: list[Label] | None = None

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
        """Load a trained detector and, if given, its data set.

        Args:
            weights: the ``.pt`` file that Ultralytics' training wrote.
            data: the data set's YAML file; without one, every method that needs images raises ``DataError``.
            image_size: square input size in pixels; the size that the network was trained at if None.
            device: where to compute, e.g. ``cpu`` or ``cuda:0``.
            trust: allow the checkpoint to name classes outside Ultralytics and torch (runs code from the file).

        Raises:
            ModelError: the checkpoint is missing, corrupt, refused by the safe loader, or no supported detector;
                or the image size does not suit the network.
            DataError: the data set is missing or malformed, or its classes are not the network's.
            DeviceError: the device is unknown or not there.
        """
        target = resolve_device(device)
        checkpoint = read_checkpoint(weights, trust=trust)
        check_task(weights, checkpoint.module)
        check_unfused(weights, checkpoint.module)
        size = choose_image_size(checkpoint.module, image_size, checkpoint.train_args)
        data_set = None
        if data is not None:
            data_set = read_data_set(data)
            check_classes(weights, checkpoint.module, data_set)
        return cls(
            checkpoint.module,
            name=name_of(checkpoint.module, weights),
            train_args=checkpoint.train_args,
            data=data_set,
            image_size=size,
            device=target,
            notes=checkpoint.notes,
        )

    @classmethod
    def untrained(
        cls, architecture: str, *, data: Path, image_size: int | None = None, device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> UltralyticsAdapter:  # fmt: skip
        """Build a detector that has learnt nothing yet, with the classes of a data set.

        Args:
            architecture: the name of a YAML that Ultralytics brings, such as ``yolov3-tiny.yaml``, or one's own file.
            data: the data set's YAML file.
            image_size: square input size in pixels; 640 if None.
            device: where to compute.
            seed: of the weights.

        Raises:
            ModelError: there is no such architecture, or it is no supported detector.
            DataError: the data set is missing or malformed.
            DeviceError: the device is unknown or not there.
        """
        target, data_set = resolve_device(device), read_data_set(data)
        module = build_untrained(architecture, data_set.names, seed=seed)
        settings = {**stock.DEFAULT_CFG_DICT, "imgsz": image_size or stock.DEFAULT_CFG_DICT["imgsz"]}
        return cls(
            module,
            name=name_of(module, Path(architecture)),
            train_args=settings,
            data=data_set,
            image_size=choose_image_size(module, image_size, settings),
            device=target,
        )

    @property
    def has_images(self) -> bool:
        """Whether it was loaded with a data set."""
        return self.data is not None

    @property
    def skipped(self) -> tuple[str, ...]:
        """Images that could not be read so far, as ``path: reason``."""
        return tuple(f"{file}: {reason}" for file, reason in self._skipped.items())

    def example(self, batch: int = 2) -> torch.Tensor:
        """Return an input of uniform noise, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(batch, 3, self.image_size, self.image_size, generator=generator).to(self.device)

    def batches(self, split: str, *, images: int, batch: int, seed: int) -> Sequence[Batch]:
        """Return letterboxed, unaugmented images of a split as batches held on the device.

        The files of the split, sorted, are put in an order drawn from ``seed``; the first ``images`` of
        them that can be read are returned in that order. The others are named in `skipped`.
        """
        if images < 1 or batch < 1:
            raise DataError(f"images and batch must be positive, got {images} and {batch}")
        data = self._data()
        with stock.quiet(), data_sets.random_state_kept():
            samples = list(islice(self._samples(data, shuffled(data, split, seed)), images))
            check_samples(samples, data, split, self.skipped)
            chunks = (samples[start : start + batch] for start in range(0, len(samples), batch))
            return [self._batch(chunk) for chunk in chunks]

    def calibration(self, *, images: int, batch: int, seed: int) -> Sequence[torch.Tensor]:
        """Return training images with the dense training's augmentations but mosaic, as its last epochs saw them.

        Batch norm that is recalibrated on plain images fits less well than on these: mAP50-95 of the project's BCCD
        yolov5nu is 0.490 as trained, 0.493 recalibrated on these and 0.450 on plain ones; with 0.9 and 0.75 of all
        widths it is 0.352 and 0.305 against 0.322 and 0.281.
        """
        data = self._data()
        augmentation = {**self.train_args, **dict.fromkeys(("mosaic", "mixup", "cutmix", "copy_paste"), 0.0)}
        with stock.quiet(), data_sets.random_state_kept():
            data_sets.seed_all(seed)
            samples = list(islice(self._samples(data, shuffled(data, "train", seed), augmentation), images))
            check_samples(samples, data, "train", self.skipped)
            chunks = (samples[start : start + batch] for start in range(0, len(samples), batch))
            return [self.inputs(to_batch(chunk, self.device)) for chunk in chunks]

    def inputs(self, batch: Batch) -> torch.Tensor:
        """Return the images of a batch."""
        images: torch.Tensor = batch["img"]
        return images

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the network's own training loss per image.

        The sum of Ultralytics' box, class and distribution terms with the gains of the dense training, each
        normalised over the batch as Ultralytics does; Ultralytics multiplies by the batch size, this does not.
        End-to-end heads (YOLOv10, YOLO26) give their combined loss, with the weights of the training's start.

        The criterion is the dense network's: it depends on nothing that pruning changes, so any pruned
        module of the same family can be passed, and nothing is attached to it. Without gradients the same
        value comes from `scoring.scoring_loss`, in a third of the time.
        """
        predictions = module(batch["img"])
        if _PAIRS in batch and not torch.is_grad_enabled():
            return scoring_loss(self._criterion, predictions, batch[_PAIRS])
        total, _ = self._criterion(predictions, batch)
        loss: torch.Tensor = total.sum() / len(batch["img"])
        return loss

    def stages(self, module: nn.Module) -> Sequence[str]:
        """Return Ultralytics' layers but the last, the head."""
        layers = module.get_submodule("model")
        return [f"model.{name}" for name, _ in layers.named_children()][:-1]

    def accuracy(self, module: nn.Module, batches: Sequence[Batch], *, predict: Predict | None = None) -> Accuracy:
        """Measure the accuracy on held batches: Ultralytics' ``val`` settings on square images."""
        objects = max(
            (int(batch["batch_idx"].int().bincount().max()) for batch in batches if len(batch["cls"])), default=0
        )
        deployed = self.deployable(module)
        return metrics.measure(deployed, batches, device=self.device, objects=objects, predict=predict)

    def validate(self, module: nn.Module) -> Accuracy:
        """Measure the accuracy on the validation split as Ultralytics' ``val`` does at this image size.

        Like the stock command it batches images of similar shape and pads each batch to its own rectangle,
        so the figure is the one that ``YOLO(...).val(imgsz=...)`` reports, not that of `accuracy`.
        """
        return self._validated(self.deployable(module), rectangular=_VALIDATION_BATCH)

    def validate_deployed(self, predict: Predict) -> Accuracy:
        """Measure the accuracy of what runs elsewhere as Ultralytics' ``val`` does of an exported file."""
        return self._validated(self.deployable(self.module), rectangular=None, predict=predict)

    def _validated(self, module: nn.Module, *, rectangular: int | None, predict: Predict | None = None) -> Accuracy:
        labels = self._validation_labels()
        objects = max(len(label["cls"]) for label in labels)
        images = LabelledImages(
            labels,
            data=self._data(),
            image_size=self.image_size,
            task=self.task,
            rectangular=rectangular,
            stride=max(stride_of(self.module), 32),
        )
        loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            images,
            batch_size=_VALIDATION_BATCH,
            collate_fn=list,
            num_workers=0 if self.device.type == "cpu" else min(4, torch.get_num_threads()),
        )
        with stock.quiet(), data_sets.random_state_kept():
            batches = (to_batch(samples, self.device) for samples in loader)
            return metrics.measure(module, batches, device=self.device, objects=objects, predict=predict)

    def deployable(self, module: nn.Module, *, with_nms: bool = False) -> nn.Module:
        """Return a fused copy in eval mode without gradients, as Ultralytics exports it.

        An end-to-end head (YOLOv10, YOLO26) that is switched on is exported, and needs no suppression.
        """
        copy: Any = deepcopy(module).eval().requires_grad_(False)
        with stock.quiet():
            copy.fuse(verbose=False)
            for head in (part for part in copy.modules() if isinstance(part, stock.Detect)):
                head.export = True  # returns the predictions alone, without the maps they come from
            if not with_nms or self._end2end:
                return copy  # type: ignore[no-any-return]
            copy.model[-1].xyxy = True  # as suppression reads boxes
            return suppressed(copy)

    def export(self, module: nn.Module, folder: Path, settings: ExportSettings, *, convert: Convert) -> Path:
        """Write a network as Ultralytics' ``export`` does: ``YOLO(file)`` predicts with it; `notes` travel inside."""
        return write(
            module, folder, settings, image_size=self.image_size, task=self.task, end2end=self._end2end,
            notes=self.notes, convert=convert,
        )  # fmt: skip

    def difference(self, expected: torch.Tensor, found: torch.Tensor) -> Difference:
        """Compare predictions; rows of an end-to-end head may be in another order."""
        return difference(expected, found, end2end=self._end2end)

    def disagreement(self, expected: torch.Tensor, found: torch.Tensor) -> float:
        """Compare predictions; rows of an end-to-end head may be in another order."""
        return disagreement(expected, found, end2end=self._end2end)

    def scaled(self, width: float) -> nn.Module | None:
        """Return an untrained network of the same YAML with another width multiple, widths in multiples of 8."""
        network = scaled(self.module, width)
        return None if network is None else _prepared(network, self.train_args).to(self.device)

    def save(self, module: nn.Module, path: Path, *, notes: Mapping[str, Any] | None = None) -> None:
        """Write a stock checkpoint that ``YOLO(path)`` opens without autoprune installed.

        Raises:
            RunError: the file cannot be written.
        """
        write_checkpoint(module, path, train_args=self._recorded_args(), notes=notes)

    def reopen(self, path: Path) -> nn.Module:
        """Read a stock checkpoint, by the safe loader."""
        return UltralyticsAdapter.load(path, image_size=self.image_size, device=self.device).module

    def checkpoint_size(self, module: nn.Module) -> int:
        """Return the size in bytes of the checkpoint without notes."""
        return len(checkpoint_bytes(module, train_args=self._recorded_args()))

    @property
    def _end2end(self) -> bool:
        head: Any = self.module.model[-1]  # type: ignore[index]
        return bool(head.end2end)

    def _recorded_args(self) -> dict[str, Any]:
        return {**self.train_args, "task": self.task, "imgsz": self.image_size}

    def _data(self) -> DataSet:
        if self.data is None:
            raise DataError(f"{self.name} was loaded without a data set; give its YAML file with --data")
        return self.data

    def _batch(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        batch = to_batch(samples, self.device)
        if supports(self._criterion):
            batch[_PAIRS] = find_pairs(self._criterion, batch)
        return batch

    def _samples(
        self, data: DataSet, files: Sequence[str], augmentation: Mapping[str, Any] | None = None
    ) -> Iterator[Sample]:
        """Yield the readable images of these files with their labels; note the others as skipped."""

        def load(label: Label) -> Sample:
            images = LabelledImages(
                [label], data=data, image_size=self.image_size, task=self.task, augmentation=augmentation
            )
            sample: Sample = images[0]
            return sample

        return readable(files, data, task=self.task, load=load, skipped=self._skipped)

    def _validation_labels(self) -> list[Label]:
        """Verify the validation split once, and keep its labels."""
        if self._validation is None:
            data = self._data()
            with stock.quiet():
                found = list(
                    readable(data.files("val"), data, task=self.task, load=lambda label: label, skipped=self._skipped)
                )
            check_samples(found, data, "val", self.skipped)
            self._validation = [dict(label) for label in found]
        return self._validation


def _prepared(module: nn.Module, train_args: Mapping[str, Any]) -> nn.Module:
    """Put a loaded network into the form that training, loss and gradients need."""
    network: Any = module.float().eval()
    with stock.quiet():
        network.args = stock.get_cfg(dict(train_args))  # the loss reads its gains as attributes
    network.criterion = None
    for name, parameter in network.named_parameters():
        parameter.requires_grad = ".dfl." not in name  # the fixed bins of the distribution are no weights
    prepared: nn.Module = network
    return prepared
