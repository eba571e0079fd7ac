"""Where a network's latency goes: what every deployed layer does, and what share of the whole it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from autoprune.costs.static import Floats, layer_macs
from autoprune.latency.predictor import LatencyCost
from autoprune.latency.tables import LayerGrid, Point
from autoprune.runtimes import Precision
from autoprune.structure.graph import Layer, LayerKind
from autoprune.structure.space import Counts, Space

WIDTHS = {Precision.FP32: 4, Precision.FP16: 2, Precision.BF16: 2, Precision.INT8: 1}
"""Bytes of one number."""

UNWEIGHTED = "operations without weights, and overhead"
"""What of the whole belongs to no layer."""


class ShareSource(Enum):
    """How the layers' shares of the latency were found."""

    ALONE = "measured alone"
    """Each layer ran by itself, paired with the whole network."""
    MODEL = "modelled"
    """The predictor, which was fitted to whole networks, split over the layers by their work."""


@dataclass(frozen=True)
class LayerWork:
    """What one layer of a network does in one run.

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
        """The layer as tables name it."""
        return LayerGrid(self.layer, (self.c_in,), (self.c_out,)).point(self.c_in, self.c_out)

    @property
    def operation(self) -> str:
        """What it computes, e.g. ``conv 3×3 s2`` or ``conv 1×1 g4``."""
        layer = self.layer
        if layer.kind is LayerKind.LINEAR:
            return str(layer.kind.value)
        stride = f" s{layer.stride[0]}" if max(layer.stride) > 1 else ""
        groups = f" g{layer.groups}" if layer.groups > 1 and layer.kind is not LayerKind.DEPTHWISE else ""
        return f"{layer.kind.value} {layer.kernel[0]}×{layer.kernel[1]}{stride}{groups}"


@dataclass(frozen=True)
class LayerShares:
    """What share of the latency each layer takes.

    Attributes:
        source: how they were found.
        layers: shares in the order of the layers, shape (layers,).
        rest: what remains, by what it is; all shares together are 1.
        scale: what the layers' own times were multiplied with, below 1 where alone they take longer than the whole.
    """

    source: ShareSource
    layers: Floats
    rest: Mapping[str, float]
    scale: float = 1.0


def layer_work(space: Space, layers: Sequence[Layer], counts: Counts, *, batch: int, width: int) -> list[LayerWork]:
    """Return what every layer does under an allocation.

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
        times: each layer's time alone as a share of the whole network's; what they leave of it is the rest. Layers
            that alone take longer than the whole, as where every run has a start of its own, are scaled to it.
    """
    shares = np.array([times[work.point] for work in works])
    scale = min(1.0, 1.0 / float(shares.sum()))
    shares = shares * scale
    return LayerShares(ShareSource.ALONE, shares, {UNWEIGHTED: max(1.0 - float(shares.sum()), 0.0)}, scale)


def layer_shares(predictor: LatencyCost) -> LayerShares:
    """Return each layer's share of the dense network's predicted latency.

    Every term of the predictor's mixture is a sum over layers; its weight is split among them as that sum is.

    Args:
        predictor: fitted to whole networks; its features' layers say the order.
    """
    shares = predictor.weights[1:] @ predictor.features.per_layer()
    return LayerShares(ShareSource.MODEL, shares, {UNWEIGHTED: 1.0 - float(shares.sum())})
