"""The data set of a network that finds objects: its YAML file, its splits, its images and labels, without downloads.

Images and labels go through Ultralytics' own `YOLODataset`, but are looked up and verified here:
Ultralytics would download what is missing, write a label cache beside the labels and repair broken
images in place. autoprune reads a few hundred images, so it verifies those in a second, keeps the
result in memory, and writes nothing into the user's data.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from autoprune.errors import DataError
from autoprune.models.ultralytics import stock

SPLITS = ("train", "val", "test")
Label = dict[str, Any]
"""One verified image with its labels, in the form that `YOLODataset` keeps them."""


@dataclass(frozen=True)
class DataSet:
    """A data set as its YAML file describes it, with every path resolved.

    Attributes:
        file: the YAML file.
        names: class names in the order of their indices.
        splits: where the images of each split lie: folders, or text files that list images.
        settings: the whole description in the form that Ultralytics' own code expects.
    """

    file: Path
    names: tuple[str, ...]
    splits: Mapping[str, tuple[Path, ...]]
    settings: Mapping[str, Any]

    def files(self, split: str) -> list[str]:
        """Return the image files of a split, sorted.

        Raises:
            DataError: the split is not in the YAML file, does not exist, or holds no image.
        """
        if split not in SPLITS:
            raise DataError(f"a split is one of {', '.join(SPLITS)}, got {split!r}")
        if split not in self.splits:
            raise DataError(f"{self.file} names no {split!r} split")
        found = sorted({file for place in self.splits[split] for file in _images_at(place, split)})
        if not found:
            places = ", ".join(map(str, self.splits[split]))
            raise DataError(f"the {split!r} split of {self.file} holds no image: looked in {places}")
        return found


def read_data_set(file: Path) -> DataSet:
    """Read a data set's YAML file, resolving its paths as Ultralytics does and downloading nothing.

    Splits are relative to the key ``path``, which is relative to the working directory or else to Ultralytics'
    ``datasets_dir``; without ``path`` they are relative to the YAML file's own folder.

    Raises:
        DataError: the file is missing or malformed, or names neither ``train`` nor ``names`` / ``nc``.
    """
    if not file.is_file():
        raise DataError(f"the data set file {file} does not exist (a YAML file with train, val and names is expected)")
    if file.suffix.lower() not in {".yaml", ".yml"}:
        raise DataError(f"the data set must be described by a .yaml file, got {file}")
    try:
        described: dict[str, Any] = stock.YAML.load(str(file))
    except (ValueError, OSError) as error:
        raise DataError(f"{file} is not a readable YAML mapping: {str(error).splitlines()[0]}") from error
    if not described.get("val") and described.get("validation"):
        described["val"] = described.pop("validation")
    if not described.get("train") and not described.get("val"):
        raise DataError(f"{file} names no 'train' and no 'val' split")
    names = _names(file, described)
    root = _root(file, described)
    splits = {split: _places(file, split, described[split], root) for split in SPLITS if described.get(split)}
    settings = {
        **described,
        "names": dict(enumerate(names)),
        "nc": len(names),
        "channels": described.get("channels", 3),
        "path": root,
        "yaml_file": str(file),
        **{split: [str(place) for place in places] for split, places in splits.items()},
    }
    return DataSet(file=file, names=names, splits=splits, settings=settings)


def _names(file: Path, described: Mapping[str, Any]) -> tuple[str, ...]:
    names, count = described.get("names"), described.get("nc")
    if names is None and count is None:
        raise DataError(f"{file} must name its classes: it has neither 'names' nor 'nc'")
    if names is None:
        if not isinstance(count, int) or count < 1:
            raise DataError(f"'nc' of {file} must be a positive integer, got {count!r}")
        return tuple(f"class_{index}" for index in range(count))
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"'names' of {file} must be numbered 0 to {len(names) - 1}, got {sorted(names, key=str)}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"'names' of {file} must be a list or an index-to-name mapping, got {names!r}")
    if count is not None and count != len(names):
        raise DataError(f"{file} contradicts itself: 'nc' is {count}, but 'names' has {len(names)} entries")
    return tuple(map(str, names))


def _root(file: Path, described: Mapping[str, Any]) -> Path:
    root = Path(described.get("path") or file.parent)
    if not root.exists() and not root.is_absolute():
        root = Path(stock.DATASETS_DIR) / root
    return root.resolve()


def _places(file: Path, split: str, given: object, root: Path) -> tuple[Path, ...]:
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{split!r} of {file} must be a path or a list of paths, got {given!r}")
    places = []
    for entry in entries:
        place = (root / entry).resolve()
        if not place.exists() and entry.startswith("../"):  # exports of Roboflow are one folder off
            place = (root / entry[3:]).resolve()
        places.append(place)
    return tuple(places)


def _images_at(place: Path, split: str) -> Iterator[str]:
    """Yield the images in a folder and below, or listed in a text file."""
    if place.is_dir():
        for folder, _, names in os.walk(place, followlinks=True):
            yield from (os.path.join(folder, name) for name in names if _is_image(name))
    elif place.is_file():
        try:
            lines = place.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the {split!r} split is no readable list of images: {place} ({error})") from error
        for entry in map(str.strip, lines):
            if _is_image(entry):
                yield str(place.parent / entry[2:]) if entry.startswith("./") else entry
    else:
        raise DataError(f"the {split!r} split does not exist: {place}")


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in stock.IMG_FORMATS


def verified(file: str, data: DataSet, task: str) -> Label | str:
    """Check one image and its labels as Ultralytics does.

    Returns:
        Its label in `YOLODataset`'s form, or why it cannot be used.
    """
    keypoints, dimensions = data.settings.get("kpt_shape", (0, 0))
    image, boxes, shape, segments, points, *_, message = _verify(
        (file, stock.img2label_paths([file])[0], "", task == "pose", len(data.names), keypoints, dimensions, False)
    )
    if image is None:
        return str(message).rpartition(_IGNORED)[2]
    return {
        "im_file": image,
        "shape": shape,
        "cls": boxes[:, 0:1],
        "bboxes": boxes[:, 1:],
        "segments": segments,
        "keypoints": points,
        "normalized": True,
        "bbox_format": "xywh",
    }


_IGNORED = "ignoring corrupt image/label: "


def _verify(arguments: tuple[Any, ...]) -> Sequence[Any]:
    """Do as Ultralytics' ``verify_image_label`` does, but never write: it would repair a JPEG without an end."""
    problem = cut_short(arguments[0])
    if problem:
        return [None] * 5 + [0, 0, 0, 1, f"{arguments[2]}{arguments[0]}: {_IGNORED}{problem}"]
    found: Sequence[Any] = stock.verify_image_label(arguments)
    return found


