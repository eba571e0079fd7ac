"""The data set of a detector: its YAML file, its splits, the labels of its images, without downloads.

Files are read as Ultralytics reads them, for all families of networks, but found and verified here: Ultralytics would
download missing data, write a label cache next to the labels and repair broken images in place. autoprune reads a few
hundred images, verifies them in a second, keeps the result in memory, and writes nothing into the user's data.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from autoprune.errors import DataError
from autoprune.models import stock
from autoprune.models.detection.channels import data_channels
from autoprune.models.detection.description import class_names, places_of, read_description, root_of

SPLITS = ("train", "val", "test")
Sample = Mapping[str, Any]
"""One image with its labels, as `to_batch` takes it."""
Label = dict[str, Any]
"""One verified image file with its labels, in `YOLODataset`'s form."""


_WITHOUT = {
    "train": "; the training images score candidates and train the network: give their folder there",
    "val": "; its images measure the accuracy: move some tenth of the training images to a folder and give that there",
}


@dataclass(frozen=True)
class DataSet:
    """A data set as described by its YAML file, with resolved paths.

    Attributes:
        file: the YAML file.
        names: class names in the order of their indices.
        splits: of each split, the folders of its images, or text files that list images.
        settings: the whole description in Ultralytics' form.
        single_class: whether every label has the class 0, regardless of its file; see `as_one_class`.
    """

    file: Path
    names: tuple[str, ...]
    splits: Mapping[str, tuple[Path, ...]]
    settings: Mapping[str, Any]
    single_class: bool = False

    def files(self, split: str) -> list[str]:
        """Return the image files of a split, sorted.

        Raises:
            DataError: the split is not in the YAML file, does not exist, or holds no image.
        """
        if split not in SPLITS:
            raise DataError(f"a split is one of {', '.join(SPLITS)}, got {split!r}")
        if split not in self.splits:
            raise DataError(f"{self.file} names no {split!r} split{_WITHOUT.get(split, '')}")
        found = sorted({file for place in self.splits[split] for file in self._images_at(place, split)})
        if not found:
            places = ", ".join(map(str, self.splits[split]))
            raise DataError(f"the {split!r} split of {self.file} holds no image: looked in {places}")
        return found

    def _images_at(self, place: Path, split: str) -> Iterator[str]:
        """Yield the images in a folder and below, or listed in a text file."""
        if not place.exists():
            hint = (
                "fetch it with `download`"
                if self.settings.get("download")
                else f"say where it is in {self.file}, whose paths are relative to its entry 'path' or else to the file"
            )
            raise DataError(f"the {split!r} split does not exist: {place}; {hint}")
        yield from _images_at(place, split)


def as_one_class(data: DataSet) -> DataSet:
    """Return the data set with all labels of one class, as Ultralytics' training with ``single_cls=True`` uses it."""
    names = ("item",)  # Ultralytics' name of the class
    settings = {**data.settings, "names": dict(enumerate(names)), "nc": len(names)}
    return replace(data, names=names, settings=settings, single_class=True)


def read_data_set(file: Path) -> DataSet:
    """Read a data set's YAML file, resolving its paths as Ultralytics does and downloading nothing.

    Splits are relative to the key ``path``, which is relative to the working directory or else to Ultralytics'
    ``datasets_dir``; without ``path`` they are relative to the YAML file's own folder.

    Raises:
        DataError: the file is missing or malformed, or names neither ``train`` nor ``names`` / ``nc``.
    """
    described = read_description(file)
    if not described.get("val") and described.get("validation"):
        described["val"] = described.pop("validation")
    if not described.get("train") and not described.get("val"):
        raise DataError(f"{file} names no 'train' and no 'val' split")
    names = class_names(file, described)
    root = root_of(file, described)
    splits = {split: places_of(file, split, described[split], root) for split in SPLITS if described.get(split)}
    settings = {
        **described,
        "names": dict(enumerate(names)),
        "nc": len(names),
        "channels": data_channels(file, described),
        "path": root,
        "yaml_file": str(file),
        **{split: [str(place) for place in places] for split, places in splits.items()},
    }
    return DataSet(file=file, names=names, splits=splits, settings=settings)


def _images_at(place: Path, split: str) -> Iterator[str]:
    """Yield the images in a folder and below, or listed in a text file."""
    if place.is_dir():
        for folder, _, names in os.walk(place, followlinks=True):
            yield from (os.path.join(folder, name) for name in names if _is_image(name))
    else:
        try:
            lines = place.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the {split!r} split is no readable list of images: {place} ({error})") from error
        for entry in map(str.strip, lines):
            if _is_image(entry):
                yield str(place.parent / entry[2:]) if entry.startswith("./") else entry


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in stock.IMG_FORMATS


def shuffled(data: DataSet, split: str, seed: int) -> list[str]:
    """Return the files of a split in an order drawn from the seed; ``DataError`` as `DataSet.files`."""
    files = data.files(split)
    return [files[index] for index in np.random.default_rng(seed).permutation(len(files))]


def readable(
    files: Iterable[str], data: DataSet, *, task: str, load: Callable[[Label], Sample], skipped: dict[str, str]
) -> Iterator[Sample]:
    """Yield the readable images with their labels.

    Args:
        files: the images.
        data: their data set.
        task: Ultralytics' name of it.
        load: makes a sample of a verified label.
        skipped: filled with the other files and the reasons.
    """
    for file in files:
        label = verified(file, data, task)
        if isinstance(label, str):
            skipped[file] = label
            continue
        try:
            sample = load(label)
        except (OSError, ValueError, RuntimeError) as error:  # the header is readable, the pixels are not
            skipped[file] = str(error)
        else:
            yield sample


