"""Which measurements the machine disturbed, and how often one is repeated before it counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from autoprune.cost.timing import PairedTiming

DRIFT = 0.6
"""By how much a ratio may be off where the dense time is off by 1: under load a smaller network loses more.

The demo's network at 34% of the dense one, measured 29 times while the machine was shared: 0.34 where the dense network
took its usual 23 ms, 0.36 at 25 ms, 0.40 at 28 ms, 0.44 at 31 ms.
"""

MISS_DRIFT = 1.8
"""The same before a miss is believed: the most that was seen.

On another day the demo's network had 0.365 where the dense one took 21.7 ms, and 0.41 at 23.2 ms.
"""

DOUBT = 0.05
"""A measurement whose ratio may be off by more than this share is taken again."""

REPEATS, MOST_REPEATS = 3, 9
"""What ends up in the summary is the median of so many undisturbed measurements, of at most so many in all."""

REMEMBERED = 15
"""The dense network usually takes the median of its last so many times.

A shared machine's speed can change for good; then the reference that a run began with would call everything disturbed.
"""


PAUSE = 10.0
"""Seconds to wait before a miss is measured again on a machine that is slower than when the limit was set."""

Measure = Callable[[int, float], PairedTiming]
"""Takes the number of the measurement, from 0, and the seconds to wait before it."""

Doubt = Callable[[PairedTiming], float]
"""By what share a measurement may be off."""


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
        return self._doubt(timing, median(self._recent), DRIFT)

    def reference_doubt(self, timing: PairedTiming) -> float:
        """Return by what share a ratio may be off that misses its limit, seen from the moment of the reference."""
        return self._doubt(timing, self._reference, MISS_DRIFT)

    @staticmethod
    def _doubt(timing: PairedTiming, usual: float, drift: float) -> float:
        return timing.spread + drift * abs(timing.dense.median / usual - 1)


def typical_within(
    measure: Measure, steadiness: Steadiness, limit: float | None = None, *, known: Sequence[PairedTiming] = ()
) -> PairedTiming:
    """Measure several times and return the measurement with the median ratio: one alone may meet a bad moment.

    Measurements that the machine disturbed do not count, as long as there are enough others. A ratio beyond the limit
    is measured three times as often before it is believed. A miss is believed of the machine as it was when the limit
    was set, seen from the reference: while it is not as it was, there are pauses, since another's load may end.

    Args:
        measure: takes a measurement.
        steadiness: of the machine.
        limit: the ratio that is allowed, or None.
        known: measurements of the same layers with other weights, which take the same time; they count before a miss is
            believed.
    """
    doubt = steadiness.doubt
    timings = _taken([], measure, doubt, repeats=REPEATS, most=MOST_REPEATS)
    found = _middle(timings, doubt)
    if limit is None or found.ratio <= limit:
        return found
    doubt = steadiness.reference_doubt
    timings = _taken(timings, measure, doubt, repeats=3 * REPEATS, most=2 * MOST_REPEATS, pause=PAUSE)
    return _middle([*known, *timings], doubt)


def _taken(
    timings: Sequence[PairedTiming], measure: Measure, doubt: Doubt, *, repeats: int, most: int, pause: float = 0.0
) -> Sequence[PairedTiming]:
    """Return the measurements and so many more that enough are undisturbed; a pause follows those that are not.

    Args:
        timings: those there are.
        measure: takes another one.
        doubt: by what share a measurement may be off.
        repeats: how many undisturbed measurements are wanted …
        most: … and after how many there will be no more.
        pause: seconds.
    """
    timings = list(timings)
    while len(timings) < most and sum(doubt(timing) <= DOUBT for timing in timings) < repeats:
        disturbed = bool(timings) and doubt(timings[-1]) > DOUBT
        timings.append(measure(len(timings), pause if disturbed else 0.0))
    return timings


def _middle(timings: Sequence[PairedTiming], doubt: Doubt) -> PairedTiming:
    """Return the measurement with the median ratio of the undisturbed ones, or of the three least disturbed."""
    calm = sum(doubt(timing) <= DOUBT for timing in timings)
    counted = sorted(timings, key=doubt)[: max(calm, REPEATS)]
    return sorted(counted, key=lambda timing: timing.ratio)[len(counted) // 2]
