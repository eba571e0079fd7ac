"""What decides over a budget is measured several times, and disturbed measurements do not count."""

from __future__ import annotations

import pytest

from autoprune.commands.latency import MOST_REPEATS, STAGE_REPEATS, typical
from autoprune.cost.timing import PairedTiming, Timing


def timed(ratio: float, spread: float) -> PairedTiming:
    return PairedTiming(Timing(10 * ratio, 9 * ratio, 11 * ratio, 80), Timing(10, 9, 11, 80), ratio, spread)


def measured(timings: list[PairedTiming], most: float | None = None) -> tuple[PairedTiming, int]:
    """Return what is chosen of a series of measurements, and how many of them were taken."""
    taken = []

    def measure(number: int) -> PairedTiming:
        taken.append(number)
        return timings[number]

    chosen = typical(measure, lambda timing: timing.spread, most=most)
    assert taken == list(range(len(taken)))
    return chosen, len(taken)


def test_on_a_quiet_machine_the_median_of_three_counts() -> None:
    chosen, taken = measured([timed(0.58, 0.01), timed(0.60, 0.02), timed(0.57, 0.01)])
    assert (chosen.ratio, taken) == (0.58, STAGE_REPEATS)


def test_disturbed_measurements_are_repeated_and_do_not_count() -> None:
    disturbed = [timed(0.63, 0.2), timed(0.62, 0.3), timed(0.64, 0.1)]
    chosen, taken = measured([*disturbed, timed(0.57, 0.01), timed(0.59, 0.02), timed(0.58, 0.03)])
    assert (chosen.ratio, taken) == (0.58, 6)


@pytest.mark.parametrize("spread", [0.06, 0.5])
def test_where_it_never_gets_quiet_the_surest_count(spread: float) -> None:
    timings = [timed(0.6 + 0.01 * number, spread + 0.01 * number) for number in range(MOST_REPEATS)]
    chosen, taken = measured(timings)
    assert (chosen.ratio, taken) == (timings[1].ratio, MOST_REPEATS)


def test_a_miss_is_measured_three_times_as_often_before_it_is_believed() -> None:
    moment = [timed(0.61, 0.01), timed(0.62, 0.01), timed(0.63, 0.01)]
    usual = [timed(0.58 + 0.001 * number, 0.01) for number in range(6)]
    chosen, taken = measured(moment + usual, most=0.6)
    assert (chosen.ratio, taken) == (usual[4].ratio, 3 * STAGE_REPEATS)
    real = [timed(0.61, 0.01)] * 9
    assert measured(real, most=0.6)[0].ratio == 0.61
    assert measured(real, most=0.62) == (real[0], STAGE_REPEATS)
