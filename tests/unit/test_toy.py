from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.helpers.toy import OPTIMA, make_toy


@pytest.mark.parametrize("seed", range(4))
def test_descent_comes_within_a_twentieth_of_the_optimum_that_brute_force_finds(seed: int) -> None:
    toy = make_toy(5, seed=seed)
    everything = np.array(list(product(*toy.space.choices)))
    assert len(everything) < 200_000
    allowed = everything[toy.constraint.utilization(everything) <= 1]
    least = float(toy.loss(allowed).min())
    assert least - 1e-9 <= toy.optimum() <= 1.05 * least


@pytest.mark.slow
@pytest.mark.parametrize("seed", OPTIMA)
def test_the_optima_on_record_are_what_descent_finds(seed: int) -> None:
    assert make_toy(40, seed=seed).optimum() == pytest.approx(OPTIMA[seed], abs=1e-4)
