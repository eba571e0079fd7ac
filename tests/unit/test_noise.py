"""What decides over a budget is measured several times, and disturbed measurements do not count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoprune.latency.timing import PairedTiming, Timing
from autoprune.workflows.noise import (
    MOST_REPEATS,
    MOST_UNCERTAINTY,
    REMEMBERED,
    REPEATS,
    NoiseModel,
    least_disturbed,
    typical,
)

SLOWEST = [(0.600, 7.0), (0.601, 9.0), (0.602, 7.0)]
"""Ratios of medians and 95th percentiles of three measurements."""


def timed(ratio: float, spread: float = 0.01, dense: float = 10) -> PairedTiming:
    times = Timing(dense, 0.9 * dense, 1.1 * dense, 80)
    return PairedTiming(times.scaled(ratio), times, ratio, spread)


class Series:
    """Gives measurements one after the other, each once."""

    def __init__(self, *timings: PairedTiming) -> None:
        self._timings = timings
        self.taken = 0

    def __call__(self, number: int) -> PairedTiming:
        assert number == self.taken
        self.taken += 1
        return self._timings[number]


def measured(*timings: PairedTiming, limit: float | None = None) -> tuple[float, int]:
    """Return the ratio chosen of a series of measurements, and how many of them were taken."""
    series = Series(*timings)
    return typical(series, NoiseModel(10).uncertainty, lambda timing: timing.ratio, limit).ratio, series.taken


def test_on_a_quiet_machine_the_median_of_three_counts() -> None:
    assert measured(timed(0.58), timed(0.60, 0.02), timed(0.57)) == (0.58, REPEATS)


def test_disturbed_measurements_are_repeated_and_do_not_count() -> None:
    disturbed = [timed(0.63, 0.2), timed(0.62, 0.3), timed(0.64, dense=14)]
    assert measured(*disturbed, timed(0.57), timed(0.59, 0.02), timed(0.58, 0.03)) == (0.58, 6)


@pytest.mark.parametrize("spread", [0.06, 0.5])
def test_where_it_never_gets_quiet_the_surest_count(spread: float) -> None:
    timings = [timed(0.6 + 0.01 * number, spread + 0.01 * number) for number in range(MOST_REPEATS)]
    assert measured(*timings) == (timings[1].ratio, MOST_REPEATS)


def test_a_miss_is_measured_three_times_as_often_before_it_is_believed() -> None:
    moment = [timed(0.61), timed(0.62), timed(0.63)]
    usual = [timed(0.58 + 0.001 * number) for number in range(6)]
    assert measured(*moment, *usual, limit=0.6) == (usual[4].ratio, 3 * REPEATS)
    assert measured(*[timed(0.61)] * 9, limit=0.6) == (0.61, 3 * REPEATS)
    assert measured(*moment, limit=0.62) == (0.62, REPEATS)


def test_the_value_that_a_limit_compares_chooses_and_is_repeated() -> None:
    slow = [replace(timed(ratio), candidate=replace(timed(ratio).candidate, p95=p95)) for ratio, p95 in SLOWEST]
    series = Series(*slow, *[slow[0]] * 6)
    found = typical(series, NoiseModel(10).uncertainty, lambda timing: timing.candidate.p95, limit=8.0)
    assert (found.candidate.p95, series.taken) == (7.0, REPEATS), "the middle one, though it is not that of the ratios"
    series = Series(*[slow[1]] * 2, *[slow[0]] * 7)
    found = typical(series, NoiseModel(10).uncertainty, lambda timing: timing.candidate.p95, limit=8.0)
    assert (found.candidate.p95, series.taken) == (7.0, 3 * REPEATS), "a miss is not believed at once"


def test_a_machine_that_is_slower_for_a_moment_is_disturbed() -> None:
    noise = NoiseModel(10)
    for _ in range(REMEMBERED // 2):
        noise.learn(timed(0.6, dense=14))
    assert noise.uncertainty(timed(0.6, dense=14)) > MOST_UNCERTAINTY
    assert noise.uncertainty(timed(0.6, dense=10)) <= MOST_UNCERTAINTY


def test_a_machine_that_is_slower_for_good_is_not_disturbed() -> None:
    noise = NoiseModel(10)
    for _ in range(REMEMBERED // 2 + 1):
        noise.learn(timed(0.6, dense=14))
    assert noise.uncertainty(timed(0.6, dense=14)) <= MOST_UNCERTAINTY
    assert noise.uncertainty(timed(0.6, dense=10)) > MOST_UNCERTAINTY


def test_a_disturbed_sample_is_measured_again_and_the_surest_counts() -> None:
    uncertainty = NoiseModel(10).uncertainty
    series = Series(timed(1.2, 0.4), timed(0.6, 0.02), timed(0.7))
    assert (least_disturbed(series, uncertainty, 3).ratio, series.taken) == (0.6, 2)
    series = Series(timed(1.2, 0.4), timed(0.7, 0.2), timed(0.9, 0.3))
    assert (least_disturbed(series, uncertainty, 3).ratio, series.taken) == (0.7, 3)
