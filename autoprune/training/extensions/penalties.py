"""What sparsity training makes small: batch norm scales one by one, or all weights of a channel together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Array, Ids
from autoprune.choices import PenaltyName
from autoprune.criteria._base import rows_of
from autoprune.criteria.batchnorm import scaled_channels
from autoprune.errors import ModelError
from autoprune.structure.graph import ChannelGraph

Parameters = Mapping[str, nn.Parameter]
"""A network's parameters by every name that they have."""


class Penalty(ABC):
    """Pulls the *scales* of prunable channels towards 0; the others are left alone.

    A scale is a number ≥ 0 that says how large a channel is. Of strength s, every penalty here takes η·s off each scale
    in a plain gradient step of rate η, so that strengths mean the same.

    Attributes:
        spans: where the scales of each layer (or unit) lie among all of them.
        channels: global number of the channel that each scale is of, shape (scales,).
    """

    spans: Mapping[str, slice]
    channels: Ids

    @abstractmethod
    def scales(self, parameters: Parameters) -> Array:
        """Return all scales, shape (scales,)."""

    @abstractmethod
    def pull(self, parameters: Parameters, strength: float) -> None:
        """Add the penalty's subgradient of a strength to the gradients of the parameters, if they have any."""


class ScalePenalty(Penalty):
    """s·Σ|γ| over the batch norms of prunable channels.

    Its subgradient s·sign(γ) is added to that of γ (Liu et al., "Learning Efficient Convolutional Networks through
    Network Slimming", ICCV 2017, section 3, equation 1). The scales are |γ|.

    Args:
        module: the network whose names and shapes count.
        graph: its channel groups.

    Raises:
        ModelError: the network has no batch norm on prunable channels.
    """

    def __init__(self, module: nn.Module, graph: ChannelGraph) -> None:
        prunable = graph.prunable
        found = list(scaled_channels(module, graph))
        self._masks = {path: torch.from_numpy(prunable[ids]) for path, ids in found if prunable[ids].any()}
        if not self._masks:
            raise ModelError(
                "The penalty l1 is on batch norm scales, and this network has no batch norm on channels that can be "
                "pruned; use `penalty` group-lasso"
            )
        channels = {path: ids[prunable[ids]] for path, ids in found if path in self._masks}
        self.spans = _spans(channels)
        self.channels = np.concatenate(list(channels.values()))

    def scales(self, parameters: Parameters) -> Array:
        """Return |γ|, one batch norm after the other."""
        found = [parameters[f"{path}.weight"].detach().abs()[mask] for path, mask in self._masks.items()]
        return np.asarray(torch.cat(found).cpu().double().numpy())

    def pull(self, parameters: Parameters, strength: float) -> None:
        """Add s·sign(γ); at γ = 0 it is 0."""
        for path, mask in self._masks.items():
            gamma = parameters[f"{path}.weight"]
            if gamma.grad is not None:
                gamma.grad.add_(gamma.detach().sign() * mask.to(gamma.device), alpha=strength)


class GroupPenalty(Penalty):
    """Group lasso s·Σ√n·‖w‖₂, w all n weights that make one channel.

    Its subgradient is s·√n·w/‖w‖₂ (Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016,
    equation 3, whose groups are the filters of one layer; √n as in Yuan and Lin, "Model selection and estimation in
    regression with grouped variables", 2006). Here a group is all of a channel: its filters in every layer that makes
    it, their biases, and scale and shift of its batch norms, since only all of them are removed together. The slices of
    following filters that *read* the channel are no part of it: they are parts of other channels' filters already, and
    of a channel that gives 0 there is nothing to read. The scales are root mean squares, ‖w‖₂/√n.

    Args:
        module: the network whose names and shapes count.
        graph: its channel groups.
    """

    def __init__(self, module: nn.Module, graph: ChannelGraph) -> None:
        self._prunable = torch.from_numpy(graph.prunable)
        self._members = _members(module, graph)
        self._sizes = torch.zeros(graph.channels)
        for name, (dimension, ids) in self._members.items():
            shape = module.get_parameter(name).shape
            self._sizes.index_add_(0, ids, torch.full((len(ids),), shape.numel() / shape[dimension]))
        self._sizes.clamp_(min=1)
        channels = {
            unit.name: np.concatenate(
                [graph.groups[index].offset + np.arange(graph.groups[index].size) for index in unit.groups]
            )
            for unit in graph.units
        }
        self.spans = _spans(channels)
        self.channels = np.concatenate(list(channels.values()))

    def scales(self, parameters: Parameters) -> Array:
        """Return root mean squares, one unit after the other."""
        norms = self._norms(parameters).cpu().double() / self._sizes.sqrt()
        return np.asarray(norms.numpy()[self.channels])

    def pull(self, parameters: Parameters, strength: float) -> None:
        """Add s·√n·w/‖w‖₂; of a channel that is 0 it is 0."""
        norms = self._norms(parameters)
        factors = strength * self._sizes.sqrt().to(norms.device) / norms
        factors[(norms == 0) | ~self._prunable.to(norms.device)] = 0.0
        for name, (dimension, ids) in self._members.items():
            weight = parameters[name]
            if weight.grad is not None:
                shape = [1] * weight.ndim
                shape[dimension] = -1
                weight.grad.add_(weight.detach() * factors[ids.to(weight.device)].view(shape))

    def _norms(self, parameters: Parameters) -> torch.Tensor:
        """Return ‖w‖₂ of every channel of the graph, shape (channels,)."""
        device = next(iter(parameters.values())).device
        squares = torch.zeros(len(self._sizes), device=device)
        for name, (dimension, ids) in self._members.items():
            squares.index_add_(0, ids.to(device), rows_of(parameters[name].detach().float(), dimension).square().sum(1))
        return squares.sqrt()


PENALTIES: Mapping[PenaltyName, Callable[[nn.Module, ChannelGraph], Penalty]] = {
    PenaltyName.L1: ScalePenalty,
    PenaltyName.GROUP_LASSO: GroupPenalty,
}
"""Every penalty by its name."""


def make_penalty(name: PenaltyName, module: nn.Module, graph: ChannelGraph) -> Penalty:
    """Return the penalty of a name for a network.

    Raises:
        ModelError: there is nothing in the network that it could make small.
    """
    if not graph.units:
        raise ModelError("No channel of this network can be pruned, so there is none that could be made sparse")
    return PENALTIES[name](module, graph)


def _members(module: nn.Module, graph: ChannelGraph) -> dict[str, tuple[int, torch.Tensor]]:
    """Return the parameters that make channels: by name the dimension that has them and their numbers."""
    makers = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase)
    found = {}
    for name, pairs in graph.tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(owner, makers) and leaf in ("weight", "bias"):
            making = 1 if leaf == "weight" and getattr(owner, "transposed", False) else 0
            for axis in (axis for at, axis in pairs if at == making):
                found[name] = making, torch.from_numpy(graph.axes[axis])
    return found


def _spans(channels: Mapping[str, Ids]) -> dict[str, slice]:
    """Return where each run of channels lies in all of them joined."""
    ends = np.cumsum([len(ids) for ids in channels.values()]).tolist()
    return {name: slice(end - len(ids), end) for (name, ids), end in zip(channels.items(), ends, strict=True)}
