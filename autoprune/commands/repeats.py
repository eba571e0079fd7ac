"""Which measurements the machine disturbed, and how often one is repeated before it counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median

from autoprune.cost.timing import PairedTiming

DRIFT = 0.6
"""By how much a ratio may be off where the dense time is off by 1: under load a smaller network loses more.

The demo's network at 34% of the dense one, measured 29 times while the machine was shared: 0.34 where the dense network
took its usual 23 ms, 0.36 at 25 ms, 0.40 at 28 ms, 0.44 at 31 ms.
"""

DOUBT = 0.05
"""A measurement whose ratio may be off by more than this share is taken again."""

REPEATS, MOST_REPEATS = 3, 9
"""What ends up in the summary is the median of so many undisturbed measurements, of at most so many in all."""

REMEMBERED = 15
"""The dense network usually takes the median of its last so many times.

A shared machine's speed can change for good; then the reference that a run began with would call everything disturbed.
"""


class Steadiness:
    """Knows how long the dense network takes in this run, and so how far a measured ratio may be off.

    Args:
        reference: milliseconds of the dense network, measured long at the beginning.
    """

    def __init__(self, reference: float) -> None:
        self._reference = reference
        self._recent = deque([reference] * (REMEMBERED // 2 + 1), maxlen=REMEMBERED)

    def learn(self, timing: PairedTiming) -> None:
        """Take note of what the dense network took beside a candidate."""
        self._recent.append(timing.dense.median)

    def doubt(self, timing: PairedTiming) -> float:
        """Return by what share a ratio may be off, seen from how the machine has been of late."""
        return self._doubt(timing, median(self._recent))

    def reference_doubt(self, timing: PairedTiming) -> float:
        """Return by what share a ratio may be off, seen from the moment of the reference."""
        return self._doubt(timing, self._reference)

    @staticmethod
    def _doubt(timing: PairedTiming, usual: float) -> float:
        return timing.spread + DRIFT * abs(timing.dense.median / usual - 1)


def typical(
    measure: Callable[[int], PairedTiming],
    doubt: Callable[[PairedTiming], float],
    *,
    repeats: int = REPEATS,
    most: int = MOST_REPEATS,
) -> PairedTiming:
    """Measure several times and return the measurement with the median ratio: one alone may meet a bad moment.

    Measurements that the machine disturbed do not count, as long as there are enough others.

    Args:
        measure: takes the number of the measurement, from 0.
        doubt: by what share a measurement may be off.
        repeats: how many undisturbed measurements are wanted …
        most: … and after how many there will be no more.
    """
    timings: list[PairedTiming] = []

    def calm() -> int:
        return sum(doubt(timing) <= DOUBT for timing in timings)

    while len(timings) < most and calm() < repeats:
        timings.append(measure(len(timings)))
    counted = sorted(timings, key=doubt)[: max(calm(), REPEATS)]
    return sorted(counted, key=lambda timing: timing.ratio)[len(counted) // 2]


def typical_within(
    measure: Callable[[int], PairedTiming], steadiness: Steadiness, limit: float | None = None
) -> PairedTiming:
    """Return the typical measurement; a ratio beyond the limit is measured three times as often before it is believed.

    A miss is believed of the machine as it was when the limit was set: seen from the reference.

    Args:
        measure: takes the number of the measurement, from 0; the same number gives the same measurement.
        steadiness: of the machine.
        limit: the ratio that is allowed, or None.
    """
    found = typical(measure, steadiness.doubt)
    if limit is None or found.ratio <= limit:
        return found
    return typical(measure, steadiness.reference_doubt, repeats=3 * REPEATS, most=2 * MOST_REPEATS)
