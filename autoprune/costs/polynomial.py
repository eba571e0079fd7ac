"""Sums of products of widths as a function of the kept counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autoprune.structure.space import Counts, Space

Floats = npt.NDArray[np.float64]


class WidthPolynomial:
    """A sum of terms coefficient, coefficient × width or coefficient × width × width, over axes of the graph.

    All coefficients must be at least 0, so that the sum never falls when a unit keeps more. Sums of whole numbers
    below 2**53 are exact.
    """

    def __init__(self, space: Space) -> None:
        self._constants = space.axis_widths(np.zeros_like(space.dense))
        self._slopes = space.axis_widths(np.eye(len(space), dtype=np.int64)).T - self._constants[:, None]
        self._quadratic: Floats = np.zeros((len(space), len(space)))
        self._linear: Floats = np.zeros(len(space))
        self._constant = 0.0

    def add(self, coefficient: float, *axes: int) -> None:
        """Add coefficient × the widths of up to two axes."""
        if not axes:
            self._constant += coefficient
        elif len(axes) == 1:
            self._linear += coefficient * self._slopes[axes[0]]
            self._constant += coefficient * self._constants[axes[0]]
        else:
            (one, two), (base, other) = (self._slopes[list(axes)], self._constants[list(axes)])
            self._quadratic += coefficient * np.outer(one, two)
            self._linear += coefficient * (base * two + other * one)
            self._constant += coefficient * base * other

    def __call__(self, counts: Counts) -> Floats:
        """Return the value: shape (units,) → (), (candidates, units) → (candidates,)."""
        values = counts.astype(np.float64)
        return np.asarray(((values @ self._quadratic + self._linear) * values).sum(axis=-1) + self._constant)
