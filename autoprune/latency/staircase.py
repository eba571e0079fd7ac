"""Latency by the width of one unit, all others dense: which widths are free.

Devices compute channels in blocks, so latency falls in steps as a unit narrows. The widest width of each step is worth
choosing: the others on the step have fewer channels and save nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.costs.static import Floats
from autoprune.latency.layer_work import LayerShares, LayerWork, layer_work
from autoprune.latency.tables import Point, monotone
from autoprune.structure.constraint import Cost
from autoprune.structure.graph import Layer
from autoprune.structure.space import Counts, Space

FREE = 0.25
"""A width that saves less than this share of what its channels save on average is free …"""

NOISE = 2e-4
"""… and so is one that saves less than this share of the dense network's latency."""

MOST_POINTS = 2500
"""Layers that are measured alone at most; units that matter less are then predicted only."""


@dataclass(frozen=True)
class Staircase:
    """Latency of the whole network by the width of one unit, all others dense.

    Attributes:
        unit: its name.
        widths: kept channels, ascending, the dense width last.
        predicted: milliseconds by the predictor, one per width.
        measured: milliseconds with the unit's layers measured alone at each width, made monotone; None where the
            runtime does not run layers alone, or the unit was left out.
    """

    unit: str
    widths: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...] | None = None

    @property
    def milliseconds(self) -> tuple[float, ...]:
        """The better known of both curves."""
        return self.predicted if self.measured is None else self.measured

    @property
    def range(self) -> float:
        """Milliseconds between the dense width and the narrowest."""
        return self.milliseconds[-1] - self.milliseconds[0]

    @property
    def worth(self) -> tuple[int, ...]:
        """Widths worth choosing, ascending: the widest of each step."""
        times = self.milliseconds
        mean = self.range / max(self.widths[-1] - self.widths[0], 1)
        chosen = [len(self.widths) - 1]
        for index in range(len(self.widths) - 2, -1, -1):
            narrower = self.widths[index + 1] - self.widths[index]
            if times[chosen[-1]] - times[index] > max(FREE * mean * narrower, NOISE * times[-1]):
                chosen.append(index)
        return tuple(self.widths[index] for index in reversed(chosen))

    @property
    def free(self) -> tuple[int, ...]:
        """Widths at which latency is that of a wider one, ascending."""
        return tuple(width for width in self.widths if width not in self.worth)


def predicted_staircases(space: Space, cost: Cost) -> list[Staircase]:
    """Return the staircase of every unit that can be pruned, by a predictor; the widest range first."""
    found = []
    for index, unit in enumerate(space.units):
        if len(space.choices[index]) > 1:
            times = np.maximum.accumulate(cost(np.array(list(_alone(space, index)))))
            widths = tuple(int(width) for width in space.choices[index])
            found.append(Staircase(unit.name, widths, tuple(float(time) for time in times)))
    return sorted(found, key=lambda staircase: -staircase.range)


class MeasuredStaircases:
    """Staircases from layers measured alone at every width of their unit.

    What the operations without weights save is not in them.

    Args:
        space: the space of allocations.
        layers: the layers that the deployed network runs.
        predicted: what is to be measured, the most important first; as many as ``MOST_POINTS`` allows.
    """

    def __init__(self, space: Space, layers: Sequence[Layer], predicted: Sequence[Staircase]) -> None:
        self._predicted = predicted
        self._works: dict[str, list[list[LayerWork]]] = {}
        numbers = {unit.name: index for index, unit in enumerate(space.units)}
        points: dict[Point, None] = {work.point: None for work in _works(space, layers, space.dense)}
        for staircase in predicted:
            touched = _touched(space, layers, numbers[staircase.unit])
            works = [_works(space, touched, counts) for counts in _alone(space, numbers[staircase.unit])]
            wanted = points | {work.point: None for layer_works in works for work in layer_works}
            if len(wanted) > MOST_POINTS:
                break
            points, self._works[staircase.unit] = wanted, works
        self.points: tuple[Point, ...] = tuple(points)

    def of(self, times: Mapping[Point, float], shares: LayerShares, reference: float) -> list[Staircase]:
        """Return the staircases with what was measured.

        Args:
            times: share of the dense network's time that every one of ``points`` takes alone.
            shares: how these shares were scaled.
            reference: the dense network's milliseconds.
        """
        scale = shares.scale * reference
        found = [self._one(staircase, times, scale, reference) for staircase in self._predicted]
        return sorted(found, key=lambda staircase: -staircase.range)

    def _one(self, known: Staircase, times: Mapping[Point, float], scale: float, reference: float) -> Staircase:
        if known.unit not in self._works:
            return known
        sums: Floats = np.array([sum(times[work.point] for work in works) for works in self._works[known.unit]])
        smooth = monotone(sums[None])[0]
        measured = tuple(float(time) for time in reference - scale * (smooth[-1] - smooth))
        return Staircase(known.unit, known.widths, known.predicted, measured)


def _alone(space: Space, unit: int) -> Iterator[Counts]:
    """Yield the allocations in which one unit takes all its choices, ascending."""
    for width in space.choices[unit]:
        counts = space.dense.copy()
        counts[unit] = width
        yield counts


def _touched(space: Space, layers: Sequence[Layer], unit: int) -> list[Layer]:
    """Return the layers whose widths depend on a unit."""
    changed = space.axis_widths(space.dense) != space.axis_widths(next(_alone(space, unit)))
    return [layer for layer in layers if changed[layer.in_axis] or changed[layer.out_axis]]


def _works(space: Space, layers: Sequence[Layer], counts: Counts) -> list[LayerWork]:
    return layer_work(space, layers, counts, batch=1, width=1)
