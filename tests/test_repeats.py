"""What decides over a budget is measured several times, and disturbed measurements do not count."""

from __future__ import annotations

import pytest

from autoprune.commands.repeats import DOUBT, MOST_REPEATS, PAUSE, REMEMBERED, REPEATS, Steadiness, typical_within
from autoprune.cost.timing import PairedTiming, Timing


def timed(ratio: float, spread: float = 0.01, dense: float = 10) -> PairedTiming:
    times = Timing(dense, 0.9 * dense, 1.1 * dense, 80)
    return PairedTiming(times.scaled(ratio), times, ratio, spread)


class Series:
    """Gives measurements one after the other, each once, and notes the pauses before them."""

    def __init__(self, *timings: PairedTiming) -> None:
        self._timings = timings
        self.pauses: list[float] = []

    def __call__(self, number: int, pause: float) -> PairedTiming:
        assert number == len(self.pauses)
        self.pauses.append(pause)
        return self._timings[number]


def measured(*timings: PairedTiming) -> tuple[float, int]:
    """Return the ratio chosen of a series of measurements, and how many of them were taken."""
    series = Series(*timings)
    return typical_within(series, Steadiness(10)).ratio, len(series.pauses)


def test_on_a_quiet_machine_the_median_of_three_counts() -> None:
    assert measured(timed(0.58), timed(0.60, 0.02), timed(0.57)) == (0.58, REPEATS)


def test_disturbed_measurements_are_repeated_and_do_not_count() -> None:
    disturbed = [timed(0.63, 0.2), timed(0.62, 0.3), timed(0.64, 0.1)]
    assert measured(*disturbed, timed(0.57), timed(0.59, 0.02), timed(0.58, 0.03)) == (0.58, 6)


@pytest.mark.parametrize("spread", [0.06, 0.5])
def test_where_it_never_gets_quiet_the_surest_count(spread: float) -> None:
    timings = [timed(0.6 + 0.01 * number, spread + 0.01 * number) for number in range(MOST_REPEATS)]
    assert measured(*timings) == (timings[1].ratio, MOST_REPEATS)


def test_a_miss_is_measured_three_times_as_often_before_it_is_believed() -> None:
    steadiness = Steadiness(10)
    moment = [timed(0.61), timed(0.62), timed(0.63)]
    usual = [timed(0.58 + 0.001 * number) for number in range(6)]
    series = Series(*moment, *usual)
    assert typical_within(series, steadiness, 0.6).ratio == usual[4].ratio
    assert len(series.pauses) == 3 * REPEATS
    assert typical_within(Series(*[timed(0.61)] * 9), steadiness, 0.6).ratio == 0.61
    held = Series(*[timed(0.61)] * 9)
    assert typical_within(held, steadiness, 0.62).ratio == 0.61
    assert len(held.pauses) == REPEATS


def test_a_machine_that_is_slower_for_a_moment_is_disturbed() -> None:
    steadiness = Steadiness(10)
    for _ in range(REMEMBERED // 2):
        steadiness.learn(timed(0.6, dense=14))
    assert steadiness.doubt(timed(0.6, dense=14)) > DOUBT
    assert steadiness.doubt(timed(0.6, dense=10)) <= DOUBT


def test_a_machine_that_is_slower_for_good_is_not_disturbed() -> None:
    steadiness = Steadiness(10)
    for _ in range(REMEMBERED // 2 + 1):
        steadiness.learn(timed(0.6, dense=14))
    assert steadiness.doubt(timed(0.6, dense=14)) <= DOUBT
    assert steadiness.doubt(timed(0.6, dense=10)) > DOUBT
    assert steadiness.reference_doubt(timed(0.6, dense=14)) > DOUBT


def test_a_miss_is_judged_by_the_state_that_the_limit_was_set_in() -> None:
    """The small network loses more on the slower machine; the reference, and so the limit, is of the faster one."""
    steadiness = Steadiness(10)
    for _ in range(REMEMBERED):
        steadiness.learn(timed(0.63, dense=14))
    slower, faster = [timed(0.63, dense=14)] * 12, [timed(0.58, dense=10)] * 6
    assert typical_within(Series(*slower, *faster), steadiness, 0.6).ratio == 0.58


def test_before_a_miss_is_believed_there_are_pauses_for_another_load_to_end() -> None:
    slower, faster = [timed(0.63, dense=14)] * MOST_REPEATS, [timed(0.58, dense=10)] * 9
    series = Series(*slower, *faster)
    assert typical_within(series, Steadiness(10), 0.6).ratio == 0.58
    assert series.pauses == [0.0] * MOST_REPEATS + [PAUSE] + [0.0] * 8, "none once the machine is as it was"

    loaded = Series(*[timed(0.63, dense=14)] * 18)
    assert typical_within(loaded, Steadiness(10), 0.6).ratio == 0.63
    assert loaded.pauses == [0.0] * MOST_REPEATS + [PAUSE] * MOST_REPEATS


def test_before_a_miss_is_believed_what_is_known_of_the_same_layers_counts() -> None:
    loaded = [timed(0.63, dense=14)] * 18
    known = [timed(0.57), timed(0.58), timed(0.59)]
    assert typical_within(Series(*loaded), Steadiness(10), 0.6, known=known).ratio == 0.58
    slow = Series(*[timed(0.62)] * 9)
    assert typical_within(slow, Steadiness(10), 0.6, known=known).ratio == 0.62, "undisturbed ones outvote it"


def test_a_miss_on_a_machine_that_is_a_little_slower_is_not_believed() -> None:
    """Six percent on the dense network were twelve on a small one."""
    slower, usual = [timed(0.41, dense=10.6)] * 4, [timed(0.365, dense=10.1)] * 9
    assert typical_within(Series(*slower, *usual), Steadiness(10), 0.38).ratio == 0.365