def has_labels(image: str) -> bool:
    """Return whether an image's label file has any content; nothing else is read."""
    try:
        with open(stock.img2label_paths([image])[0], "rb") as content:
            return any(map(bytes.strip, content))
    except OSError:
        return False


def label_file(image: str) -> str:
    """Return in words where Ultralytics looks for the labels of an image."""
    return f"labels are text files such as {stock.img2label_paths([image])[0]}"


def check_samples(
    samples: Sequence[Sample],
    data: DataSet,
    split: str,
    skipped: Mapping[str, str],
    *,
    labelled: Callable[[str], bool] = has_labels,
    expected: Callable[[str], str] = label_file,
) -> None:
    """Raise ``DataError`` if there is no image, or none with a label.

    Args:
        samples: images with ``im_file``, a path: all of the split, or the first `balanced` ones.
        data: their data set.
        split: of the data set.
        skipped: images that could not be read, with the reason.
        labelled: returns whether an image has a label.
        expected: returns in words where the labels of an image are expected.
    """
    if not samples and skipped:
        first = next(f"{file}: {reason}" for file, reason in skipped.items())
        raise DataError(f"no image of the {split!r} split of {data.file} can be read, e.g. {first}")
    if not any(labelled(sample["im_file"]) for sample in samples):
        unlabelled = samples[0]["im_file"] if samples else data.files(split)[0]
        raise DataError(
            f"no image of the {split!r} split of {data.file} that can be read has a label; {expected(unlabelled)}"
        )


def verified(file: str, data: DataSet, task: str) -> Label | str:
    """Check one image and its labels as Ultralytics does.

    Returns:
        Its label in `YOLODataset`'s form, or the reason why it cannot be used.
    """
    keypoints = data.settings.get("kpt_shape", (0, 0))
    classes = (len(data.names), *keypoints, data.single_class)
    image, boxes, shape, segments, points, *_, message = verify(
        (file, stock.img2label_paths([file])[0], "", task == "pose", *classes)
    )
    if image is None:
        return str(message).rpartition(_IGNORED)[2]
    return {
        "im_file": image,
        "shape": shape,
        "cls": boxes[:, 0:1] * (not data.single_class),
        "bboxes": boxes[:, 1:],
        "segments": segments,
        "keypoints": points,
        "normalized": True,
        "bbox_format": "xywh",
    }


_IGNORED = "ignoring corrupt image/label: "


def verify(arguments: tuple[Any, ...]) -> Sequence[Any]:
    """Call Ultralytics' ``verify_image_label``, except for truncated JPEGs: it would repair the file in place."""
    problem = cut_short(arguments[0])
    if problem:
        return [None] * 5 + [0, 0, 0, 1, f"{arguments[2]}{arguments[0]}: {_IGNORED}{problem}"]
    found: Sequence[Any] = stock.verify_image_label(arguments)
    return found


def cut_short(file: str) -> str | None:
    """Return the reason if an image cannot be opened, is too large, or is damaged as far as can be seen; else None."""
    if not os.path.isfile(file):
        return "is no file" if os.path.lexists(file) else "does not exist"
    try:
        with PIL.Image.open(file) as image:
            jpeg = image.format == "JPEG"
            if image.format == "BMP":
                image.load()  # it has no checksum
            elif not jpeg:
                image.verify()
        with open(file, "rb") as content:
            content.seek(-2, os.SEEK_END)
            ended = content.read() == b"\xff\xd9"
    except ModuleNotFoundError as error:  # Ultralytics changes Pillow: what that does not know may be of another format
        return f"cannot identify image file; the package {error.name} reads more formats, such as HEIC"
    except Exception as error:  # decoders raise any class; too many pixels are no OSError
        return str(error)
    return (
        "the JPEG does not end with its end-of-image marker: it is cut short, or bytes follow it; save it anew"
        if jpeg and not ended
        else None
    )


def to_batch(samples: Sequence[Sample], device: torch.device) -> dict[str, Any]:
    """Collate samples and move them to the device, pixels scaled to [0, 1].

    On a CPU the images are in channels-last memory format, which makes the convolutions about twice as fast (yolov5n,
    320 px, batches of 16: 140 instead of 290 ms).
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


def balanced(
    files: Iterable[str], *, labelled: Callable[[str], bool], read: Callable[[str], Sample | None], rest: bool
) -> Iterator[Sample]:
    """Yield images in the order of their files, an image without labels only after one more with labels.

    So the first image has labels, and so have at least half of the first n images, for every n. If half of the first
    files have labels anyway, the order is unchanged. Files are read only as needed.

    Args:
        files: the images.
        labelled: returns whether an image has labels, without reading the image.
        read: makes a sample of an image; None if that cannot be read.
        rest: also yield the images without labels that remain at the end.
    """
    waiting: deque[str] = deque()
    surplus = 0  # of images with labels
    for file in files:
        if not labelled(file):
            waiting.append(file)
        elif (sample := read(file)) is not None:
            surplus += 1
            yield sample
        while waiting and surplus:
            if (sample := read(waiting.popleft())) is not None:
                surplus -= 1
                yield sample
    if rest:
        yield from (sample for sample in map(read, waiting) if sample is not None)
