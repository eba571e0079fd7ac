"""What widening each unit of a pruned network would change in its loss: first order, all units in one pass.

The pruned network is computed as the dense one whose layers read, instead of every removed channel, what its
compensation predicts from the kept ones. Let x̃ be what a layer then reads. Widening a unit changes x̃ along a direction
that is linear in the channels: the added ones become what they are, and those that stay removed are predicted better.
The loss changes by the sum over all positions of ∂L/∂x̃ times that direction, and so the matrix Σ (∂L/∂x̃) xᵀ, one per
layer, gives all units and all widths at once, after one forward and one backward pass.

Sources: first-order saliency of channels (Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR
2019, section 3.1), here of what compensation leaves over (Kim et al., "Neuron Merging", NeurIPS 2020). Only widening is
predicted: if channels are removed, the loss bends too much (one detector, 50 units, one step narrower: Spearman 0.5
to 0.6 with what happens, one step wider 0.87 to 0.90).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from autoprune.arrays import Ids, Mask
from autoprune.listener import tracked
from autoprune.statistics.layers import Reader, input_of, train_mode
from autoprune.statistics.moments import Moments, add_ridge, regression
from autoprune.structure.graph import MIXING, ChannelGraph

_NARROW = 4096
"""Channels of a layer up to which a matrix of them is small: 64 MB."""


class _Reading(Protocol):
    """What a layer reads, and how the loss depends on it."""

    channels: Ids
    """Their numbers in the graph, shape (C,)."""

    def masked(self, read: torch.Tensor, last: bool) -> torch.Tensor:
        """Return what the pruned network's layer would read; channels are the last dimension or the second."""

    def note(self, gradient: torch.Tensor, read: torch.Tensor) -> None:
        """Add the loss's gradient by what is read, and that itself, both of shape (positions, C)."""

    def change(self, added: Mask) -> float:
        """Return the change of the loss when some of the removed channels, shape (C,), are read as they are."""


class _Zeroed:
    """Reading of a wide layer that is not compensated: removed channels are zero, and no matrix is needed.

    Args:
        channels: their numbers in the graph, shape (C,).
        kept: which of them stay, shape (C,).
        device: of the network.
    """

    def __init__(self, channels: Ids, kept: Mask, device: torch.device) -> None:
        self.channels, self._kept = channels, torch.from_numpy(kept).to(device)
        self._slopes = torch.zeros(len(channels), device=device)  # Σ (∂L/∂x̃) x

    def masked(self, read: torch.Tensor, last: bool) -> torch.Tensor:
        return read * (self._kept if last else self._kept[:, None, None])

    def note(self, gradient: torch.Tensor, read: torch.Tensor) -> None:
        self._slopes.add_((gradient * read).sum(0, dtype=torch.float32))

    def change(self, added: Mask) -> float:
        return float(self._slopes[torch.from_numpy(added).to(self._slopes.device)].sum())


class _Predicted:
    """Reading of a compensated layer: removed channels are what the kept ones predict of them.

    Args:
        channels: their numbers in the graph, shape (C,).
        kept: which of them stay, shape (C,).
        mean: of x, shape (C,).
        covariance: of x, shape (C, C).
    """

    def __init__(self, channels: Ids, kept: Mask, mean: torch.Tensor, covariance: torch.Tensor) -> None:
        device, size = mean.device, len(channels)
        stays, goes = (torch.from_numpy(np.flatnonzero(mask)).to(device) for mask in (kept, ~kept))
        coefficients, shift = regression(mean, covariance, stays, goes)
        self.channels, self._stays, self._goes, self._coefficients = channels, stays, goes, coefficients
        # What the kept ones leave over of the covariance of the removed ones.
        self._unexplained = covariance[goes][:, goes] - coefficients @ covariance[stays][:, goes]
        self._mean = mean.float()
        self._mixing = torch.eye(size, device=device)
        self._mixing[goes] = 0
        self._mixing[goes[:, None], stays] = coefficients.float()
        self._constant = torch.zeros(size, device=device)
        self._constant[goes] = shift.float()
        self._product = torch.zeros(size, size, device=device)  # Σ (∂L/∂x̃) xᵀ
        self._total = torch.zeros(size, device=device)  # Σ ∂L/∂x̃

    def masked(self, read: torch.Tensor, last: bool) -> torch.Tensor:
        matrix, offset = self._mixing.to(read.dtype), self._constant.to(read.dtype)
        return F.linear(read, matrix, offset) if last else F.conv2d(read, matrix[:, :, None, None], offset)

    def note(self, gradient: torch.Tensor, read: torch.Tensor) -> None:
        self._product.add_(gradient.T @ read)  # in bfloat16, if the network is: four times as fast
        self._total.add_(gradient.sum(0, dtype=torch.float32))

    def change(self, added: Mask) -> float:
        device, dtype = self._goes.device, self._unexplained.dtype
        places = torch.from_numpy(np.flatnonzero(added[self._goes.cpu().numpy()])).to(device)
        joining = self._goes[places]
        known = self._unexplained[places][:, places]
        add_ridge(known, self._mean)
        # What is new in the added channels also informs about those that stay removed.
        spread = torch.linalg.solve(known, self._unexplained[places]).T.clone()
        spread[places] = torch.eye(len(places), dtype=dtype, device=device)
        product = self._product[self._goes].double() - torch.outer(self._total[self._goes], self._mean).double()
        weights = spread.T @ product
        own = weights[torch.arange(len(places), device=device), joining].sum()
        return float(own - (weights[:, self._stays] * self._coefficients[places]).sum())


