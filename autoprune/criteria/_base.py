"""Define a criterion: it scores every channel of every group."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Array, Ids
from autoprune.listener import warn
from autoprune.statistics.layers import evaluating, train_mode
from autoprune.statistics.moments import named
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import state_tensors


@dataclass(frozen=True)
class CalibrationData:
    """Labelled training images, for criteria that look at what the network makes of them.

    Attributes:
        batches: opaque; read through the two functions.
        inputs: batch → input tensor, shape (B, C, H, W).
        loss: (network in train mode, batch) → the training loss, a scalar per image.
    """

    batches: Sequence[Any]
    inputs: Callable[[Any], torch.Tensor]
    loss: Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class ChannelScores:
    """What one tensor or layer says about channels.

    Attributes:
        channels: global numbers of the channels, shape (n,).
        scores: one per channel, each ≥ 0, shape (n,).
    """

    channels: Ids
    scores: torch.Tensor


class Importance(ABC):
    """A criterion: which channels matter.

    In a group, the score of a channel is the sum of what every member says, each divided by its own mean where
    ``normalised``, so that no layer speaks louder than another because its weights are larger. A group of which no
    member says anything is ranked by l1, about as high as the others.

    Attributes:
        name: how the command line and the policy name it.
        normalised: whether members are divided by their means; not if scores are comparable between layers already.
    """

    name: str
    normalised: bool = True

    @abstractmethod
    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return what every tensor or layer that has a say says; the network is not changed."""

    def __call__(self, module: nn.Module, graph: ChannelGraph) -> tuple[Array, ...]:
        """Return per group the score of each of its channels, shape (size,), higher is more important."""
        total, said = np.zeros(graph.channels), np.zeros(graph.channels, dtype=bool)
        for member in self.members(module, graph):
            values = member.scores.detach().double().cpu().numpy()
            scale = max(float(values.mean()), 1e-12) if self.normalised else 1.0
            np.add.at(total, member.channels, values / scale)
            said[member.channels] = True
        silent = [group for group in graph.groups if not (group.pinned or said[group.span].any())]
        if silent:
            warn(
                f"The criterion {self.name} says nothing of {len(silent)} channel groups "
                f"({named([group.name for group in silent])}), which are ranked by l1."
            )
            norms = np.zeros(graph.channels)
            for channels, rows in weights(module, graph):
                values = rows.detach().abs().sum(1).double().cpu().numpy()
                np.add.at(norms, channels, values / max(float(values.mean()), 1e-12))
            middle = float(np.median(total[said])) if said.any() else 1.0
            for group in silent:
                own = norms[group.span]
                total[group.span] = own * middle / max(float(np.median(own)), 1e-12)
        return tuple(total[group.span] for group in graph.groups)

    def order(self, module: nn.Module, graph: ChannelGraph) -> tuple[Ids, ...]:
        """Return per group its channels' numbers within the group, most important first (ties by number)."""
        return ranking(self(module, graph))


def ranking(importance: Sequence[Array]) -> tuple[Ids, ...]:
    """Return per group its channels' numbers, those with the highest scores first (ties by number)."""
    return tuple(np.argsort(-scores, kind="stable") for scores in importance)


def weights(module: nn.Module, graph: ChannelGraph) -> Iterator[tuple[Ids, torch.Tensor]]:
    """Yield (channels, rows) for every weight of a convolution or linear layer and each dimension that channels have.

    Rows have shape (n, rest): all numbers that belong to one channel, be it as a filter that produces it or as the
    slice of a following filter that reads it.
    """
    state = state_tensors(module)
    for name, pairs in graph.tensors.items():
        if state[name].ndim >= 2:
            for dimension, axis in pairs:
                yield graph.axes[axis], rows_of(state[name].float(), dimension)


def rows_of(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """Return a tensor as one row per position of a dimension, shape (n, rest)."""
    return tensor.transpose(0, dimension).reshape(tensor.shape[dimension], -1)


def trainable_copy(module: nn.Module) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Return a copy in train mode, to compute gradients with, and its parameters by every name that they have."""
    copied = train_mode(copy.deepcopy(module))
    parameters = dict(copied.named_parameters(remove_duplicate=False))
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return copied, parameters


def observe(module: nn.Module, evidence: CalibrationData) -> None:
    """Run the images through a network in eval mode, without gradients, for hooks to see; its mode is put back."""
    with evaluating(module):
        for batch in evidence.batches:
            module(evidence.inputs(batch))
