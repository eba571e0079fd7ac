"""Channel ids with union-find: which channels must be removed together, and which must stay."""

from __future__ import annotations

import numpy as np

from autoprune.structure.graph.types import Ids


class ChannelIds:
    """A growing set of channel ids, their unions and their pins.

    Every union's representative is its smallest id, so that numbering follows the forward pass.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._producer: list[str] = []
        self._pins: dict[int, str] = {}

    def new(self, count: int, producer: str, reason: str | None = None) -> Ids:
        """Return ``count`` fresh ids made by a layer; with a reason they are pinned."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._producer.extend([producer] * count)
        ids = np.arange(start, start + count, dtype=np.int64)
        if reason is not None:
            self.pin(ids, reason)
        return ids

    def root(self, index: int) -> int:
        """Return the representative of an id's union."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def roots(self, ids: Ids) -> Ids:
        """Return the representatives of many ids, same shape."""
        return np.array([self.root(int(index)) for index in ids], dtype=np.int64)

    def unite(self, left: Ids, right: Ids) -> None:
        """Unite two runs of ids index by index."""
        for one, other in zip(left, right, strict=True):
            first, second = sorted((self.root(int(one)), self.root(int(other))))
            if first != second:
                self._parent[second] = first
                if second in self._pins:
                    self._pins.setdefault(first, self._pins.pop(second))

    def pin(self, ids: Ids, reason: str) -> None:
        """Forbid the removal of these channels; the first reason is kept."""
        for index in ids:
            self._pins.setdefault(self.root(int(index)), reason)

    def pinned(self, root: int) -> str | None:
        """Return why a representative's union is pinned, or None."""
        return self._pins.get(root)

    def producer(self, root: int) -> str:
        """Return the layer that made a representative."""
        return self._producer[root]
