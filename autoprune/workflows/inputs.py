"""The files that a run reads, by their content: what a resume compares, so that old and new figures do not mix.

Weights, policies and other single files count by their SHA-256. Of a data set there can be a hundred thousand files:
its images count by name and size, its labels by name and SHA-256. What a network's own function reads is not known, so
of ``FILE.py:FUNCTION`` only that file and the checkpoint count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from autoprune.choices import DARKNET, match_factory
from autoprune.config import WHERE, ProfileConfig, PruningConfig, RunConfig, SparsifyConfig, option
from autoprune.demo import demo_weights, shapes_dataset
from autoprune.errors import DataError
from autoprune.io.files import sha256_of
from autoprune.io.records import read_record
from autoprune.journal import JOURNAL_FILE

Marks = Mapping[str, str]
"""Files by name, each with what tells its content from another."""

_DEMONSTRATED = (PruningConfig, SparsifyConfig, ProfileConfig)
"""Configurations that mean the bundled detector if they name none."""

_SPLITS = ("train", "val")
_LABEL_DIGITS = 16


@dataclass(frozen=True)
class Inputs:
    """The files of a run.

    Attributes:
        groups: by the option that names them, and of a data set by split, the files that are there.
    """

    groups: Mapping[str, Marks]

    @classmethod
    def of(cls, config: RunConfig) -> Inputs:
        """Look at the files that a configuration names; what is missing or malformed is left to those who read it."""
        given = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in WHERE}
        if isinstance(config, _DEMONSTRATED) and given["model"] is None and given["data"] is None:
            given["model"] = demo_weights()
            if not isinstance(config, ProfileConfig):  # it draws images only if it needs any
                given["data"] = shapes_dataset()
        groups: dict[str, Marks] = {}
        for name, value in given.items():
            if name == "data" and value is not None:
                groups |= _data_set(value)
            elif files := _files(name, value):
                groups[option(name)] = _marked([file for file in files if os.path.isfile(file)])
        return cls(groups)

    @property
    def digests(self) -> dict[str, str]:
        """One SHA-256 per group: small enough for a journal's header."""
        return {name: _digest(marks) for name, marks in self.groups.items()}

    def to_json(self) -> str:
        """Return all files as JSON, one per line, to tell later which of them changed."""
        return json.dumps(self.groups, indent=1) + "\n"

    def changes(self, digests: Mapping[str, Any], listing: Path) -> str:
        """Say what is not as it was; empty if nothing is.

        Args:
            digests: what ``digests`` was.
            listing: a file with what ``to_json`` was; one that does not fit the digests is not believed.
        """
        ours, before = self.digests, _listed(listing)
        found = []
        for name in {**digests, **ours}:
            if digests.get(name) != ours.get(name):
                known = before.get(name, {})
                believed = name not in digests or _digest(known) == digests[name]
                found.append(f"{name}: {_difference(known, self.groups.get(name, {})) if believed else 'changed'}")
        return "; ".join(found)


def data_digests(path: Path) -> dict[str, str]:
    """Return one digest per part of a data set: its description, and each split."""
    return Inputs(dict(_data_set(path))).digests


def source_digest(model: Path) -> dict[str, str]:
    """Return the digest of the file that builds a network, ``FILE.py:FUNCTION``; empty for other models."""
    found = match_factory(model)
    return {"source": sha256_of(_source(found["source"]))} if found else {}


def noted_in(header: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the digests in a journal's header; empty if somebody has taken them out."""
    digests = header.get("inputs")
    return digests if isinstance(digests, Mapping) else {}


# -- which files -----------------------------------------------------------------------------------


def _files(name: str, value: object) -> Sequence[Path]:
    """Return the files that an option names; options that name none have none."""
    if name == "warm_start":
        return [Path(run) / JOURNAL_FILE for run in value] if isinstance(value, tuple) else []
    if name == "architecture":
        return [Path(value)] if isinstance(value, str) else []  # of one's own; Ultralytics' have no file here
    if not isinstance(value, Path):
        return []
    if found := match_factory(value):
        return [_source(found["source"]), *([Path(found["weights"])] if found["weights"] else [])]
    return [value.with_suffix(suffix) for suffix in DARKNET] if value.suffix in DARKNET else [value]


def _source(named: str) -> Path:
    """Return the file of a module that is named by path or as ``package.module``, without running any of it."""
    if named.endswith(".py"):
        return Path(named)
    places: Sequence[str] | None = None
    origin = ""
    for part in named.split("."):
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return Path(named)
        places, origin = spec.submodule_search_locations or [], spec.origin or ""
    return Path(origin)


def _data_set(path: Path) -> Iterator[tuple[str, Marks]]:
    """Yield a data set's description and splits."""
    from autoprune.models.detection.data_set import read_data_set  # late: Ultralytics loads slowly
    from autoprune.models.ultralytics.data import read_class_folders

    if os.path.isfile(path):
        yield "--data", {path.name: sha256_of(path)}
    try:
        data = read_class_folders(path) if os.path.isdir(path) else read_data_set(path)
    except (DataError, OSError):
        return
    for split in _SPLITS:
        try:
            files = data.files(split)
        except DataError:
            continue
        yield f"--data ({split})", dict(_marks(files, Path(data.settings["path"])))


def _marks(images: Sequence[str], root: Path) -> Iterator[tuple[str, str]]:
    """Yield a split's images with their sizes, and its label files with their digests."""
    from autoprune.models import stock

    start = f"{root}{os.sep}"
    for image, label in zip(images, stock.img2label_paths(images), strict=True):
        try:
            yield image.removeprefix(start), str(os.stat(image).st_size)
            with open(label, "rb") as file:
                yield label.removeprefix(start), hashlib.sha256(file.read()).hexdigest()[:_LABEL_DIGITS]
        except OSError:
            continue  # an image without objects needs no labels; one that is listed and absent is skipped later


# -- what they hold --------------------------------------------------------------------------------


def _marked(files: Sequence[Path]) -> Marks:
    """Return the SHA-256 of the files of an option by names that tell them apart, wherever their folders lie."""
    marks: dict[str, str] = {}
    for file in files:
        name = f"{file.absolute().parent.name}/{file.name}"
        same = sum(other.partition(" (")[0] == name for other in marks)
        marks[f"{name} ({same + 1})" if same else name] = sha256_of(file)
    return marks


def _digest(marks: Marks) -> str:
    return hashlib.sha256(json.dumps(sorted(marks.items())).encode()).hexdigest()


def _listed(file: Path) -> Mapping[str, Marks]:
    """Return the groups of a file that ``to_json`` made; none if it is something else."""
    try:
        return read_record(file.read_text(encoding="utf-8"), dict[str, dict[str, str]], "the listing")
    except (OSError, ValueError):
        return {}


def _difference(before: Marks, now: Marks) -> str:
    """Say which files are gone, new or changed: one by its name, several by their number and the first name."""
    common = before.keys() & now.keys()
    kinds = {
        ("is gone", "are gone"): before.keys() - now.keys(),
        ("is new", "are new"): now.keys() - before.keys(),
        ("has changed", "have changed"): {name for name in common if before[name] != now[name]},
    }
    return ", ".join(
        f"{min(names)} {one}" if len(names) == 1 else f"{len(names)} files {many}, {min(names)} the first"
        for (one, many), names in kinds.items()
        if names
    )
