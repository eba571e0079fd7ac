"""Candidates of finished runs, for strategies that start from what others found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from autoprune.config import PruningConfig, SearchConfig, named
from autoprune.config.files import CONFIG_FILE, load
from autoprune.errors import ConfigError
from autoprune.journal import JOURNAL_FILE, Journal, read_header
from autoprune.strategies._base import Candidate, holding
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation
from autoprune.workflows.inputs import Inputs, noted_in
from autoprune.workflows.records import check_record
from autoprune.workflows.run import with_model

SAME = (
    *("model", "data", "imgsz", "criterion", "round_to", "stock_yaml", "images", "batch", "seed", "compensate", "bf16"),
)
"""What two runs must have in common for their scores to be comparable."""

READ = ("--model", "--data", "--data (train)")
"""The files that must be the same, too."""


def check_runs(runs: Sequence[str], config: SearchConfig) -> list[Journal]:
    """Return the journals of finished searches that scored candidates as this one does.

    Args:
        runs: their folders.
        config: of the search that starts from them, with the bundled detector filled in if it is meant.

    Raises:
        ConfigError: a folder is not such a search.
        RunError: its journal cannot be read.
    """
    for name in runs:
        _check(Path(name), config)
    digests = Inputs.of(config).digests if runs else {}  # of a large data set, minutes
    return [_journal(Path(name), digests) for name in runs]


def candidates_of_runs(journals: Sequence[Journal], constraint: Constraint) -> tuple[Candidate, ...]:
    """Return the candidates in the journals of searches that this one may choose too, each allocation once."""
    choices = constraint.space.choices

    def chosen(counts: Allocation) -> bool:
        pairs = zip(counts, choices, strict=True)
        return len(counts) == len(choices) and all(count in there for count, there in pairs)

    candidates = (one for journal in journals for one in _candidates(journal) if chosen(one.allocation))
    return tuple({one.allocation: one for one in holding(candidates, constraint)}.values())


def _check(run: Path, config: SearchConfig) -> None:
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"`warm_start` takes the folder of a search, got {run}, which has no {CONFIG_FILE}")
    began = read_header(run / JOURNAL_FILE).get("command", "search")
    if began != "search":
        raise ConfigError(f"`warm_start` takes the folder of a search, got {run}, a run of {began}")
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


def _journal(run: Path, digests: Mapping[str, str]) -> Journal:
    """Return a run's journal; the files that its scores depend on must have the given digests."""
    journal = Journal.read(run / JOURNAL_FILE, check=check_record)
    theirs = noted_in(journal.header)
    for name in READ:
        if theirs.get(name) != digests.get(name):
            raise ConfigError(
                f"`warm_start` needs scores of the same network on the same images, and {run} was made with another "
                f"{name} than is there now; make that search again"
            )
    return journal


def scored_candidates(run: Path) -> list[Candidate]:
    """Return every candidate that a run has scored, in order.

    Raises:
        RunError: its journal cannot be read.
    """
    return _candidates(Journal.read(run / JOURNAL_FILE, check=check_record))


def _candidates(journal: Journal) -> list[Candidate]:
    return [Candidate(tuple(record.key), float(record.value["score"])) for record in journal.records("evaluation")]


def _plain(value: object) -> object:
    return value.absolute() if isinstance(value, Path) else value
