"""What a cost is: a number with a unit for every allocation."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from autoprune.structure.space import Counts


class Cost(ABC):
    """A metric of an allocation that never falls when a unit keeps more channels.

    Attributes:
        metric: ``flops``, ``params``, ``size``, ``channels`` or ``latency``, as in a budget.
        unit: unit of the values: FLOPs, parameters, bytes, channels, milliseconds.
        predicted: whether values are predictions of something that can be measured.
    """

    metric: str
    unit: str
    predicted: bool = False

    @abstractmethod
    def __call__(self, counts: Counts) -> npt.NDArray[np.float64]:
        """Return the cost of allocations: shape (units,) → (), shape (candidates, units) → (candidates,)."""