def cut_short(file: str) -> str | None:
    """Say why, if an image cannot be opened, or is a JPEG without its end."""
    try:
        with PIL.Image.open(file) as image:
            jpeg = image.format == "JPEG"
        with open(file, "rb") as content:
            content.seek(-2, os.SEEK_END)
            ended = content.read() == b"\xff\xd9"
    except OSError as error:
        return str(error)
    return "the JPEG is cut short: its end-of-image marker is missing" if jpeg and not ended else None


class LabelledImages(stock.YOLODataset):  # type: ignore[misc]
    """Ultralytics' data set of images whose labels are known already: nothing is searched or cached.

    Args:
        labels: verified images, in the order wanted.
        data: the data set that they belong to.
        image_size: longest side after scaling, in pixels.
        task: Ultralytics' name of the task.
        rectangular: batch size for rectangular batches as Ultralytics' ``val`` makes them (each batch is padded to
            its own shape, half a stride more than needed); None letterboxes every image to a square.
        stride: the network's largest stride.
        augmentation: Ultralytics' arguments of the training whose augmentations to apply; None applies none.
        masks: Ultralytics' arguments of the training that say how it has masks.
    """

    def __init__(
        self,
        labels: Sequence[Label],
        *,
        data: DataSet,
        image_size: int,
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
    """Images stretched to a square instead of letterboxed, as RT-DETR takes them; never rectangular."""


class TrainingImages(stock.YOLODataset):  # type: ignore[misc]
    """Ultralytics' data set as its trainer uses it, except that it writes nothing into the user's data.

    Args:
        cache_folder: where the label cache goes, instead of beside the labels.
        settings: the arguments of `YOLODataset`.
    """

    def __init__(self, *, cache_folder: Path, **settings: Any) -> None:
        self._cache_folder = cache_folder
        super().__init__(**settings)

    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> Any:
        return super()._load_or_scan_cache(self._cache_folder / cache_path.name, cache_hash)

    def verify_args(self) -> tuple[Any, Any]:
        """Return the check of one image and its arguments."""
        _, arguments = super().verify_args()
        return _verify, arguments


class StretchedTrainingImages(TrainingImages, stock.RTDETRDataset):  # type: ignore[misc]
    """`TrainingImages` stretched to a square, as RT-DETR takes them."""


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Keep the program's own random numbers: Ultralytics draws some even when it augments nothing."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_all(seed: int) -> None:
    """Seed every generator that Ultralytics' augmentations draw from; within `random_state_kept`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def to_batch(samples: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, Any]:
    """Collate samples and move them to the device, pixels scaled to [0, 1].

    On a CPU the images lie in channels-last order: the shape is the same, and every convolution that
    follows runs about twice as fast (yolov5n, 320 px, batches of 16: 140 instead of 290 ms).
    """
    batch: dict[str, Any] = stock.YOLODataset.collate_fn(list(samples))
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            batch[key] = value.to(device)
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    batch["img"] = batch["img"].float().div_(255).contiguous(memory_format=layout)
    if "masks" in batch:
        batch["masks"] = batch["masks"].float()  # as Ultralytics' loss and validator compare them
    return batch
