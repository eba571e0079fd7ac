"""What the curve of a training says of more epochs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.training.results import rise_at_end


def test_a_curve_that_rises_to_its_end_rises() -> None:
    assert rise_at_end([0.1, 0.2, 0.3, 0.4, 0.41, 0.42, 0.5, 0.51]) == pytest.approx(0.09)


@pytest.mark.parametrize(
    "curve",
    [
        [],
        [0.1, 0.9],
        [0.1] * 7,
        [0.5] * 12,
        [0.1, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
        [0.1, 0.3, 0.4, 0.4, 0.5, 0.6, 0.4, 0.3],
    ],
)
def test_a_curve_that_is_flat_falls_or_jumps_does_not(curve: list[float]) -> None:
    assert rise_at_end(curve) is None


@given(st.integers(0, 60), st.floats(0.001, 0.1), st.floats(-1, 1))
def test_a_straight_rise_is_a_quarter_of_the_epochs_times_its_slope(epochs: int, slope: float, start: float) -> None:
    """However high the curve lies, if only the step is larger than its spread within a quarter."""
    curve = [start + slope * epoch for epoch in range(epochs)]
    expected = None if epochs < 8 else pytest.approx(slope * (epochs // 4))
    assert rise_at_end(curve) == expected
    assert rise_at_end(curve[::-1]) is None


def test_noise_is_seldom_taken_for_a_rise_and_hides_none_that_is_large() -> None:
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.normal(size=(200, 40))
    flat = [rise_at_end(list(0.5 + curve)) for curve in noise]
    rising = [rise_at_end(list(np.linspace(0.4, 0.8, 40) + curve)) for curve in noise]
    assert sum(rise is not None for rise in flat) < 0.1 * len(flat)
    assert all(rise == pytest.approx(0.1, abs=0.03) for rise in rising)