class Slopes:
    """How the loss of one pruned network changes with its width; made by `measure_slopes`."""

    def __init__(self, keep: Mask, readings: Sequence[_Reading]) -> None:
        self._keep = keep
        self._readings = readings

    def change(self, wider: Mask) -> float:
        """Return the change of the loss, to first order, when more channels are kept, shape (channels,)."""
        added = wider & ~self._keep
        return sum(
            reading.change(added[reading.channels]) for reading in self._readings if added[reading.channels].any()
        )


def measure_slopes(
    dense: nn.Module,
    graph: ChannelGraph,
    keep: Mask,
    moments: Moments | None,
    losses: Sequence[Callable[[nn.Module], torch.Tensor]],
) -> Slopes:
    """Run one forward and one backward pass per batch through the dense network, masked as the pruned one.

    Args:
        dense: the dense network; not modified.
        graph: its channel groups.
        keep: which channels the pruned network has, shape (channels,).
        moments: what it is compensated with; None if it is not.
        losses: one call per batch, each of which returns a network's loss in train mode as a scalar with gradients.
    """
    network = train_mode(copy.deepcopy(dense)).requires_grad_(False)
    if next(network.parameters()).device.type == "cpu":
        network = network.to(memory_format=torch.channels_last)
    readings: list[_Reading] = []
    with ExitStack() as hooks:
        mixing = {layer.name: layer for layer in graph.layers if layer.kind in MIXING}  # one that runs twice is once
        for name, layer in mixing.items():
            channels = graph.axes[layer.in_axis]
            module = network.get_submodule(name)
            if not isinstance(module, Reader):
                continue
            if moments is not None and name in moments.mean:
                reading: _Reading = _Predicted(channels, keep[channels], moments.mean[name], moments.covariance[name])
            elif len(channels) <= _NARROW:
                reading = _Predicted(channels, keep[channels], *_unrelated(len(channels), module.weight.device))
            else:
                reading = _Zeroed(channels, keep[channels], module.weight.device)
            readings.append(reading)
            hooks.enter_context(module.register_forward_pre_hook(_masking(reading), with_kwargs=True))
        for loss in tracked(losses, "Slopes"):
            loss(network).backward()  # type: ignore[no-untyped-call]
    return Slopes(keep, readings)


def _unrelated(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and covariance of channels that say nothing of each other, so that removed ones count as zero."""
    return torch.zeros(size, dtype=torch.float64, device=device), torch.eye(size, dtype=torch.float64, device=device)


def _masking(reading: _Reading) -> Callable[..., tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]]:
    """Return the hook that gives a layer what the pruned network's would read, and notes how the loss depends on it."""

    def mask(
        layer: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        read = input_of(args, kwargs)
        last = isinstance(layer, nn.Linear)
        masked = reading.masked(read, last)
        if not masked.requires_grad:
            masked.requires_grad_()
        seen = read.detach()

        def note(gradient: torch.Tensor) -> None:
            rows, values = (_rows(tensor, last) for tensor in (gradient, seen))
            reading.note(rows, values.to(rows.dtype))

        masked.register_hook(note)  # type: ignore[no-untyped-call]
        return (masked, *args[1:]), {name: value for name, value in kwargs.items() if name != "input"}

    return mask


def _rows(tensor: torch.Tensor, last: bool) -> torch.Tensor:
    """Return the channels at all positions, shape (positions, channels)."""
    return (tensor if last else tensor.movedim(1, -1)).reshape(-1, tensor.shape[-1 if last else 1])
