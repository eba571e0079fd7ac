"""Read the YAML file of a data set, with the type of every used entry checked."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import DataError
from autoprune.io.plain_yaml import read_values
from autoprune.models import stock

_MOST_CLASSES = 100_000


def read_description(file: Path) -> dict[str, Any]:
    """Return the entries of a data set's YAML file.

    Raises:
        DataError: the file is missing or malformed, or an entry has a wrong type.
    """
    if file.is_dir():
        raise DataError(
            f"the data set {file} is a folder; give the YAML file with train, val and names that describes it"
        )
    if not file.is_file():
        raise DataError(f"the data set file {file} does not exist (a YAML file with train, val and names is expected)")
    if file.suffix.lower() not in {".yaml", ".yml"}:
        raise DataError(f"the data set must be described by a .yaml file, got {file}")
    try:
        described = {name: value for name, value in read_values(file).items() if value is not None}
    except ValueError as error:
        raise DataError(f"the data set file {file} {error}") from error
    if not isinstance(described.get("path", ""), str):
        raise DataError(f"'path' of {file} must be the path of a folder, got {_shown(described['path'])}")
    _check_keypoints(file, described)
    return described


def class_names(file: Path, described: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in the order of their indices.

    Raises:
        DataError: the description names no classes, or contradicts itself.
    """
    names, count = described.get("names"), described.get("nc")
    if names is None and count is None:
        raise DataError(f"{file} must name its classes: it has neither 'names' nor 'nc'")
    if count is not None and not (_is_whole(count) and 1 <= count <= _MOST_CLASSES):
        raise DataError(f"'nc' of {file} must be a whole number from 1 to {_MOST_CLASSES}, got {_shown(count)}")
    if names is None:
        return tuple(f"class_{index}" for index in range(described["nc"]))
    if isinstance(names, dict):
        if not all(map(_is_whole, names)) or sorted(names) != list(range(len(names))):
            raise DataError(f"'names' of {file} must be numbered 0 to {len(names) - 1}, got {_shown(list(names))}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"'names' of {file} must be a list or an index-to-name mapping, got {_shown(names)}")
    for name in names:
        if name is None or isinstance(name, (list, dict)):
            raise DataError(f"'names' of {file} must be texts, got {_shown(name)}; write it in quotes")
    if count is not None and count != len(names):
        raise DataError(f"{file} contradicts itself: 'nc' is {count}, but 'names' has {len(names)} entries")
    return tuple(map(str, names))


def root_of(file: Path, described: Mapping[str, Any]) -> Path:
    """Return the folder that the paths of splits are relative to."""
    root = Path(described.get("path") or file.parent)
    if not _exists(root, file) and not root.is_absolute():
        root = Path(stock.DATASETS_DIR) / root
    return Path(os.path.realpath(root))


def places_of(file: Path, split: str, given: object, root: Path) -> tuple[Path, ...]:
    """Return the folders or lists of a split's images.

    Raises:
        DataError: the entry is neither a path nor a list of paths.
    """
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{split!r} of {file} must be a path or a list of paths, got {_shown(given)}")
    places = []
    for entry in entries:
        place = root / entry
        if not _exists(place, file) and entry.startswith("../"):  # exports of Roboflow are one folder off
            place = root / entry[3:]
        places.append(Path(os.path.realpath(place)))
    return tuple(places)


def _exists(path: Path, file: Path) -> bool:
    """Return whether a file or folder exists; impossible names raise ``DataError``."""
    try:
        os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            return False
        raise DataError(f"{file} names a path that no file can have: {_shown(str(path))}") from error
    return True


def _check_keypoints(file: Path, described: Mapping[str, Any]) -> None:
    """Check the shape of keypoints and their mirrored order, if given."""
    shape, order = described.get("kpt_shape"), described.get("flip_idx")
    if shape is not None and not (_are_whole(shape) and len(shape) == 2 and shape[0] >= 1 and shape[1] in (2, 3)):
        raise DataError(f"'kpt_shape' of {file} must be [keypoints, 2 or 3], such as [17, 3], got {_shown(shape)}")
    if order is not None and not (shape and _are_whole(order) and sorted(order) == list(range(shape[0]))):
        raise DataError(
            f"'flip_idx' of {file} must have each number below the keypoints of 'kpt_shape' once, got {_shown(order)}"
        )


def _is_whole(value: object) -> bool:
    return type(value) is int


def _are_whole(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


def _shown(value: object) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
