"""The options of ``autoprune data``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autoprune.choices import DataSetName
from autoprune.config._checks import by_place


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Turn a published data set, as its archive is unpacked, into an Ultralytics data set.

    Attributes:
        data_set: which one: oxford-hand (Mittal, Zisserman and Torr, Hand detection using multiple proposals, BMVC
            2011)
        source: the folder that its archive was unpacked to
        target: the folder to write, which must not exist yet: images, labels and a YAML file
    """

    data_set: DataSetName = field(metadata=by_place("NAME"))
    source: Path = field(metadata=by_place("SRC"))
    target: Path = field(metadata=by_place("DST"))
