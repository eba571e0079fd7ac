"""Refuses NaN and infinity where a number is needed: compared with a limit they give wrong answers, not errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from autoprune.errors import ConfigError


def check_finite(values: npt.ArrayLike, what: Callable[[int], str], *, way_out: str) -> None:
    """Refuse numbers of which one is NaN or infinite.

    Args:
        values: the numbers, shape (n,).
        what: names the number at a position, as the subject of a sentence.
        way_out: what to do about it.

    Raises:
        ConfigError: names the first number that is not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(numbers))
    if len(broken):
        first = int(broken[0])
        raise ConfigError(f"{what(first)} must be a finite number, got {numbers[first]}; {way_out}")
