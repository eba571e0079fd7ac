"""Read the images of a data set for the networks of a task: with label files, or in one folder per class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import cv2
import PIL.Image
import torch

from autoprune.image_size import ImageSize
from autoprune.models import stock
from autoprune.models.detection.data_set import (
    DataSet,
    Label,
    Sample,
    balanced,
    check_samples,
    cut_short,
    has_labels,
    label_file,
    shuffled,
    to_batch,
    verified,
)
from autoprune.models.ultralytics.data import ImageError, LabelledImages, StretchedImages, class_of, read_data

_AUGMENTATIONS = {
    "hflip": "fliplr",
    "vflip": "flipud",
    "erasing": "erasing",
    "auto_augment": "auto_augment",
    "hsv_h": "hsv_h",
    "hsv_s": "hsv_s",
    "hsv_v": "hsv_v",
}
"""Arguments of Ultralytics' ``classify_augmentations`` → settings of its training."""

_MIXING = ("mosaic", "mixup", "cutmix", "copy_paste")
"""Augmentations that combine several images."""

_MASKS = ("overlap_mask", "mask_ratio")
"""Settings of the training on the form of masks."""

_LEAST_STRIDE = 32


class Images(ABC):
    """Reads images, scales them to the network's size, and collects those that cannot be read.

    Args:
        data: the data set.
        task: Ultralytics' name of the task.
        image_size: of the network's input.
        stride: the network's largest stride.
        train_args: the settings of the dense network's training.
        skipped: filled with the files that cannot be read and the reasons.

    Attributes:
        data: the data set.
    """

    def __init__(
        self,
        data: DataSet,
        *,
        task: str,
        image_size: ImageSize,
        stride: int,
        train_args: Mapping[str, Any],
        skipped: dict[str, str],
    ) -> None:
        self.data = data
        self.task, self.image_size, self.stride, self.train_args = task, image_size, stride, train_args
        self.skipped = skipped

    def moved(self, place: Path) -> Images:
        """Return what reads the same data set from another file or folder."""
        data = read_data(place, self.task, single_class=self.data.single_class)
        return type(self)(
            data,
            task=self.task,
            image_size=self.image_size,
            stride=self.stride,
            train_args=self.train_args,
            skipped=self.skipped,
        )

    def chosen(self, split: str, *, images: int, seed: int, rest: bool, augmented: bool = False) -> list[Sample]:
        """Return the first readable images of a split in an order drawn from the seed; see `balanced`.

        Args:
            split: of the data set.
            images: how many; fewer are returned if the split has fewer.
            seed: of the order.
            rest: allow more images without labels than with labels.
            augmented: apply the augmentations of the dense training's last epochs, which combine no images.

        Raises:
            DataError: the split is missing, or has no readable image or no labels.
        """
        files = shuffled(self.data, split, seed)
        read = partial(self._read, augmented=augmented)
        samples = balanced(files, labelled=self._labelled, read=read, rest=rest)
        found = list(islice(samples, images))
        self._check(found, split)
        return found

    def collated(self, samples: Sequence[Sample], *, batch: int, device: torch.device) -> Iterator[dict[str, Any]]:
        """Yield samples as batches of a size on the device; the last may hold fewer."""
        return (self.collate(samples[start : start + batch], device) for start in range(0, len(samples), batch))

    @abstractmethod
    def collate(self, samples: Sequence[Sample], device: torch.device) -> dict[str, Any]:
        """Return samples as one batch on the device, pixels in [0, 1]."""

    @abstractmethod
    def validation(self, *, batch: int, rectangular: bool, workers: int = 0) -> tuple[Iterable[Sequence[Sample]], int]:
        """Return the validation split in batches, as in Ultralytics' ``val``, and the most labels of an image.

        Args:
            batch: images per batch.
            rectangular: pad each batch to its own shape if the task supports that and the size is a square; else every
                image has the network's size.
            workers: processes that read images, if the task uses any.

        Raises:
            DataError: as ``chosen``.
        """

    def _read(self, file: str, *, augmented: bool = False) -> Sample | None:
        """Read an image; if it cannot be used, add it to ``skipped`` and return None."""
        sample = self._sample(file, augmented=augmented)
        if not isinstance(sample, str):
            return sample
        self.skipped[file] = sample
        return None

    @abstractmethod
    def _sample(self, file: str, *, augmented: bool) -> Sample | str:
        """Read an image, or return the reason why it cannot be used."""

    @abstractmethod
    def _labelled(self, file: str) -> bool:
        """Return whether an image has labels, without reading it."""

    @abstractmethod
    def _labels_lie(self, file: str) -> str:
        """Return in words where the labels of an image are expected."""

    def _check(self, samples: Sequence[Sample], split: str) -> None:
        check_samples(samples, self.data, split, self.skipped, labelled=self._labelled, expected=self._labels_lie)


