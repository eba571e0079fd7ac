"""Which measurements the machine disturbed, and how often one is repeated before it counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from autoprune.latency.timing import PairedTiming

DRIFT = 0.6
"""By how much a ratio may be off if the dense time is off by 1: under load a smaller network loses more.

The demo's network at 34% of the dense one, measured 29 times while the machine was shared: 0.34 when the dense network
took its usual 23 ms, 0.36 at 25 ms, 0.40 at 28 ms, 0.44 at 31 ms.
"""

MOST_UNCERTAINTY = 0.05
"""A measurement whose ratio may be off by more than this share is taken again."""

REPEATS, MOST_REPEATS = 3, 9
"""The summary has the median of 3 undisturbed measurements, of at most 9 in all."""

REMEMBERED = 15
"""What the dense network usually takes is the median of this many last times.

A shared machine's speed can change for good; then the reference that a run began with would call everything disturbed.
"""

Measure = Callable[[int], PairedTiming]
"""Takes the number of the measurement, from 0."""

Uncertainty = Callable[[PairedTiming], float]
"""By what share a measurement may be off."""

Value = Callable[[PairedTiming], float]
"""What a limit compares, such as the milliseconds of a percentile."""


class NoiseModel:
    """Knows how long the dense network takes in this run, and so how far a measured ratio may be off.

    Args:
        reference: milliseconds of the dense network, measured long at the beginning.
    """

    def __init__(self, reference: float) -> None:
        self._recent = deque([reference] * (REMEMBERED // 2 + 1), maxlen=REMEMBERED)

    def learn(self, timing: PairedTiming) -> None:
        """Take note of what the dense network took next to a candidate."""
        self._recent.append(timing.dense.median)

    def uncertainty(self, timing: PairedTiming) -> float:
        """Return by what share a ratio may be off, seen from how the machine has been of late."""
        return timing.spread + DRIFT * abs(timing.dense.median / median(self._recent) - 1)


def least_disturbed(measure: Measure, uncertainty: Uncertainty, attempts: int) -> PairedTiming:
    """Measure, again while the machine disturbs it, and return the measurement that may be off least."""
    timings: list[PairedTiming] = []
    while len(timings) < attempts and (not timings or uncertainty(timings[-1]) > MOST_UNCERTAINTY):
        timings.append(measure(len(timings)))
    return min(timings, key=uncertainty)


def typical(measure: Measure, uncertainty: Uncertainty, value: Value, limit: float | None = None) -> PairedTiming:
    """Measure several times and return the measurement with the median value: one alone may meet a bad moment.

    Measurements that the machine disturbed do not count, as long as there are enough others. A value beyond the limit
    is measured three times as often before it is believed.

    Args:
        measure: takes a measurement.
        uncertainty: by what share one may be off.
        value: of a measurement.
        limit: the value that is allowed, or None.
    """
    timings = _taken([], measure, uncertainty, REPEATS)
    found = _middle(timings, uncertainty, value)
    if limit is None or value(found) <= limit:
        return found
    return _middle(_taken(timings, measure, uncertainty, 3 * REPEATS), uncertainty, value)


def _taken(
    timings: Sequence[PairedTiming], measure: Measure, uncertainty: Uncertainty, repeats: int
) -> Sequence[PairedTiming]:
    """Return the measurements, and more until enough are undisturbed or there are three times as many."""
    timings = list(timings)
    most = repeats * MOST_REPEATS // REPEATS
    while len(timings) < most and sum(uncertainty(timing) <= MOST_UNCERTAINTY for timing in timings) < repeats:
        timings.append(measure(len(timings)))
    return timings


def _middle(timings: Sequence[PairedTiming], uncertainty: Uncertainty, value: Value) -> PairedTiming:
    """Return the measurement with the median value of the undisturbed ones, or of the three least disturbed."""
    calm = sum(uncertainty(timing) <= MOST_UNCERTAINTY for timing in timings)
    counted = sorted(timings, key=uncertainty)[: max(calm, REPEATS)]
    return sorted(counted, key=value)[len(counted) // 2]
