"""The only timing loop: warm up until stable, interleave runs, keep medians and their spread.

A shared machine drifts by tens of percent within a minute, so times of two networks can be compared only if their runs
were interleaved. All functions here interleave single runs; comparisons use the ratio of medians. If other processes
take the cores meanwhile, most runs wait for one: then the tenth percentile stands in place of the median, of CPU time
where one thread computes, and the figures are marked.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from autoprune.arrays import Array
from autoprune.listener import step_bar
from autoprune.runtimes._base import Runner, Times
from autoprune.runtimes.load import LoadWatch

_WARM_WINDOW = 3
_WARM_TOLERANCE = 0.05
_BATCH = 10
_RESAMPLES = 200
_FENCE = 1.5
_MEDIAN, _UNDER_LOAD = 50, 10
_MEANS_LEAST, _MEANS_SHARE = 3, 20


@dataclass(frozen=True)
class MeasurementConfig:
    """How long to measure.

    Attributes:
        runs: runs of each network, unless ``seconds`` are over; 40 keep a ratio within about 2.5% on a shared machine.
        least: minimum of runs of each network.
        max_runs: maximum of runs of each network, reached if the spread stays above ``spread``.
        spread: wanted relative half width of the ratio's 90% interval.
        seconds: no runs are added once the timed ones took this long.
        warm_up: maximum of warm-up runs.
        threads: CPU threads of a run; other processes disturb it if they leave fewer cores.
    """

    runs: int = 40
    least: int = 10
    max_runs: int = 120
    spread: float = 0.025
    seconds: float = 6.0
    warm_up: int = 30
    threads: int = 1

    def of_means(self) -> MeasurementConfig:
        """Return the configuration if every run yields a mean or median of many: 3 runs, rarely more, and no warm-up.

        So does a benchmark command, which loads the network anew each time, and a window in which energy is counted.

        Example:
            >>> MeasurementConfig(runs=80, max_runs=240).of_means().max_runs
            12
        """
        runs, most = (max(_MEANS_LEAST, count // _MEANS_SHARE) for count in (self.runs, self.max_runs))
        return replace(self, runs=runs, least=_MEANS_LEAST, max_runs=most, warm_up=0)

    def more(self, times: Times, spread: float) -> int:
        """Return how many runs to add to the given ones, shape (rounds, runners), with this spread of their ratio."""
        taken = len(times)
        if taken < self.least:
            return self.least - taken
        if times.sum() >= self.seconds * 1e3 or (taken >= self.runs and spread <= self.spread):
            return 0
        return min(_BATCH, (self.runs if taken < self.runs else self.max_runs) - taken)


@dataclass(frozen=True)
class Timing:
    """Times of one network.

    Attributes:
        median: milliseconds; the tenth percentile if ``under_load``, of CPU time if a single thread computes.
        p10: tenth percentile, milliseconds.
        p90: ninetieth percentile, milliseconds.
        runs: number of timed runs.
        outliers: number of runs more than 1.5 interquartile ranges beyond a quartile; they are not removed.
        under_load: whether other processes used the cores meanwhile.
        p95: ninety-fifth percentile, milliseconds.

    Source:
        Tukey, Exploratory Data Analysis, 1977, section 2D (fences).
    """

    median: float
    p10: float
    p90: float
    runs: int
    outliers: int = 0
    under_load: bool = False
    p95: float = 0.0

    @classmethod
    def of(cls, times: Array, *, under_load: bool = False) -> Timing:
        """Summarise milliseconds of single runs, shape (runs,)."""
        p10, low, median, high, p90, p95 = (float(one) for one in np.percentile(times, (10, 25, 50, 75, 90, 95)))
        fence = _FENCE * (high - low)
        outliers = int(((times < low - fence) | (times > high + fence)).sum())
        return cls(p10 if under_load else median, p10, p90, len(times), outliers, under_load, p95)

    def scaled(self, factor: float) -> Timing:
        """Return the same timing with every time multiplied."""
        names = ("median", "p10", "p90", "p95")
        return replace(self, **{name: getattr(self, name) * factor for name in names})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Timing:
        """Read the result of ``to_json``."""
        return cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})


@dataclass(frozen=True)
class PairedTiming:
    """Times of a candidate and the dense network, with interleaved runs.

    Attributes:
        candidate: the candidate's times.
        dense: the dense network's times, or another network's if `chained` follows.
        ratio: median of the candidate's over median of the dense network's times (tenth percentiles under load).
        spread: half width of the ratio's 90% bootstrap interval, relative to the ratio.
        note: a remark for users, e.g. that the machine was too noisy, or that the candidate does not run as the
            settings say; else None.
    """

    candidate: Timing
    dense: Timing
    ratio: float
    spread: float
    note: str | None = None

    @property
    def under_load(self) -> bool:
        """Whether other processes used the cores meanwhile."""
        return self.candidate.under_load or self.dense.under_load

    def chained(self, known: PairedTiming) -> PairedTiming:
        """Return the ratio to the dense network of a candidate that was paired with another network.

        Args:
            known: the other network, paired with the dense one.
        """
        return replace(self, dense=self.dense.scaled(1 / known.ratio), ratio=self.ratio * known.ratio)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PairedTiming:
        """Read the result of ``to_json``."""
        candidate, dense = Timing.from_json(values["candidate"]), Timing.from_json(values["dense"])
        return cls(candidate, dense, float(values["ratio"]), float(values["spread"]), values.get("note"))


def time_alone(runner: Runner, config: MeasurementConfig) -> Timing:
    """Time one network by itself, for a reference: as many runs as the configuration allows."""
    return time_all([runner], config)[0]


def time_all(runners: Sequence[Runner], config: MeasurementConfig) -> list[Timing]:
    """Time networks with interleaved runs: as many as the configuration allows, whose seconds are for each network."""
    for runner in runners:
        warm_up(runner, config.warm_up)
    whole, watch = replace(config, seconds=config.seconds * len(runners)), runners[0].watch() or LoadWatch()
    with step_bar("Timing", config.max_runs) as advance:
        clocks = _clocks(runners, config.least)
        while more := whole.more(clocks[0], np.inf):
            clocks = np.concatenate([clocks, _clocks(runners, more)], axis=1)
            advance(clocks.shape[1])
    under_load = watch.disturbs(config.threads)
    times = _surviving(clocks, runners, under_load=under_load)
    return [Timing.of(column, under_load=under_load) for column in times.T]


def time_pair(candidate: Runner, dense: Runner, config: MeasurementConfig) -> PairedTiming:
    """Time two networks with interleaved runs, longer if the spread of their ratio is above the wanted one."""
    for runner in (dense, candidate):
        warm_up(runner, config.warm_up)
    board = dense.watch()
    watch = board or LoadWatch()
    clocks = _clocks([dense, candidate], config.least)
    while more := config.more(clocks[0], ratio_spread(clocks[0])):
        clocks = np.concatenate([clocks, _clocks([dense, candidate], more)], axis=1)
    under_load = watch.disturbs(config.threads)
    times = _surviving(clocks, [dense, candidate], under_load=under_load)
    spread = ratio_spread(times, percentile=_UNDER_LOAD if under_load else _MEDIAN)
    dense_timing, timing = (Timing.of(column, under_load=under_load) for column in times.T)
    notes = [note for note in (candidate.note, board and board.remark()) if note]
    if spread > config.spread:
        outliers = timing.outliers + dense_timing.outliers
        notes.append(
            f"the machine is noisy: after {len(times)} pairs of runs ({outliers} outliers among them) the ratio is "
            f"known to ±{spread:.1%}, asked was ±{config.spread:.1%}"
        )
    note = "; ".join(notes) or None
    return PairedTiming(timing, dense_timing, timing.median / dense_timing.median, spread, note)


def time_interleaved(runners: Sequence[Runner], rounds: int) -> Times:
    """Run all networks once per round, and return every time, shape (rounds, runners)."""
    return np.asarray(_clocks(runners, rounds)[0])


def _clocks(runners: Sequence[Runner], rounds: int) -> Times:
    """Return the times of interleaved runs and the CPU times of this thread meanwhile, shape (2, rounds, runners)."""
    times = runners[0].rounds(runners, rounds)
    if times is not None:
        return np.stack([times, times])  # no thread of this process computed
    clocks = np.empty((2, rounds, len(runners)))
    with _no_collection():
        for number in range(rounds):
            for index, runner in enumerate(runners):
                start = time.thread_time()
                clocks[0, number, index] = runner.elapsed()
                clocks[1, number, index] = 1e3 * (time.thread_time() - start)
    return clocks


def _surviving(clocks: Times, runners: Sequence[Runner], *, under_load: bool) -> Times:
    """Return the times that count: CPU times if a single thread computed under load."""
    return np.asarray(clocks[int(under_load and all(runner.in_thread for runner in runners))])


def warm_up(runner: Runner, limit: int) -> int:
    """Run until the median of three runs is within 5% of the three before; return the number of runs."""
    recent: list[float] = []
    while len(recent) < limit:
        few = max(1, min(limit, 2 * _WARM_WINDOW) - len(recent))  # the first look is at these
        recent += time_interleaved([runner], few)[:, 0].tolist()
        if len(recent) >= 2 * _WARM_WINDOW:
            now = float(np.median(recent[-_WARM_WINDOW:]))
            before = float(np.median(recent[-2 * _WARM_WINDOW : -_WARM_WINDOW]))
            if abs(now - before) <= _WARM_TOLERANCE * before:
                break
    return len(recent)


def ratio_spread(times: Times, *, percentile: int = _MEDIAN) -> float:
    """Return the relative half width of the 90% interval of the ratio of medians, by bootstrap over pairs.

    Args:
        times: shape (rounds, 2): dense, candidate. The resampling is seeded, so equal times give equal spreads.
        percentile: in place of the median.

    Source:
        Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3 (percentile interval).
    """
    picks = np.random.default_rng(0).integers(len(times), size=(_RESAMPLES, len(times)))
    found = np.percentile(times[picks], percentile, axis=1)
    low, high = np.percentile(found[:, 1] / found[:, 0], (5, 95))
    dense, candidate = np.percentile(times, percentile, axis=0)
    ratio = candidate / dense
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
