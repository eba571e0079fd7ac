"""Ultralytics' own data sets, without caches, downloads or repairs in the user's folders; class folders."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from autoprune.errors import DataError
from autoprune.image_size import ImageSize
from autoprune.models import stock
from autoprune.models.detection.channels import check_image
from autoprune.models.detection.data_set import DataSet, Label, as_one_class, cut_short, read_data_set, verify
from autoprune.models.ultralytics.sizing import augment_to, fit


class ImageError(DataError):
    """The pixels of an image cannot be read."""


class CheckedImages(stock.YOLODataset):  # type: ignore[misc]
    """Ultralytics' data set with a check of the images' channels, and with training images of any size.

    An array next to an image (``0.npy`` of ``0.jpg``) is the user's own: Ultralytics would read it as its cache of the
    image, and replace or remove it if it is none.
    """

    imgsz: tuple[int, ...] | int

    def load_image(self, i: int, *args: Any, **settings: Any) -> Any:
        """Return an image and its sizes, before and after scaling.

        Raises:
            ImageError: it cannot be read.
            DataError: it has other channels.
        """
        self.npy_files[i] = Path(self.im_files[i], "no cache")  # nothing can be there
        try:
            image, original, scaled = super().load_image(i, *args, **settings)
        except OSError as error:
            raise ImageError(f"{self.im_files[i]} cannot be read: {error}") from error
        check_image(self.im_files[i], image.shape[-1], self.channels)
        if not self.augment:
            return image, original, scaled
        image = fit(image, ImageSize.of(self.imgsz))
        return image, original, image.shape[:2]

    def build_transforms(self, hyp: Any) -> Any:
        """Return the augmentations, or how an image is letterboxed."""
        if not self.augment:
            return super().build_transforms(hyp)
        size = ImageSize.of(self.imgsz)
        self.imgsz = size.longest  # Ultralytics augments to squares
        transforms = super().build_transforms(hyp)
        self.imgsz = size
        augment_to(size, transforms)
        return transforms


class LabelledImages(CheckedImages):
    """Ultralytics' data set of images with verified labels: nothing is searched or cached.

    Args:
        labels: verified images, in order.
        data: their data set.
        image_size: of the letterboxed images; of rectangular batches the longer side.
        task: Ultralytics' name of the task.
        rectangular: batch size for rectangular batches as Ultralytics' ``val`` makes them (each batch is padded to
            its own shape, half a stride more than needed); None letterboxes every image to the size.
        stride: the network's largest stride.
        augmentation: settings of the training whose augmentations are applied; None applies none.
        masks: settings of the training on the form of masks.
    """

    def __init__(
        self,
        labels: Sequence[Label],
        *,
        data: DataSet,
        image_size: ImageSize,
        task: str,
        rectangular: int | None = None,
        stride: int = 32,
        augmentation: Mapping[str, Any] | None = None,
        masks: Mapping[str, Any] | None = None,
    ) -> None:
        self._given = [dict(label) for label in labels]
        super().__init__(
            img_path="",
            imgsz=image_size,
            augment=augmentation is not None,
            rect=rectangular is not None,
            batch_size=rectangular or 1,
            stride=stride,
            pad=0.5,
            hyp=stock.get_cfg({**(augmentation or stock.DEFAULT_CFG_DICT), **(masks or {})}),
            data=dict(data.settings),
            task=task,
        )

    def get_img_files(self, img_path: str) -> list[str]:
        """Return the files of the given labels."""
        return [label["im_file"] for label in self._given]

    def get_labels(self) -> list[Label]:
        """Return the given labels."""
        self.verify_labels(self._given, Path(""))
        return self._given


class StretchedImages(LabelledImages, stock.RTDETRDataset):  # type: ignore[misc]
    """Images stretched to the size instead of letterboxed, for RT-DETR; never in rectangular batches."""


class TrainingImages(CheckedImages):
    """Ultralytics' data set of its trainer, without the cache of the labels.

    That cache is a pickle next to the labels, which can run anyone's code when it is read.
    """

    buffer: list[int]  # the images for mosaics

    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> Any:
        with TemporaryDirectory() as scratch:
            return self.cache_labels(Path(scratch) / cache_path.name), False

    def begin_epoch(self) -> None:
        """Clear the images of the last epoch, and draw the first ones for mosaics.

        Ultralytics makes mosaics of the last loaded images, which a resumed training does not have.
        """
        if self.cache != "ram":  # with it mosaics use all images
            for index in self.buffer:
                self.ims[index] = self.im_hw0[index] = self.im_hw[index] = None
            self.buffer = random.sample(range(self.ni), max(self.max_buffer_length - 1, 0))

    def verify_args(self) -> tuple[Any, Any]:
        """Return the check of one image and its arguments."""
        _, arguments = super().verify_args()
        return verify, arguments


class StretchedTrainingImages(TrainingImages, stock.RTDETRDataset):  # type: ignore[misc]
    """`TrainingImages` stretched to the size, for RT-DETR."""


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore all random states afterwards: Ultralytics draws numbers even without augmentations."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_all(seed: int) -> None:
    """Seed every generator of Ultralytics' augmentations; within `random_state_kept`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


