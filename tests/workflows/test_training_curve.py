"""What the curve of a training says of more epochs."""

from __future__ import annotations

import pytest

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
