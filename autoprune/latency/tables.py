"""Times of single layers at a coarse grid of widths, and their interpolation (NetAdapt's tables).

Source:
    Yang et al., NetAdapt, ECCV 2018, section 3.3: whole-network latency as a sum over a layer-wise look-up table. The
    grid here is coarse, monotone by construction and interpolated; `predictor.py` then fits it to whole networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from autoprune.arrays import Array, Counts
from autoprune.structure.graph import Layer, LayerKind
from autoprune.structure.space import Space

RATIOS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Keep ratios at which a layer is measured, along each axis that can vary."""

STEP = 8
"""Widths of the grid are multiples of this."""

TIMED = (LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.TRANSPOSED, LayerKind.LINEAR)
"""Kinds of layers that have a table."""

_BATCH = 64


@dataclass(frozen=True)
class Point:
    """One layer at one pair of widths: an entry of a table.

    Attributes:
        kind: the operation.
        kernel: kernel height and width.
        stride: vertical and horizontal stride.
        in_hw: height and width of the input.
        out_hw: height and width of the output.
        groups: convolution groups; 0 stands for one per channel.
        c_in: channels of the input.
        c_out: channels of the output.
    """

    kind: LayerKind
    kernel: tuple[int, int]
    stride: tuple[int, int]
    in_hw: tuple[int, int]
    out_hw: tuple[int, int]
    groups: int
    c_in: int
    c_out: int

    @property
    def key(self) -> str:
        """Its name in the cache, e.g. ``conv k3x3 s2x2 160x160-80x80 g1 16-32``."""
        pairs = [f"{height}x{width}" for height, width in (self.kernel, self.stride, self.in_hw, self.out_hw)]
        return "{} k{} s{} {}-{} g{} {}-{}".format(self.kind.value, *pairs, self.groups, self.c_in, self.c_out)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.kernel[0] * self.kernel[1] * self.c_in * self.c_out // (self.groups or self.c_in)

    def shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of its input."""
        return (batch, self.c_in) if self.kind is LayerKind.LINEAR else (batch, self.c_in, *self.in_hw)

    def build(self) -> nn.Module:
        """Return the layer as it is deployed: with bias, without batch norm."""
        if self.kind is LayerKind.LINEAR:
            return nn.Linear(self.c_in, self.c_out)
        if self.kind is LayerKind.TRANSPOSED:
            grown = [_padding(*sizes) for sizes in zip(self.out_hw, self.in_hw, self.kernel, self.stride, strict=True)]
            (pad_h, extra_h), (pad_w, extra_w) = grown
            return nn.ConvTranspose2d(
                self.c_in, self.c_out, self.kernel, self.stride, (pad_h, pad_w), (extra_h, extra_w), self.groups
            )
        shrunk = [_padding(*sizes) for sizes in zip(self.in_hw, self.out_hw, self.kernel, self.stride, strict=True)]
        padding = (shrunk[0][0], shrunk[1][0])
        return nn.Conv2d(self.c_in, self.c_out, self.kernel, self.stride, padding, groups=self.groups or self.c_in)


def _padding(large: int, small: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the smallest symmetric padding for ``small`` window positions over ``large``, and the unused remainder."""
    missing = max((small - 1) * stride + kernel - large, 0)
    padding = -(-missing // 2)
    return padding, large + 2 * padding - ((small - 1) * stride + kernel)


@dataclass(frozen=True)
class LayerGrid:
    """The widths at which one layer is measured.

    Attributes:
        layer: the layer.
        c_in: input widths, ascending.
        c_out: output widths, ascending; for a depthwise layer only the dense one, since its outputs follow its inputs.
    """

    layer: Layer
    c_in: tuple[int, ...]
    c_out: tuple[int, ...]

    def point(self, c_in: int, c_out: int) -> Point:
        """Return the layer at a pair of widths."""
        layer = self.layer
        depthwise = layer.kind is LayerKind.DEPTHWISE
        groups, c_out = (0, c_in * (self.c_out[-1] // self.c_in[-1])) if depthwise else (layer.groups, c_out)
        return Point(layer.kind, layer.kernel, layer.stride, layer.in_hw, layer.out_hw, groups, c_in, c_out)

    def points(self) -> list[Point]:
        """Return all its points, input widths slowest."""
        return [self.point(c_in, c_out) for c_in in self.c_in for c_out in self.c_out]


def plan_grids(space: Space, layers: Sequence[Layer]) -> list[LayerGrid]:
    """Return the grid of every layer that has a table."""
    dense, lower = space.axis_widths(space.dense), space.axis_widths(space.lower)
    grids = []
    for layer in layers:
        if layer.kind in TIMED:
            c_in, c_out = (_widths(int(dense[axis]), int(lower[axis])) for axis in (layer.in_axis, layer.out_axis))
            grids.append(LayerGrid(layer, c_in, c_out[-1:] if layer.kind is LayerKind.DEPTHWISE else c_out))
    return grids


def _widths(dense: int, lower: int) -> tuple[int, ...]:
    """Return the widths to measure along one axis, ascending; only the dense one if the axis cannot vary."""
    if lower == dense:
        return (dense,)
    multiples = {-(-round(dense * ratio) // STEP) * STEP for ratio in RATIOS}
    return tuple(sorted({lower, dense} | {width for width in multiples if lower < width < dense}))


class Interpolation:
    """Bilinear interpolation in all layers' tables at once.

    Times are made monotone in both widths first. Below a grid's narrowest width they stay as they are there.

    Args:
        space: the space of allocations.
        grids: the layers' grids.
        times: point → milliseconds.
        block: channels that the device computes at once; widths are rounded up to a multiple of it (at most dense).
    """

    def __init__(
        self, space: Space, grids: Sequence[LayerGrid], times: Mapping[Point, float], *, block: int = 1
    ) -> None:
        count = len(grids)
        size = max(2, *(len(axis) for grid in grids for axis in (grid.c_in, grid.c_out))) if grids else 2
        self._knots = np.full((2 * count, size), np.inf)  # input widths of all layers, then output widths
        tables = np.zeros((count, size, size))
        for index, grid in enumerate(grids):
            rows, columns = len(grid.c_in), len(grid.c_out)
            self._knots[index, :rows], self._knots[count + index, :columns] = grid.c_in, grid.c_out
            measured = np.array([times[point] for point in grid.points()]).reshape(rows, columns)
            tables[index] = np.pad(monotone(measured), ((0, size - rows), (0, size - columns)), mode="edge")
        self._tables = tables.reshape(-1)
        self._offsets = np.arange(count) * size * size
        self._size, self._count = size, count
        self._widths = LayerWidths(space, [grid.layer for grid in grids], block=block)
        self._left = self._knots.reshape(-1)
        with np.errstate(invalid="ignore"):
            steps = np.diff(self._knots, axis=1, append=np.inf)
        self._inverse = (1 / np.where(np.isfinite(steps), steps, np.inf)).reshape(-1)
        self._starts = np.arange(2 * count) * size

    def __call__(self, counts: Counts) -> Array:
        """Return every layer's milliseconds: shape (units,) → (layers,), (candidates, units) → (candidates, layers)."""
        if counts.ndim == 2 and len(counts) > _BATCH:  # a batch fits into the processor's cache
            return np.concatenate([self(counts[start : start + _BATCH]) for start in range(0, len(counts), _BATCH)])
        widths = np.concatenate(self._widths(counts), axis=-1)
        index = (widths[..., None] >= self._knots[:, 1:-1]).sum(axis=-1)
        interval = self._starts + index
        along = np.clip((widths - self._left[interval]) * self._inverse[interval], 0.0, 1.0)
        along_in, along_out = along[..., : self._count], along[..., self._count :]
        corner = self._offsets + index[..., : self._count] * self._size + index[..., self._count :]
        tables, size = self._tables, self._size
        low, high = tables[corner], tables[corner + 1]
        upper = low + (high - low) * along_out
        low, high = tables[corner + size], tables[corner + size + 1]
        return np.asarray(upper + (low + (high - low) * along_out - upper) * along_in)


def monotone(table: Array) -> Array:
    """Return a table that never falls along either axis: the mean of the running maximum and the running minimum.

    The running maximum alone would turn noise into a bias upwards.
    """
    rising = np.maximum.accumulate(np.maximum.accumulate(table, axis=0), axis=1)
    falling = np.minimum.accumulate(np.minimum.accumulate(table[::-1, ::-1], axis=0), axis=1)[::-1, ::-1]
    return np.asarray((rising + falling) / 2)


class LayerWidths:
    """Input and output widths of layers under an allocation, rounded up to the device's block.

    Args:
        space: the space of allocations.
        layers: the layers.
        block: channels that the device computes at once; widths are rounded up to a multiple of it (at most dense).
    """

    def __init__(self, space: Space, layers: Sequence[Layer], *, block: int = 1) -> None:
        axes = [layer.in_axis for layer in layers] + [layer.out_axis for layer in layers]
        constant = space.axis_widths(np.zeros_like(space.dense))
        slope = space.axis_widths(np.eye(len(space), dtype=np.int64)) - constant
        self._slope, self._constant = np.ascontiguousarray(slope[:, axes], dtype=np.float64), constant[axes]
        self._block, self._count = block, len(layers)
        self._dense = self._exact(space.dense)

    def __call__(self, counts: Counts) -> tuple[Array, Array]:
        """Return input and output widths: shape (units,) → (layers,), (candidates, units) → (candidates, layers)."""
        widths = np.minimum(np.ceil(self._exact(counts) / self._block) * self._block, self._dense)
        return widths[..., : self._count], widths[..., self._count :]

    def _exact(self, counts: Counts) -> Array:
        return np.asarray(counts.astype(np.float64) @ self._slope + self._constant)
