"""The only timing loop: warm up until stable, run in turn, keep medians and their spread.

A shared machine drifts by tens of percent within a minute, so absolute times of two networks cannot be compared unless
they were taken in turn. Everything here interleaves single runs, and what is compared is the ratio of medians.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from autoprune.runtimes._base import Runner

Times = npt.NDArray[np.float64]
"""Milliseconds of single runs, shape (rounds, runners)."""

_WARM_WINDOW = 3
_WARM_TOLERANCE = 0.05
_BATCH = 10
_RESAMPLES = 200
_FENCE = 1.5


@dataclass(frozen=True)
class MeasurementConfig:
    """How long to measure.

    Attributes:
        runs: runs of each network, unless ``seconds`` are over; 40 keep a ratio within about 2.5% on a shared machine.
        least: runs of each network in any case.
        max_runs: runs of each network at most, where the spread stays above what was asked.
        spread: half width of the ratio's 90% interval that is asked for, relative.
        seconds: no runs are added once the timed ones took this long.
        warm_up: warm-up runs at most.
    """

    runs: int = 40
    least: int = 10
    max_runs: int = 120
    spread: float = 0.025
    seconds: float = 6.0
    warm_up: int = 30

    def more(self, times: Times, spread: float) -> int:
        """Return how many runs to add to those taken, shape (rounds, runners), whose ratio has this spread."""
        taken = len(times)
        if taken < self.least:
            return self.least - taken
        if times.sum() >= self.seconds * 1e3 or (taken >= self.runs and spread <= self.spread):
            return 0
        return min(_BATCH, self.max_runs - taken)


@dataclass(frozen=True)
class Timing:
    """Times of one network.

    Attributes:
        median: milliseconds.
        p10: tenth percentile, milliseconds.
        p90: ninetieth percentile, milliseconds.
        runs: how many runs were timed.
        outliers: how many of them lie more than 1.5 interquartile ranges beyond a quartile, because something else held
            the device up; they count in the figures above like all others.

    Source:
        Tukey, Exploratory Data Analysis, 1977, section 2D (fences).
    """

    median: float
    p10: float
    p90: float
    runs: int
    outliers: int = 0

    @classmethod
    def of(cls, times: npt.NDArray[np.float64]) -> Timing:
        """Summarise milliseconds of single runs, shape (runs,)."""
        p10, low, median, high, p90 = (float(value) for value in np.percentile(times, (10, 25, 50, 75, 90)))
        fence = _FENCE * (high - low)
        outliers = int(((times < low - fence) | (times > high + fence)).sum())
        return cls(median, p10, p90, len(times), outliers)

    def scaled(self, factor: float) -> Timing:
        """Return the same timing with every time multiplied."""
        return replace(self, median=self.median * factor, p10=self.p10 * factor, p90=self.p90 * factor)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Timing:
        """Read what ``to_json`` gave; what was written before outliers were counted has none."""
        return cls(
            float(values["median"]),
            float(values["p10"]),
            float(values["p90"]),
            int(values["runs"]),
            int(values.get("outliers", 0)),
        )


@dataclass(frozen=True)
class PairedTiming:
    """A candidate and the dense network, timed in turn.

    Attributes:
        candidate: the candidate's times.
        dense: the dense network's times, taken between the candidate's; of another network where `through` follows.
        ratio: median of the candidate's over median of the dense network's times.
        spread: half width of the ratio's 90% bootstrap interval, relative to the ratio.
        note: what a reader should know, e.g. that the machine was too noisy for what was asked, or that the candidate
            does not run as the settings say; else None.
    """

    candidate: Timing
    dense: Timing
    ratio: float
    spread: float
    note: str | None = None

    def through(self, known: PairedTiming) -> PairedTiming:
        """Return a network timed paired with another as if it had been timed with the dense one.

        Args:
            known: that other network, timed with the dense one.
        """
        return replace(self, dense=self.dense.scaled(1 / known.ratio), ratio=self.ratio * known.ratio)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PairedTiming:
        """Read what ``to_json`` gave."""
        candidate, dense = Timing.from_json(values["candidate"]), Timing.from_json(values["dense"])
        return cls(candidate, dense, float(values["ratio"]), float(values["spread"]), values.get("note"))


def time_alone(runner: Runner, effort: MeasurementConfig) -> Timing:
    """Time one network by itself, for a reference that is kept: as many runs as the effort allows."""
    return time_all([runner], effort)[0]


def time_all(runners: Sequence[Runner], effort: MeasurementConfig) -> list[Timing]:
    """Time any number of networks in turn: as many runs as the effort, whose seconds are for each, allows."""
    for runner in runners:
        warm_up(runner, effort.warm_up)
    whole = replace(effort, seconds=effort.seconds * len(runners))
    times = time_in_turn(runners, effort.least)
    while more := whole.more(times, np.inf):
        times = np.concatenate([times, time_in_turn(runners, more)])
    return [Timing.of(column) for column in times.T]


def time_pair(candidate: Runner, dense: Runner, effort: MeasurementConfig) -> PairedTiming:
    """Time two networks in turn, longer where the ratio of their medians scatters more than asked."""
    for runner in (dense, candidate):
        warm_up(runner, effort.warm_up)
    times = time_in_turn([dense, candidate], effort.least)
    while more := effort.more(times, spread := ratio_spread(times)):
        times = np.concatenate([times, time_in_turn([dense, candidate], more)])
    dense_timing, timing = Timing.of(times[:, 0]), Timing.of(times[:, 1])
    notes = [] if candidate.note is None else [candidate.note]
    if spread > effort.spread:
        outliers = timing.outliers + dense_timing.outliers
        notes.append(
            f"the machine is noisy: after {len(times)} pairs of runs ({outliers} outliers among them) the ratio is "
            f"known to ±{spread:.1%}, asked was ±{effort.spread:.1%}"
        )
    note = "; ".join(notes) or None
    return PairedTiming(timing, dense_timing, timing.median / dense_timing.median, spread, note)


def time_in_turn(runners: Sequence[Runner], rounds: int) -> Times:
    """Run all networks once per round, and return every time, shape (rounds, runners)."""
    times = np.empty((rounds, len(runners)))
    with _no_collection():
        for row in times:
            for index, runner in enumerate(runners):
                row[index] = runner.elapsed()
    return times


def warm_up(runner: Runner, limit: int) -> int:
    """Run until the median of three runs is within 5% of the three before; returns how many runs it took."""
    recent: list[float] = []
    while len(recent) < limit:
        recent.append(runner.elapsed())
        if len(recent) >= 2 * _WARM_WINDOW:
            now = float(np.median(recent[-_WARM_WINDOW:]))
            before = float(np.median(recent[-2 * _WARM_WINDOW : -_WARM_WINDOW]))
            if abs(now - before) <= _WARM_TOLERANCE * before:
                break
    return len(recent)


def ratio_spread(times: Times) -> float:
    """Return the relative half width of the 90% interval of the ratio of medians, by bootstrap over pairs.

    Args:
        times: shape (rounds, 2): dense, candidate. The resampling is seeded, so equal times give equal spreads.

    Source:
        Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3 (percentile interval).
    """
    picks = np.random.default_rng(0).integers(len(times), size=(_RESAMPLES, len(times)))
    medians = np.median(times[picks], axis=1)
    low, high = np.percentile(medians[:, 1] / medians[:, 0], (5, 95))
    ratio = np.median(times[:, 1]) / np.median(times[:, 0])
    return float((high - low) / 2 / ratio)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed runs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
