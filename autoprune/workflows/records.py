"""What a run's journal holds: the type of each record's key and value, by kind.

A resume trusts its journal, and a checksum only says that a record was not changed after it was written: one that
another tool or another version wrote, with its checksum, may hold anything. Every record is checked when the journal is
opened, so that nothing that reads one needs to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt, MinLen, Predicate
from pydantic import AllowInfNan, FiniteFloat
from typing_extensions import TypedDict

from autoprune.errors import ConfigError, RunError
from autoprune.io.journal_lines import Record
from autoprune.io.records import fits
from autoprune.journal import Journal
from autoprune.latency.timing import PairedTiming, Timing
from autoprune.metrics import METRICS
from autoprune.runtimes.settings import MemoryFormat
from autoprune.structure.space import Allocation, Space

_Whole = Annotated[int, Lt(2**53)]
_Finite = FiniteFloat
_Positive = Annotated[float, AllowInfNan(False), Gt(0)]
_Count = Annotated[int, Gt(0), Lt(2**53)]
_Counts = Sequence[_Count]
_Timing = Annotated[Timing, Predicate(lambda timing: timing.median > 0)]
_Pair = Annotated[
    PairedTiming, Predicate(lambda pair: pair.candidate.median > 0 and pair.dense.median > 0 and pair.ratio > 0)
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
    changes: Sequence[tuple[_Whole, _Finite]]
    evaluations: _Whole
    fine_tunes: _Whole


class _Outcome(TypedDict):
    entry: str
    seed: _Whole
    allocation: _Counts
    score: _Finite
    evaluations: _Whole
    seconds: float
    history: Sequence[float]
    tried: Sequence[tuple[_Counts, float]]


class _Metrics(TypedDict):
    metrics: Annotated[Mapping[str, float], MinLen(1)]
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
    size_bytes: _Whole


def _led(*words: str, at: int = 0) -> Predicate:
    """Return what lists meet that have one of these words at a place."""
    return Predicate(lambda value: len(value) > at and value[at] in words)


_Error = Annotated[list[Any], _led("error", "held out", at=1)]
_DeployedKey = Annotated[list[Any], _led("deployed", at=1)]
_Beside = Annotated[list[Any], _led("beside")]
_Measured = Annotated[list[Any], _led("network", "sample")]
_METRIC = rf"({'|'.join(spec.name for spec in METRICS if not spec.cost)})(@.*)?"

_RECORDS: Sequence[tuple[str, Any]] = (
    (r"evaluation|untied|netadapt \d+", tuple[_Counts, _Score]),
    (r"(evaluation|untied|netadapt \d+) dense", tuple[_Whole, _Loss]),
    (r"gains", tuple[tuple[_Counts, Sequence[_Counts]], Sequence[Sequence[_Finite]]]),
    (r"accuracy", tuple[_Counts, _Metrics]),
    (r"validation", tuple[str, _Metrics]),
    (r"batch", tuple[_Whole, _Count]),
    (r"scored in", tuple[Literal[""], Literal["bf16", "fp32"]]),
    (r"threads", tuple[str, _Count]),
    (r"demo image size", tuple[str, _Count]),
    (r"created", tuple[str, str]),
    (r"iteration", tuple[_Whole, _Iteration]),
    (r"outcome", tuple[tuple[str, _Whole], _Outcome]),
    (r"tuned", tuple[tuple[_Counts, _Whole], _Tuned]),
    (r"criterion", tuple[tuple[str, _Counts], _Criterion]),
    (r"reference", tuple[str, _Reference]),
    (r"quantize", tuple[_Error, float]),
    (r"quantize", tuple[_DeployedKey, _Deployed]),
    (r"latency", tuple[Literal[""], Sequence[_Timing] | _Pair]),
    (_METRIC, tuple[Literal["format"], MemoryFormat]),
    (_METRIC, tuple[Literal["block"], _Count]),
    (_METRIC, tuple[Literal["reference"], _Timing]),
    (_METRIC, tuple[Literal["note"], str]),
    (_METRIC, tuple[Literal["layers"], Mapping[str, _Positive]]),
    (_METRIC, tuple[_Beside, Mapping[str, _Positive]]),
    (_METRIC, tuple[_Measured, _Pair]),
)
"""A pattern of kinds, with the type of such a record's key and value; several for a kind are alternatives."""


def check_record(record: Record) -> bool:
    """Return whether a record holds what its kind has; one of a kind that nothing reads may hold anything."""
    known = [content for kind, content in _RECORDS if re.fullmatch(kind, record.kind)]
    return not known or any(fits([record.key, record.value], content) for content in known)


def recorded_allocation(counts: Sequence[int], space: Space, journal: Journal, kind: str) -> Allocation:
    """Return an allocation that a record of this kind holds.

    Raises:
        RunError: it is none of the network's.
    """
    try:
        return space.allocation(counts)
    except ConfigError as error:
        raise RunError(f"{journal.path}: a record of {kind!r} is not of this network ({error})") from error
