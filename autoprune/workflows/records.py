"""What a run's journal holds: the type of each record's key and value, by kind.

A resume trusts its journal, and a checksum only says that a record was not changed after it was written: one that
another tool or another version wrote, with its checksum, may hold anything. Every record is checked when the journal is
opened, so that nothing that reads one needs to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from autoprune.errors import ConfigError, RunError
from autoprune.io.fields import fits
from autoprune.journal import Journal, Record
from autoprune.latency.timing import PairedTiming, Timing
from autoprune.runtimes.settings import MemoryFormat
from autoprune.structure.space import Allocation, Space

_Finite = Annotated[float, math.isfinite]
_Positive = Annotated[float, lambda value: 0 < value < math.inf]
_Count = Annotated[int, lambda value: value > 0]
_Counts = Sequence[_Count]
_Timing: Any = Annotated[Timing, lambda value: value["median"] > 0]
_Pair: Any = Annotated[
    PairedTiming,
    lambda value: fits(value["candidate"], _Timing) and fits(value["dense"], _Timing) and value["ratio"] > 0,
]


class _Score(TypedDict):
    score: _Finite
    seconds: float


class _Loss(TypedDict):
    loss: float
    weights: Sequence[_Positive]


class _Iteration(TypedDict):
    allocation: _Counts
    score: _Finite
    changes: Sequence[tuple[int, _Finite]]
    evaluations: int
    fine_tunes: int


class _Outcome(TypedDict):
    entry: str
    seed: int
    allocation: _Counts
    score: _Finite
    evaluations: int
    seconds: float
    history: Sequence[float]
    tried: Sequence[tuple[_Counts, float]]


class _Metrics(TypedDict):
    metrics: Annotated[Mapping[str, float], bool]
    per_class: Mapping[str, Mapping[str, float]]


class _Tuned(TypedDict):
    before: _Metrics | None
    after: _Metrics | None
    costs: Mapping[str, float]


class _Trained(_Tuned):
    name: str


class _Reference(TypedDict):
    row: _Trained | None


class _Criterion(TypedDict):
    criterion: str
    score: float
    before: _Metrics
    after: _Metrics | None
    seconds: float


class _Deployed(_Metrics):
    size_bytes: int


def _word(*words: str) -> Any:
    """Return the type of these words."""
    return Annotated[str, lambda value: value in words]


def _led(*words: str, at: int = 0) -> Any:
    """Return the type of lists that have one of these words at a place."""
    return Annotated[Any, lambda value: isinstance(value, list) and len(value) > at and value[at] in words]


_RECORDS: Sequence[tuple[str, Any, Any]] = (
    (r"evaluation|untied|netadapt \d+", _Counts, _Score),
    (r"(evaluation|untied|netadapt \d+) dense", int, _Loss),
    (r"gains", tuple[_Counts, Sequence[_Counts]], Sequence[Sequence[_Finite]]),
    (r"accuracy", _Counts, _Metrics),
    (r"validation", str, _Metrics),
    (r"batch", int, _Count),
    (r"scored in", _word(""), _word("bf16", "fp32")),
    (r"threads", str, _Count),
    (r"demo image size", str, _Count),
    (r"created", str, str),
    (r"iteration", int, _Iteration),
    (r"outcome", tuple[str, int], _Outcome),
    (r"tuned", tuple[_Counts, int], _Tuned),
    (r"criterion", tuple[str, _Counts], _Criterion),
    (r"reference", str, _Reference),
    (r"quantize", _led("error", "held out", at=1), float),
    (r"quantize", _led("deployed", at=1), _Deployed),
    (r"latency", _word(""), Sequence[_Timing] | _Pair),
    (r"latency(@.*)?", _word("format"), _word(*(member.value for member in MemoryFormat))),
    (r"latency(@.*)?", _word("block"), _Count),
    (r"latency(@.*)?", _word("reference"), _Timing),
    (r"latency(@.*)?", _word("note"), str),
    (r"latency(@.*)?", _word("layers"), Mapping[str, _Positive]),
    (r"latency(@.*)?", _led("beside"), Mapping[str, _Positive]),
    (r"latency(@.*)?", _led("network", "sample"), _Pair),
)
"""A pattern of kinds, with the types of such a record's key and value; several for a kind are alternatives."""


def check_record(record: Record) -> bool:
    """Return whether a record holds what its kind has; one of a kind that nothing reads may hold anything."""
    known = [(key, value) for kind, key, value in _RECORDS if re.fullmatch(kind, record.kind)]
    return not known or any(fits(record.key, key) and fits(record.value, value) for key, value in known)


def recorded_allocation(counts: Sequence[int], space: Space, journal: Journal, kind: str) -> Allocation:
    """Return an allocation that a record of this kind holds.

    Raises:
        RunError: it is none of the network's.
    """
    try:
        return space.allocation(counts)
    except ConfigError as error:
        raise RunError(f"{journal.path}: a record of {kind!r} is not of this network ({error})") from error


def is_known(kind: str) -> bool:
    """Return whether records of a kind are checked."""
    return any(re.fullmatch(pattern, kind) for pattern, *_ in _RECORDS)
