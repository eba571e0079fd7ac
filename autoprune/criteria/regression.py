"""Select the channels that best reconstruct the next layer's output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Array, Ids
from autoprune.criteria._base import CalibrationData, ChannelScores, Importance, observe
from autoprune.statistics.layers import Reader, activation_hooks
from autoprune.statistics.sampling import SampledPositions
from autoprune.structure.graph import ChannelGraph, LayerKind


class RegressionImportance(Importance):
    """Order in which greedy elimination removes channels (Luo et al., "ThiNet", ICCV 2017, equation 6 and Algorithm 1).

    Of the outputs Z of every layer that reads the group, sampled at feature points, each channel contributes a part;
    the channel goes next without which ‖Z − Ẑ‖² is least, Ẑ the sum of what is left (with unchanged weights; He et al.,
    "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, solve for them afterwards). Layers that
    read one group count alike.

    Args:
        evidence: images.
    """

    name = "regression"

    def __init__(self, evidence: CalibrationData) -> None:
        self._evidence = evidence

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return per channel the share of its group that is removed before it."""
        products = [np.zeros((group.size, group.size)) for group in graph.groups]
        for channels, gram in self._contributions(module, graph):
            scaled = gram / max(float(np.trace(gram)), 1e-12)
            for group, product in zip(graph.groups, products, strict=True):
                (places,) = np.nonzero((channels >= group.offset) & (channels < group.offset + group.size))
                if len(places):
                    numbers = channels[places] - group.offset
                    np.add.at(product, np.ix_(numbers, numbers), scaled[np.ix_(places, places)])
        return [
            ChannelScores(np.arange(group.offset, group.offset + group.size), torch.from_numpy(eliminated(product)))
            for group, product in zip(graph.groups, products, strict=True)
            if product.any()  # else no layer that it sees reads the group
        ]

    def _contributions(self, module: nn.Module, graph: ChannelGraph) -> list[tuple[Ids, Array]]:
        """Return per reading layer its input channels and their contributions' inner products, shape (n, n)."""
        kinds = (LayerKind.CONV, LayerKind.LINEAR)
        readers = {
            layer.name: layer.in_axis
            for layer in graph.layers
            if layer.kind in kinds and isinstance(module.get_submodule(layer.name), Reader)
        }
        found: dict[str, Array] = {}
        places = SampledPositions(seed=0)

        def see(name: str, layer: Reader, inputs: torch.Tensor, _: torch.Tensor) -> None:
            rows = places.patches(layer, inputs).double().flatten(1)
            found[name] = contributions(layer, rows.T @ rows) + found.get(name, 0.0)

        with activation_hooks(module, list(readers), see):
            observe(module, self._evidence)
        return [(graph.axes[axis], found[name]) for name, axis in readers.items() if name in found]


def contributions(layer: nn.Module, inner: torch.Tensor) -> Array:
    """Return the inner products of what the input channels contribute to a layer's sampled outputs, shape (n, n).

    Args:
        layer: a convolution, grouped or not, or a linear layer.
        inner: inner products of what it reads, shape (n·k, n·k) for k kernel positions.
    """
    assert isinstance(layer, Reader)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    weight = layer.weight.detach().double()
    kernel = weight[0, 0].numel()
    each = weight.shape[1]
    channels = each * groups
    total = np.zeros((channels, channels))
    for index, rows in enumerate(weight.flatten(1).chunk(groups)):
        mine = slice(index * each * kernel, (index + 1) * each * kernel)
        both = inner[mine, mine] * (rows.T @ rows)
        place = slice(index * each, (index + 1) * each)
        total[place, place] = both.reshape(each, kernel, each, kernel).sum((1, 3)).cpu().numpy()
    return total


def eliminated(products: Array) -> Array:
    """Return per channel the share of channels that greedy elimination removes before it, in (0, 1].

    Args:
        products: inner products of the contributions, shape (n, n).
    """
    size = len(products)
    scores = np.zeros(size)
    error = np.diag(products).copy()  # of removing this channel too, less that of those removed already
    left = np.ones(size, dtype=bool)
    for number in range(size):
        candidates = np.flatnonzero(left)
        chosen = candidates[np.argmin(error[candidates])]
        left[chosen] = False
        scores[chosen] = (number + 1) / size
        error += 2 * products[:, chosen]
    return scores
