"""The data set of a classifier: a folder with ``train/<class>/*.jpg``, ``val/<class>/*.jpg`` and maybe ``test``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoprune.errors import DataError
from autoprune.models import stock
from autoprune.models.detection.data_set import DataSet, as_one_class, cut_short, read_data_set

_FOLDERS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
"""What Ultralytics takes as a split's folder, the first that is there."""


def read_class_folders(folder: Path) -> DataSet:
    """Read a classifier's data set; the classes are the training split's folders, sorted by name.

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
    """Read a data set in the form that a task has it: class folders of a classifier, else a YAML file.

    Args:
        data: the folder or the file.
        task: Ultralytics' name of it.
        single_class: take every label of a YAML file as of one class, as a training with ``single_cls=True`` does.

    Raises:
        DataError: it is missing or malformed.
    """
    if task == "classify":
        return read_class_folders(data)
    found = read_data_set(data)
    return as_one_class(found) if single_class else found


def class_of(file: str, data: DataSet) -> str:
    """Return the class of an image: the name of the folder, directly in a split's, that it lies in."""
    for places in data.splits.values():
        for place in places:
            if Path(file).is_relative_to(place):
                return Path(file).relative_to(place).parts[0]
    raise ValueError(f"{file} lies in no split of {data.file}")


class TrainingFolders(stock.ClassificationDataset):  # type: ignore[misc]
    """Ultralytics' data set as its trainer uses it, except that it writes nothing into the user's data."""

    def verify_images(self) -> list[Any]:
        """Return the images that can be opened; Ultralytics would keep a list of them next to the split's folder."""
        return [sample for sample in self.samples if cut_short(sample[0]) is None]