_FOLDERS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
"""Names of a split's folder in Ultralytics; the first that exists is used."""


def read_class_folders(folder: Path) -> DataSet:
    """Read a classifier's data set: ``train/<class>/*.jpg``, ``val/<class>/*.jpg`` and optionally ``test``.

    The classes are the training split's folders, sorted by name.

    Raises:
        DataError: it is no folder, there is no ``train`` folder, or no class in it.
    """
    if not folder.is_dir():
        raise DataError(f"a classifier's data set is a folder with train/<class>/ and val/<class>/, got {folder}")
    found = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in _FOLDERS.items()
    }
    splits = {split: place.resolve() for split, place in found.items() if place is not None}
    if "train" not in splits:
        raise DataError(f"{folder} has no folder 'train'; a classifier's data set has train/<class>/ and val/<class>/")
    names = tuple(sorted(place.name for place in splits["train"].iterdir() if place.is_dir()))
    if not names:
        raise DataError(f"{splits['train']} has no folder per class; a classifier's images lie in train/<class>/")
    settings = {
        "names": dict(enumerate(names)),
        "nc": len(names),
        "channels": 3,
        "path": folder.resolve(),
        "yaml_file": str(folder),
        **{split: str(place) for split, place in splits.items()},
    }
    return DataSet(folder, names, {split: (place,) for split, place in splits.items()}, settings)


def read_data(data: Path, task: str, *, single_class: bool = False) -> DataSet:
    """Read a data set in the form of a task: class folders for a classifier, else a YAML file.

    Args:
        data: the folder or the file.
        task: Ultralytics' name of it.
        single_class: give every label of a YAML file the same class, as a training with ``single_cls=True`` does.

    Raises:
        DataError: it is missing or malformed.
    """
    if task == "classify":
        return read_class_folders(data)
    found = read_data_set(data)
    return as_one_class(found) if single_class else found


def class_of(file: str, data: DataSet) -> str:
    """Return the class of an image: the name of its folder directly below the split's."""
    for places in data.splits.values():
        for place in places:
            if Path(file).is_relative_to(place):
                return Path(file).relative_to(place).parts[0]
    raise ValueError(f"{file} lies in no split of {data.file}")


class TrainingFolders(stock.ClassificationDataset):  # type: ignore[misc]
    """Ultralytics' data set of its trainer, for images of a size, which writes nothing into the user's data."""

    torch_transforms: Any

    def __init__(self, *args: Any, image_size: ImageSize, augment: bool, **settings: Any) -> None:
        super().__init__(*args, augment=augment, **settings)
        if augment:
            self.torch_transforms.transforms[0].size = tuple(image_size)
        else:
            self.torch_transforms = stock.classify_transforms(size=image_size.plain)

    def verify_images(self) -> list[Any]:
        """Return the images that can be opened; Ultralytics would write a list of them next to the split's folder."""
        return [sample for sample in self.samples if cut_short(sample[0]) is None]
