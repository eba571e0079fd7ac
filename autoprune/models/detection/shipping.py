"""A data set as one array of bytes, for machines that do not see its files."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from autoprune.io.files import new_folder
from autoprune.io.plain_yaml import yaml_line
from autoprune.models import stock
from autoprune.models._base import Adapter
from autoprune.models.detection.data_set import SPLITS, DataSet

Packed = npt.NDArray[np.uint8]
"""A ZIP file, not compressed, as an array: Ray's object store gives all processes of a machine one copy of it."""

_DESCRIPTION = "data.yaml"
_HERE = ("path", "yaml_file", "download", *SPLITS)


@runtime_checkable
class Shippable(Protocol):
    """An adapter whose data set is files that autoprune knows."""

    @property
    def data(self) -> DataSet | None:
        """The data set, or None."""

    def with_data(self, place: Path) -> Adapter:
        """Return the adapter with its data set read from elsewhere, as `unpack` gives it."""


def pack(data: DataSet) -> Packed:
    """Return a data set's images and labels in one array; a test split is left out.

    Raises:
        DataError: a split does not exist, or holds no image.
    """
    splits = {split: data.files(split) for split in SPLITS[:2] if split in data.splits}
    images = sorted({file for files in splits.values() for file in files})
    labels = [file for file in stock.img2label_paths(images) if os.path.isfile(file)]
    folders = {os.path.dirname(file) for file in (*images, *labels)}
    root = data.file if data.file.is_dir() else os.path.commonpath(folders)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", strict_timestamps=False) as archive:
        for file in (*images, *labels):
            archive.write(file, os.path.relpath(file, root))
        if not data.file.is_dir():
            for split, files in splits.items():
                archive.writestr(f"{split}.txt", "".join(f"./{os.path.relpath(file, root)}\n" for file in files))
            archive.writestr(_DESCRIPTION, _description(data, list(splits)))
    return np.frombuffer(content.getbuffer(), dtype=np.uint8)


def unpack(packed: Packed, folder: Path) -> Path:
    """Write a packed data set into a folder; return what `read_data_set`, or a reader of class folders, takes."""
    with zipfile.ZipFile(io.BytesIO(packed.tobytes())) as archive:
        archive.extractall(folder)
    return _place(folder)


def unpack_once(packed: Packed, folder: Path) -> Path:
    """Unpack into a folder's ``data``, unless another process of this machine has; one that just does is waited for.

    Args:
        packed: the data set.
        folder: of this data set alone; it is made if need be, for this user only.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    data = folder / "data"
    with FileLock(folder / "lock"):
        if not data.exists():
            with new_folder(data) as new:
                unpack(packed, new)
    return _place(data)


def _place(folder: Path) -> Path:
    description = folder / _DESCRIPTION
    return description if description.exists() else folder


def _description(data: DataSet, splits: list[str]) -> str:
    """Return the YAML file of the packed data set: its splits are lists of images next to it."""
    kept = {name: value for name, value in data.settings.items() if name not in _HERE}
    return yaml_line({**kept, "names": list(data.names), **{split: f"{split}.txt" for split in splits}})
