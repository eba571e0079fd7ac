"""The options of every command: one dataclass per command, its field docs are the command line's help.

A configuration checks itself when it is made, so whoever holds one may trust it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from autoprune.choices import match_factory
from autoprune.config._base import (
    IMAGE_MULTIPLE,
    BudgetedConfig,
    PruningConfig,
    ReconstructingConfig,
    ResumableConfig,
    RunConfig,
    RuntimeConfig,
    WorkersConfig,
)
from autoprune.config._checks import PLACE, devices_of, named, option
from autoprune.config.data import DataConfig
from autoprune.config.doctor import DoctorConfig
from autoprune.config.export import ExportConfig
from autoprune.config.mask import MaskConfig
from autoprune.config.profile import ProfileConfig
from autoprune.config.quantize import QuantizeConfig
from autoprune.config.report import ReportConfig
from autoprune.config.search import BenchmarkEntry, CompareConfig, NetAdaptConfig, SearchConfig, SensitivityConfig
from autoprune.config.sparsity import SlimConfig, SparsifyConfig, SparsityConfig
from autoprune.config.training import ApplyConfig, TrainConfig
from autoprune.image_size import ImageSize
from autoprune.io.plain_yaml import yaml_line

__all__ = [
    "COMMANDS",
    "EXTENDABLE",
    "IMAGE_MULTIPLE",
    "PLACE",
    "SHOWING",
    "WHERE",
    "ApplyConfig",
    "BenchmarkEntry",
    "BudgetedConfig",
    "CompareConfig",
    "Config",
    "DataConfig",
    "DoctorConfig",
    "ExportConfig",
    "MaskConfig",
    "NetAdaptConfig",
    "ProfileConfig",
    "PruningConfig",
    "QuantizeConfig",
    "ReconstructingConfig",
    "ReportConfig",
    "ResumableConfig",
    "RunConfig",
    "RuntimeConfig",
    "SearchConfig",
    "SensitivityConfig",
    "SlimConfig",
    "SparsifyConfig",
    "SparsityConfig",
    "TrainConfig",
    "WorkersConfig",
    "devices_of",
    "named",
    "option",
    "plain_values",
    "to_yaml",
    "yaml_of",
]

Config: TypeAlias = RunConfig | DataConfig | DoctorConfig | ReportConfig

COMMANDS: dict[str, type[Config]] = {
    "search": SearchConfig,
    "netadapt": NetAdaptConfig,
    "sensitivity": SensitivityConfig,
    "compare": CompareConfig,
    "profile": ProfileConfig,
    "apply": ApplyConfig,
    "train": TrainConfig,
    "sparsify": SparsifyConfig,
    "slim": SlimConfig,
    "mask": MaskConfig,
    "export": ExportConfig,
    "quantize": QuantizeConfig,
    "report": ReportConfig,
    "data": DataConfig,
    "doctor": DoctorConfig,
}
"""Every command by its name, with the configuration it takes."""

EXTENDABLE: dict[str, tuple[str, ...]] = {"compare": ("strategies", "seeds", "criteria")}
"""Options that may be changed when a run goes on: it then does more than at first."""

SHOWING = ("tracker", "report", "quiet", "verbose", "workers", "ship_data")
"""Options that change what is shown of a run, or who computes it, not what it finds: a resumed one may have others."""


WHERE = ("out", "project", "name", "resume")
"""Options that say where a run's folder is: nothing that a run finds depends on them."""

UNKEPT = ("out", "resume", "trust_checkpoint", "download", "report", "quiet", "verbose")
"""What a file of options does not hold: the folder it lies in, so that it can be run again, how a run goes on, whom its
user trusts, what is fetched and shown.
"""


def to_yaml(config: Config) -> str:
    """Return a configuration as YAML that ``config`` reads back to an equal one, from any folder.

    Paths become absolute, and what is in ``UNKEPT`` is left out.
    """
    return yaml_of(_kept(config))


def plain_values(config: Config) -> dict[str, object]:
    """Return what ``to_yaml`` writes, as plain values by name."""
    return {name: _plain(value) for name, value in _kept(config).items()}


def _kept(config: Config) -> dict[str, object]:
    return {item.name: getattr(config, item.name) for item in fields(config) if item.name not in UNKEPT}


def yaml_of(values: Mapping[str, object]) -> str:
    """Return values of a configuration's fields as YAML that ``config`` reads; paths become absolute."""
    return "".join(f"{name}: {yaml_line(_plain(value))}\n" for name, value in values.items())


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, ImageSize):
        return value.plain
    return _absolute(value) if isinstance(value, Path) else value


def _absolute(path: Path) -> str:
    """Return a path that means the same from any folder; of a function that builds a network, its files' paths."""
    found = match_factory(path)
    if not found:
        return str(path.absolute())
    source = Path(found["source"]).absolute() if found["source"].endswith(".py") else found["source"]
    weights = f"@{Path(found['weights']).absolute()}" if found["weights"] else ""
    return f"{source}:{found['function']}{weights}"