class FolderImages(Images):
    """Images in one folder per class, for classifiers, scaled and cropped to a square, or stretched to another size."""

    def collate(self, samples: Sequence[Sample], device: torch.device) -> dict[str, Any]:
        """Return samples as one batch; see `Images`."""
        layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        images = torch.stack([sample["img"] for sample in samples]).to(device)
        return {
            "img": images.contiguous(memory_format=layout),
            "cls": torch.tensor([sample["cls"] for sample in samples], device=device),
            "im_file": [sample["im_file"] for sample in samples],
        }

    def validation(self, *, batch: int, rectangular: bool, workers: int = 0) -> tuple[Iterable[Sequence[Sample]], int]:
        """Return the validation split; see `Images`. A classifier's images all have one size."""
        files = self.data.files("val")
        parts = (map(self._read, files[start : start + batch]) for start in range(0, len(files), batch))
        return filter(None, ([sample for sample in part if sample is not None] for part in parts)), 1

    def _sample(self, file: str, *, augmented: bool) -> Sample | str:
        problem = cut_short(file)
        pixels = None if problem else stock.ClassificationDataset.imread(file)
        if pixels is None:
            return problem or "the image cannot be decoded"
        name = class_of(file, self.data)
        if name not in self._index:
            return f"its folder {name!r} is none of the classes"
        image = PIL.Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        transform = self._augmented if augmented else self._plain
        return {"img": transform(image), "cls": self._index[name], "im_file": file}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.data.names)}

    @cached_property
    def _plain(self) -> Any:
        return stock.classify_transforms(size=self.image_size.plain)

    @cached_property
    def _augmented(self) -> Any:
        settings = {**stock.DEFAULT_CFG_DICT, **self.train_args}
        augmented = stock.classify_augmentations(
            size=self.image_size.longest,
            scale=(1.0 - settings["scale"], 1.0),
            **{argument: settings[name] for argument, name in _AUGMENTATIONS.items()},
        )
        augmented.transforms[0].size = tuple(self.image_size)  # Ultralytics itself crops to squares
        return augmented

    def _labelled(self, file: str) -> bool:
        return True

    def _labels_lie(self, file: str) -> str:
        return f"a class is a folder such as {Path(file).parent}"


class LabelledFiles(Images):
    """Letterboxed images with boxes, masks, keypoints or rotated boxes in one text file of labels each."""

    loader: ClassVar[type[LabelledImages]] = LabelledImages
    """Scales images to the network's size."""
    rectangles: ClassVar[bool] = True
    """Whether a batch may be padded to its own shape."""

    def collate(self, samples: Sequence[Sample], device: torch.device) -> dict[str, Any]:
        """Return samples as one batch; see `Images`."""
        return to_batch(samples, device)

    def validation(self, *, batch: int, rectangular: bool, workers: int = 0) -> tuple[Iterable[Sequence[Sample]], int]:
        """Return the validation split; see `Images`. Its labels are verified once."""
        labels = self._verified
        padded = rectangular and self.rectangles and self.image_size.square
        images = self._images(labels, rectangular=batch if padded else None)
        batches: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            images, batch_size=batch, collate_fn=list, num_workers=workers
        )
        return batches, max(len(label["cls"]) for label in labels)

    @cached_property
    def _verified(self) -> Sequence[Label]:
        found = []
        for file in self.data.files("val"):
            label = verified(file, self.data, self.task)
            if isinstance(label, str):
                self.skipped[file] = label
            else:
                found.append(label)
        self._check(found, "val")
        return found

    def _sample(self, file: str, *, augmented: bool) -> Sample | str:
        label = verified(file, self.data, self.task)
        if isinstance(label, str):
            return label
        augmentation = {**self.train_args, **dict.fromkeys(_MIXING, 0.0)} if augmented else None
        try:
            sample: Sample = self._images([label], augmentation=augmentation)[0]
        except (ImageError, ValueError, RuntimeError) as error:  # the header is readable, the pixels are not
            return str(error)
        return sample

    def _images(
        self, labels: Sequence[Label], *, rectangular: int | None = None, augmentation: Mapping[str, Any] | None = None
    ) -> LabelledImages:
        return self.loader(
            labels,
            data=self.data,
            image_size=self.image_size,
            task=self.task,
            rectangular=rectangular,
            stride=max(self.stride, _LEAST_STRIDE),
            augmentation=augmentation,
            masks={name: self.train_args[name] for name in _MASKS if name in self.train_args},
        )

    def _labelled(self, file: str) -> bool:
        return has_labels(file)

    def _labels_lie(self, file: str) -> str:
        return label_file(file)


class StretchedFiles(LabelledFiles):
    """Images stretched to the network's size, as RT-DETR takes them."""

    loader = StretchedImages
    rectangles = False
