"""Softening: the channels that a policy removes are driven to zero in training, so that removing them changes nothing.

Soft pruning (He et al., "Soft Filter Pruning", IJCAI 2018, section 3) zeroes filters and lets them grow again; growing
regularisation (Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021, section 3) pushes what is to go
harder and harder. Here the channels are known from the start, and so they follow a schedule instead of a penalty: after
every optimizer step their scales are multiplied by f(t) / f(t−1), where f falls from 1 to 0 along a cosine. What their
gradient adds on the way lasts no longer than they do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Mask
from autoprune.structure.graph import MIXING, ChannelGraph, Layer, LayerKind
from autoprune.training.extensions._base import Event, Training, TrainingExtension, networks_of


def remaining(progress: float) -> float:
    """Return the factor f that a doomed channel is left with: (1 + cos π·progress) / 2, from 1 to exactly 0.

    Args:
        progress: share of the training that is over, in [0, 1].
    """
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@dataclass(frozen=True)
class Doomed:
    """What one tensor holds of the channels that are to go.

    Attributes:
        rows: a view of the tensor with the channels' dimension first; what is written into it is in the network.
        positions: of the channels in that dimension.
    """

    rows: torch.Tensor
    positions: torch.Tensor

    def shrink(self, factor: float) -> None:
        """Multiply them in place; by 0 makes exact zeros."""
        self.rows[self.positions] *= factor


def doomed(module: nn.Module, graph: ChannelGraph, keep: Mask) -> Sequence[Doomed]:
    """Return the numbers that make the channels which are to go: all zero, and these channels are zero.

    They are every parameter with a number per channel that no layer sums over (γ and β of batch norms, biases, learnt
    scales and shifts), and the rows of a convolution or linear layer that no batch norm follows. With them a channel's
    value is 0 wherever it is made; pooling, upsampling, SiLU, ReLU and LeakyReLU leave it 0, and who reads it gets
    nothing from it. Not so what is added by a buffer, and what reads a convolution's output past its batch norm.

    Args:
        module: the dense network or a copy.
        graph: its channel groups.
        keep: which channels stay, shape (channels of the graph,).
    """
    rows = _unnormalised_rows(graph)
    filters = {f"{layer.name}.weight" for layer in graph.layers if layer.kind in (*MIXING, LayerKind.DEPTHWISE)}
    found = []
    for name, parameter in module.named_parameters(remove_duplicate=False):
        for dimension, axis in graph.tensors.get(name, ()):
            positions = np.flatnonzero(~keep[graph.axes[axis]])
            makes = (name, dimension) in rows if name in filters else (name, dimension) not in graph.reads
            if len(positions) and (makes or parameter.ndim == 1):
                view = parameter.detach().movedim(dimension, 0)
                found.append(Doomed(view, torch.from_numpy(positions).to(view.device)))
    return found


def _unnormalised_rows(graph: ChannelGraph) -> set[tuple[str, int]]:
    """Return the weights that make channels which no batch norm scales, each with the dimension of its outputs."""
    return {
        (f"{layer.name}.weight", 1 if layer.kind is LayerKind.TRANSPOSED else 0)
        for layer, follower in zip(graph.layers, [*graph.layers[1:], None], strict=True)
        if layer.kind in MIXING
        if follower is None or not _normalises(graph, layer, follower)
    }


def _normalises(graph: ChannelGraph, layer: Layer, follower: Layer) -> bool:
    """Return whether the layer that follows is a batch norm of this one's output, with a scale."""
    scaled = f"{follower.name}.weight" in graph.tensors
    return follower.kind is LayerKind.NORM and follower.in_axis == layer.out_axis and scaled


class GradualZeroing(TrainingExtension):
    """Drives channels to zero over a training of the dense network; in its averaged weights, too.

    Args:
        graph: the channel groups of the dense network.
        keep: which channels stay, shape (channels of the graph,).
    """

    def __init__(self, graph: ChannelGraph, keep: Mask) -> None:
        self._graph, self._keep = graph, keep

    def attach(self, training: Training) -> None:
        """Listen to epochs and to the optimizer's steps."""
        training.listen(Event.START, self._begin)
        training.listen(Event.EPOCH_START, self._begin_epoch)
        training.listen(Event.STEPPED, self._step)
        training.listen(Event.EPOCH_END, self._end_epoch)

    def _begin(self, training: Training) -> None:
        self._factor = remaining(training.start_epoch / training.epochs)
        self._doomed = [part for network in networks_of(training) for part in doomed(network, self._graph, self._keep)]

    def _begin_epoch(self, training: Training) -> None:
        self._steps = 0

    def _step(self, training: Training) -> None:
        self._steps += 1
        self._fall(training, training.epoch + self._steps / training.batches)

    def _end_epoch(self, training: Training) -> None:
        """Reach the epoch's end also if steps are fewer than batches (gradients summed over several)."""
        self._fall(training, training.epoch + 1)

    def _fall(self, training: Training, epochs: float) -> None:
        """Bring the channels to where the schedule is after a number of epochs; never up, as after a repeated epoch."""
        factor = min(remaining(epochs / training.epochs), self._factor)
        if factor < self._factor:
            for part in self._doomed:
                part.shrink(factor / self._factor)
            self._factor = factor
