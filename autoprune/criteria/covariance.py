"""Score channels by how badly the others replace them, weighted by the loss's gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Array, Ids
from autoprune.criteria._base import CalibrationData, ChannelScores, Importance, trainable_copy
from autoprune.listener import tracked
from autoprune.statistics.layers import Reader, activation_hooks, mixing_layers, outputs_first
from autoprune.statistics.moments import Moments, add_ridge, collect_moments
from autoprune.structure.graph import ChannelGraph


class CovarianceImportance(Importance):
    """Order in which greedy elimination removes channels that compensation makes up for.

    Removing channel c from those that are left, K, changes what a layer reads by what K does not say of c, in c and in
    the removed channels that c helped to predict. The layer's outputs change by its weights times that; each output
    counts by the mean square of the loss's gradient there (the empirical Fisher information; Theis et al., "Faster gaze
    prediction with dense networks and Fisher pruning", 2018, section 2), which makes layers comparable. The channel
    goes next for which the sum over all layers that read the group is least, as ThiNet's elimination does (Luo et al.,
    ICCV 2017, Algorithm 1), but with the others' weights compensated (Kim et al., "Neuron Merging", NeurIPS 2020).

    It says nothing of a group that only layers read which cannot be compensated.

    Args:
        evidence: images and loss.
    """

    name = "covariance"

    def __init__(self, evidence: CalibrationData) -> None:
        self._evidence = evidence

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return per channel the share of its group that is removed before it."""
        evidence = self._evidence
        images = [evidence.inputs(batch) for batch in evidence.batches]
        moments = collect_moments(module, graph, images, criterion=self.name)
        weights = self._output_weights(module, list(moments.mean))
        layers = mixing_layers(module, graph)
        axes = {name: graph.axes[layers[name].in_axis] for name in moments.mean}
        readers = {name: _inner(module, name, moments, weights[name]) for name in axes}
        found = []
        for group in graph.groups:
            channels = np.arange(group.offset, group.offset + group.size)
            readings = [
                _Reading(places, *readers[name])
                for name, axis in axes.items()
                if (places := _places(axis, channels)).size
            ]
            if readings:
                scores = np.empty(group.size)
                scores[_eliminated(group.size, readings)] = np.arange(1, group.size + 1) / group.size
                found.append(ChannelScores(channels, torch.from_numpy(scores)))
        return found

    def _output_weights(self, module: nn.Module, names: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Return per layer and output channel the mean square of the loss's gradient."""
        network, _ = trainable_copy(module)
        sums: dict[str, torch.Tensor] = {}

        def add(name: str, last: bool, gradient: torch.Tensor) -> None:
            kept = gradient.ndim - 1 if last else 1
            squares = gradient.double().square().sum([place for place in range(gradient.ndim) if place != kept])
            sums[name] = sums[name] + squares if name in sums else squares

        def watch(name: str, layer: Reader, _: torch.Tensor, output: torch.Tensor) -> None:
            output.register_hook(partial(add, name, isinstance(layer, nn.Linear)))  # type: ignore[no-untyped-call]

        with activation_hooks(network, names, watch):
            for batch in tracked(self._evidence.batches, "Ranking channels"):
                self._evidence.loss(network, batch).backward()  # type: ignore[no-untyped-call]
        zero = {name: torch.zeros(len(outputs_first(_reader(module, name)))).double() for name in names}
        return {name: sums.get(name, zero[name]) for name in names}


def _reader(module: nn.Module, name: str) -> Reader:
    layer = module.get_submodule(name)
    assert isinstance(layer, Reader)
    return layer


def _inner(module: nn.Module, name: str, moments: Moments, outputs: torch.Tensor) -> tuple[Array, Array]:
    """Return the inverse covariance of what a layer reads, and its weights' inner products, each shape (n, n)."""
    covariance = moments.covariance[name].clone()
    add_ridge(covariance, moments.mean[name])
    weight = outputs_first(_reader(module, name)).detach().double()
    weight = weight.reshape(*weight.shape[:2], -1)  # kernel positions count alike
    weighted = weight * outputs.to(weight.device)[:, None, None]
    products = torch.einsum("oik,ojk->ij", weighted, weight)
    return torch.linalg.inv(covariance).cpu().numpy(), products.cpu().numpy()


def _places(axis: Ids, channels: Ids) -> Ids:
    """Return where each of a group's channels stands in an axis, shape (channels, times): equally often, or never."""
    places = np.flatnonzero((axis >= channels[0]) & (axis <= channels[-1]))
    return places[np.argsort(axis[places], kind="stable")].reshape(len(channels), -1)


class _Reading:
    """What a layer loses with every channel of a group that is left.

    Args:
        places: where the layer reads each channel, shape (channels, times).
        precision: the inverse covariance of all that it reads.
        products: its weights' inner products.
    """

    def __init__(self, places: Ids, precision: Array, products: Array) -> None:
        self._times = places.shape[1]
        flat = places.ravel()
        self._precision = precision[np.ix_(flat, flat)]
        self._products = products[np.ix_(flat, flat)]  # of what each channel contributes, itself or through others

    def losses(self) -> Array:
        """Return what is lost with each of the channels that are left, shape (left,)."""
        own = np.arange(len(self._precision)).reshape(-1, self._times)
        blocks = (own[:, :, None], own[:, None, :])
        solved = np.linalg.solve(self._precision[blocks], self._products[blocks])
        return np.asarray(np.trace(solved, axis1=1, axis2=2))

    def remove(self, place: int) -> None:
        """Let the others predict one of the channels that are left, and contribute what it did."""
        own = np.arange(place * self._times, (place + 1) * self._times)
        rest = np.delete(np.arange(len(self._precision)), own)
        others = np.ix_(rest, rest)
        coefficients = -np.linalg.solve(self._precision[np.ix_(own, own)], self._precision[np.ix_(own, rest)])
        products = self._products[np.ix_(rest, own)] @ coefficients
        contributed = coefficients.T @ self._products[np.ix_(own, own)] @ coefficients
        self._precision = np.asarray(self._precision[others] + self._precision[np.ix_(rest, own)] @ coefficients)
        self._products = self._products[others] + products + products.T + contributed


def _eliminated(size: int, readings: Sequence[_Reading]) -> list[int]:
    """Return the channels in the order in which greedy elimination removes them."""
    order, left = [], list(range(size))
    while left:
        place = int(np.argmin(sum(reading.losses() for reading in readings)))
        order.append(left.pop(place))
        for reading in readings if left else ():
            reading.remove(place)
    return order
