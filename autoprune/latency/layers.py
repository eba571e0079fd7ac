"""Latency per layer, and latency by the width of one unit (staircases), which shows the free widths.

Devices compute channels in blocks, so latency falls in steps as a unit narrows. Only the widest width of each step is
worth choosing: the others on the step have fewer channels and save no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.costs.static import layer_macs
from autoprune.latency.predictor import LatencyCost
from autoprune.latency.tables import LayerGrid, Point, monotone
from autoprune.runtimes import Precision
from autoprune.structure.constraint import Cost
from autoprune.structure.graph import Layer, LayerKind
from autoprune.structure.space import Space

WIDTHS = {Precision.FP32: 4, Precision.FP16: 2, Precision.BF16: 2, Precision.INT8: 1}
"""Bytes of one number."""

UNWEIGHTED = "operations without weights, and overhead"
"""Name of the share that belongs to no layer."""

FREE = 0.25
"""A width is free if it saves less than this share of the average saving of as many channels."""

NOISE = 2e-4
"""A width is also free if it saves less than this share of the dense network's latency."""

MOST_POINTS = 2500
"""Layers that are measured alone at most; units that matter less are then predicted only."""


class ShareSource(Enum):
    """How the layers' shares of the latency were found."""

    ALONE = "measured alone"
    """Each layer ran by itself, paired with the whole network."""
    MODEL = "modelled"
    """The predictor, which was fitted to whole networks, split over the layers by their work."""


@dataclass(frozen=True)
class LayerWork:
    """The work of one layer in one run of the network.

    Attributes:
        layer: the layer.
        c_in: channels of its input.
        c_out: channels of its output.
        flops: 2 × multiply-accumulates.
        traffic: bytes of weights, input and output, each once.
    """

    layer: Layer
    c_in: int
    c_out: int
    flops: float
    traffic: float

    @property
    def point(self) -> Point:
        """The layer at these widths, as the tables index it."""
        return LayerGrid(self.layer, (self.c_in,), (self.c_out,)).point(self.c_in, self.c_out)

    @property
    def operation(self) -> str:
        """The operation in words, e.g. ``conv 3×3 s2`` or ``conv 1×1 g4``."""
        layer = self.layer
        if layer.kind is LayerKind.LINEAR:
            return str(layer.kind.value)
        stride = f" s{layer.stride[0]}" if max(layer.stride) > 1 else ""
        groups = f" g{layer.groups}" if layer.groups > 1 and layer.kind is not LayerKind.DEPTHWISE else ""
        return f"{layer.kind.value} {layer.kernel[0]}×{layer.kernel[1]}{stride}{groups}"


@dataclass(frozen=True)
class LayerShares:
    """Each layer's share of the latency.

    Attributes:
        source: how they were found.
        layers: shares in the order of the layers, shape (layers,).
        rest: the remaining shares by name; all shares together are 1.
        scale: factor on the layers' own times, below 1 if the layers alone take longer than the whole network.
    """

    source: ShareSource
    layers: Array
    rest: Mapping[str, float]
    scale: float = 1.0


def layer_work(space: Space, layers: Sequence[Layer], counts: Counts, *, batch: int, width: int) -> list[LayerWork]:
    """Return the work of every layer under an allocation.

    Args:
        space: the space of allocations.
        layers: the layers that the deployed network runs.
        counts: kept channels per unit, shape (units,).
        batch: images per run.
        width: bytes of one number.
    """
    axes = space.axis_widths(counts)
    found = []
    for layer in layers:
        macs, factors = layer_macs(layer)
        c_in, c_out = (int(axes[axis]) for axis in (layer.in_axis, layer.out_axis))
        work = LayerWork(layer, c_in, c_out, 2 * batch * macs * float(np.prod(axes[list(factors)])), 0.0)
        numbers = c_in * float(np.prod(layer.in_hw)) + c_out * float(np.prod(layer.out_hw))
        found.append(replace(work, traffic=width * (batch * numbers + work.point.weights)))
    return found


def shares_alone(works: Sequence[LayerWork], times: Mapping[Point, float]) -> LayerShares:
    """Return the shares of layers that were measured alone.

    Args:
        works: the layers.
        times: each layer's time alone as a share of the whole network's. If their sum exceeds 1 (every single run has
            an overhead of its own), they are scaled to 1.
    """
    shares = np.array([times[work.point] for work in works])
    scale = min(1.0, 1.0 / float(shares.sum()))
    shares = shares * scale
    return LayerShares(ShareSource.ALONE, shares, {UNWEIGHTED: max(1.0 - float(shares.sum()), 0.0)}, scale)


def layer_milliseconds(predictor: LatencyCost, counts: Counts) -> dict[str, float]:
    """Return what each layer takes of the predicted latency of an allocation, in milliseconds by its name.

    Those of a layer that runs several times are added up.
    """
    shares = predictor.weights[1:] @ predictor.features.per_layer(counts)
    found = {layer.name: 0.0 for layer in predictor.features.layers}
    for layer, milliseconds in zip(predictor.features.layers, predictor.reference.median * shares, strict=True):
        found[layer.name] += float(milliseconds)
    return found


def layer_shares(predictor: LatencyCost) -> LayerShares:
    """Return each layer's share of the dense network's predicted latency.

    Every term of the predictor's mixture is a sum over layers; its weight is split in proportion to the summands.

    Args:
        predictor: fitted to whole networks; shares are in the order of its features' layers.
    """
    shares = predictor.weights[1:] @ predictor.features.per_layer()
    return LayerShares(ShareSource.MODEL, shares, {UNWEIGHTED: 1.0 - float(shares.sum())})


@dataclass(frozen=True)
class Staircase:
    """Latency of the whole network by the width of one unit, all others dense.

    Attributes:
        unit: its name.
        widths: kept channels, ascending, the dense width last.
        predicted: milliseconds by the predictor, one per width.
        measured: milliseconds with the unit's layers measured alone at each width, made monotone; None if the
            runtime does not run layers alone, or the unit was left out.
    """

    unit: str
    widths: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...] | None = None

    @property
    def milliseconds(self) -> tuple[float, ...]:
        """The measured curve, or the predicted one if there is none."""
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

    Savings in operations without weights are not included.

    Args:
        space: the space of allocations.
        layers: the layers that the deployed network runs.
        predicted: the staircases to measure, the most important first; as many as ``MOST_POINTS`` allows.
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
        """Return all staircases, the measured ones with their curves; the widest range first.

        Args:
            times: the time of each of ``points`` alone, as a share of the dense network's.
            shares: their ``scale`` applies.
            reference: the dense network's milliseconds.
        """
        scale = shares.scale * reference
        found = [self._one(staircase, times, scale, reference) for staircase in self._predicted]
        return sorted(found, key=lambda staircase: -staircase.range)

    def _one(self, known: Staircase, times: Mapping[Point, float], scale: float, reference: float) -> Staircase:
        if known.unit not in self._works:
            return known
        sums: Array = np.array([sum(times[work.point] for work in works) for works in self._works[known.unit]])
        smooth = monotone(sums[None])[0]
        measured = tuple(float(time) for time in reference - scale * (smooth[-1] - smooth))
        return Staircase(known.unit, known.widths, known.predicted, measured)


def _alone(space: Space, unit: int) -> Iterator[Counts]:
    """Yield the dense allocation with one unit at each of its widths, ascending."""
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
