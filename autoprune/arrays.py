"""The types of NumPy arrays; which shape one has is in the docstring of what takes or returns it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

Counts = npt.NDArray[np.int64]
"""Kept channels per unit, shape (units,) or (candidates, units)."""

Ids = npt.NDArray[np.int64]
"""Numbers of channels, or places in an array."""

Mask = npt.NDArray[np.bool_]
"""Which channels stay, shape (channels of the graph,), in the graph's global numbering; or another choice."""

AnyArray = npt.NDArray[Any]
