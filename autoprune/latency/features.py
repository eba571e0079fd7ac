"""The terms of a latency prediction: functions of the allocation that never fall when a unit keeps more channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Array, Counts
from autoprune.costs.static import WidthPolynomial, layer_macs
from autoprune.latency.tables import TIMED, Interpolation, LayerWidths
from autoprune.structure.graph import Layer, LayerKind
from autoprune.structure.space import Space

_MOVING = (LayerKind.ELEMENTWISE, LayerKind.POOL, LayerKind.UPSAMPLE)

BALANCES = (4.0, 16.0, 64.0)
"""Multiply-accumulates that a device may do in the time in which it moves one number."""


_MOVED = -len(BALANCES) - 1  # the feature of operations without weights


class LayerFeatures:
    """Sums over the layers that the deployed network runs, each scaled to 1 at the dense network.

    In this order: the layers' tables, if there are any; multiply-accumulates of 1×1, of larger and of depthwise
    convolutions; numbers read and written by the layers; weights; numbers moved by operations without weights; and per
    balance of the device Σ max(multiply-accumulates, balance × numbers moved), the roofline of each layer. Widths are
    rounded up to a multiple of ``block``.

    Args:
        space: the space of allocations.
        layers: the layers that the deployed network runs.
        block: channels that the device computes at once.
        tables: times of single layers, or None if the runtime does not run layers alone.

    Attributes:
        layers: as given.
        prior: the mixture that holds while nothing is measured, shape (1 + features,), constant first, sum 1.

    Source:
        Williams et al., Roofline, CACM 2009; tables as NetAdapt's (Yang et al., ECCV 2018, section 3.3).
    """

    def __init__(
        self, space: Space, layers: Sequence[Layer], *, block: int = 1, tables: Interpolation | None = None
    ) -> None:
        self._tables, self._space = tables, space
        self.layers = tuple(layers)
        self._widths = LayerWidths(space, layers, block=block)
        macs = np.array([layer_macs(layer)[0] for layer in layers])
        pointwise = np.array([layer.kernel == (1, 1) for layer in layers])
        self._depthwise = np.array([layer.kind is LayerKind.DEPTHWISE for layer in layers])
        self._kinds = np.stack([pointwise & ~self._depthwise, ~pointwise & ~self._depthwise, self._depthwise])
        self._macs = macs
        self._read = np.array([float(np.prod(layer.in_hw)) for layer in layers])
        self._written = np.array([float(np.prod(layer.out_hw)) for layer in layers])
        self._window = np.array([float(np.prod(layer.kernel)) / layer.groups for layer in layers])
        self._window[self._depthwise] = 0.0
        self._moved = WidthPolynomial(space)
        for layer in space.graph.layers:
            if layer.kind in _MOVING:
                area = layer.in_hw[0] * layer.in_hw[1] + layer.out_hw[0] * layer.out_hw[1]
                self._moved.add(area, layer.out_axis)
        dense = self._raw(space.dense)
        self._dense = np.where(dense > 0, dense, 1.0)
        self._offset = np.where(dense > 0, 0.0, 1.0)  # a feature that is 0 for this network is a second constant
        self.prior = np.zeros(1 + len(dense))
        self.prior[0] = 0.1  # about a tenth of a detector's time does not depend on widths
        self.prior[1 if tables is not None else -2] = 0.9

    def __call__(self, counts: Counts) -> Array:
        """Return the features: shape (units,) → (features,), (candidates, units) → (candidates, features)."""
        return self._raw(counts) / self._dense + self._offset

    def per_layer(self, counts: Counts | None = None) -> Array:
        """Return the contribution of each layer to each feature, shape (features, layers).

        Rows of the dense network sum to 1 at most; the rest belongs to operations without weights.

        Args:
            counts: kept channels per unit, shape (units,); the dense network's if None.
        """
        return np.asarray(self._terms(self._space.dense if counts is None else counts) / self._dense[:, None])

    def _raw(self, counts: Counts) -> Array:
        sums = np.asarray(self._terms(counts).sum(axis=-1))
        sums[..., _MOVED] += self._moved(counts)
        return sums

    def _terms(self, counts: Counts) -> Array:
        """Return each layer's contribution to each sum, shape (…, features, layers)."""
        c_in, c_out = self._widths(counts)
        product = np.where(self._depthwise, c_out, c_in * c_out)
        traffic = c_in * self._read + c_out * self._written
        work = product * self._macs
        terms = [
            *(work * kind for kind in self._kinds),
            traffic,
            product * self._window,
            np.zeros_like(work),
            *(np.maximum(work, balance * traffic) for balance in BALANCES),
        ]
        if self._tables is not None:
            terms.insert(0, self._tables(counts))
        return np.stack(terms, axis=-2)


def deployed_layers(layers: Sequence[Layer], deployable: nn.Module, shape: tuple[int, ...]) -> tuple[Layer, ...]:
    """Return the convolutions and linear layers that the deployed network executes.

    Fusing drops layers (a head used only in training) and merges others (the branches of a re-parameterised
    convolution become one). A merged layer is described by the branch with the same kernel and stride.

    Args:
        layers: the graph's layers.
        deployable: the dense network as it is deployed.
        shape: shape of its input.
    """
    executed = _executed(deployable, shape, root=_root(layers, deployable))
    kept = [layer for layer in layers if layer.kind in TIMED and layer.name in executed]
    named = {layer.name for layer in kept}
    for name, module in executed.items():
        if name not in named and isinstance(module, nn.Conv2d):
            prefix = name.rpartition(".")[0] + "."
            like = (tuple(module.kernel_size), tuple(module.stride))
            merged = [layer for layer in layers if layer.kind in TIMED and layer.name.startswith(prefix)]
            kept += [layer for layer in merged if (layer.kernel, layer.stride) == like and layer.name not in named][:1]
    return tuple(kept)


def _root(layers: Sequence[Layer], deployable: nn.Module) -> nn.Module:
    """Return the submodule of the deployed network that contains most of the layers, under the graph's names."""
    names = {layer.name for layer in layers}
    return max(deployable.modules(), key=lambda module: len(names & {path for path, _ in module.named_modules()}))


def _executed(module: nn.Module, shape: tuple[int, ...], *, root: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers that one forward pass runs, by path within the root."""
    found: dict[str, nn.Module] = {}
    handles = [
        child.register_forward_pre_hook(lambda _, __, path=path, child=child: found.setdefault(path, child) and None)
        for path, child in root.named_modules()
        if isinstance(child, (nn.modules.conv._ConvNd, nn.Linear))
    ]
    parameter = next(module.parameters())
    try:
        with torch.no_grad():
            module(torch.zeros(shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return found
