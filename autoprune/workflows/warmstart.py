"""Candidates of finished runs, for strategies that start from what others found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from autoprune.config import PruningConfig, SearchConfig, named
from autoprune.config.files import CONFIG_FILE, load
from autoprune.errors import ConfigError
from autoprune.journal import Journal
from autoprune.strategies._base import Candidate
from autoprune.structure.constraint import Constraint
from autoprune.workflows.folder import JOURNAL
from autoprune.workflows.inputs import Inputs, noted_in
from autoprune.workflows.records import check_record
from autoprune.workflows.run import with_model

SAME = (
    *("model", "data", "imgsz", "criterion", "round_to", "stock_yaml", "images", "batch", "seed", "compensate", "bf16"),
)
"""What two runs must have in common for their scores to be comparable."""

READ = ("--model", "--data", "--data (train)")
"""The files that must be the same, too."""


def candidates_of_runs(runs: Sequence[str], config: SearchConfig, constraint: Constraint) -> tuple[Candidate, ...]:
    """Return the candidates of finished searches that hold the constraint, each allocation once.

    Args:
        runs: their folders.
        config: of the search that starts from them, with the bundled detector filled in if it is meant.
        constraint: what it must hold.

    Raises:
        ConfigError: a folder is not a search that scored candidates as this one does.
        RunError: its journal cannot be read.
    """
    check_runs(runs, config)
    found: dict[tuple[int, ...], Candidate] = {}
    for name in runs:
        for candidate in scored_candidates(Path(name)):
            if len(candidate.allocation) == len(constraint.space) and constraint.holds(np.array(candidate.allocation)):
                found[candidate.allocation] = candidate
    return tuple(found.values())


def check_runs(runs: Sequence[str], config: SearchConfig) -> None:
    """Make sure that ``candidates_of_runs`` can take these runs; nothing is measured yet when this is asked.

    Raises:
        ConfigError: a folder is not a search that scored candidates as this one does.
        RunError: its journal cannot be read.
    """
    digests = Inputs.of(config).digests if runs else {}
    for name in runs:
        _check(Path(name), config)
        _check_files(Path(name), digests)


def _check(run: Path, config: SearchConfig) -> None:
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"`warm_start` takes the folder of a search, got {run}, which has no {CONFIG_FILE}")
    theirs = load("search", run / CONFIG_FILE)
    assert isinstance(theirs, PruningConfig)
    theirs = with_model(theirs)  # as the config of this search is
    for item in fields(config):
        ours, other = getattr(config, item.name), getattr(theirs, item.name)
        if item.name in SAME and _plain(ours) != _plain(other):
            raise ConfigError(
                f"`warm_start` needs scores of the same network on the same images: {run} has {named(item.name)} "
                f"{other}, this search {ours}"
            )


def _check_files(run: Path, digests: Mapping[str, str]) -> None:
    theirs = noted_in(Journal.read(run / JOURNAL, check=check_record).header) or {}
    for name in READ:
        if theirs.get(name) != digests.get(name):
            raise ConfigError(
                f"`warm_start` needs scores of the same network on the same images, and {run} was made with another "
                f"{name} than is there now; make that search again"
            )


def scored_candidates(run: Path) -> list[Candidate]:
    """Return every candidate that a run has scored, in order.

    Raises:
        RunError: its journal cannot be read.
    """
    records = Journal.read(run / JOURNAL, check=check_record).records("evaluation")
    return [Candidate(tuple(record.key), float(record.value["score"])) for record in records]


def _plain(value: object) -> object:
    return value.absolute() if isinstance(value, Path) else value
