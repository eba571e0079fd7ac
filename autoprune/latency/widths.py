"""Input and output widths of many layers at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.costs.static import Floats
from autoprune.structure.graph import Layer
from autoprune.structure.space import Counts, Space


class LayerWidths:
    """The widths of layers under an allocation, as the device sees them.

    Args:
        space: the space of allocations.
        layers: the layers.
        block: channels that the device computes together; a width counts as the next multiple (or the dense width).
    """

    def __init__(self, space: Space, layers: Sequence[Layer], *, block: int = 1) -> None:
        axes = [layer.in_axis for layer in layers] + [layer.out_axis for layer in layers]
        constant = space.axis_widths(np.zeros_like(space.dense))
        slope = space.axis_widths(np.eye(len(space), dtype=np.int64)) - constant
        self._slope, self._constant = np.ascontiguousarray(slope[:, axes], dtype=np.float64), constant[axes]
        self._block, self._count = block, len(layers)
        self._dense = self._exact(space.dense)

    def __call__(self, counts: Counts) -> tuple[Floats, Floats]:
        """Return input and output widths: shape (units,) → (layers,), (candidates, units) → (candidates, layers)."""
        widths = np.minimum(np.ceil(self._exact(counts) / self._block) * self._block, self._dense)
        return widths[..., : self._count], widths[..., self._count :]

    def _exact(self, counts: Counts) -> Floats:
        return np.asarray(counts.astype(np.float64) @ self._slope + self._constant)
