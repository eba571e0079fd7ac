"""(network, kept channels) → a new, smaller network; the input is never touched.

No masks and no replaced modules: every state tensor is indexed along the axes that the graph found, and the plain
numbers that repeat widths (``in_channels``, ``C2f.c``, …) follow. The structure is copied without its tensors, so a
candidate of a YOLOv8n takes some 20 ms.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Ids, Mask
from autoprune.errors import ModelError
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.space import Allocation, Space


class Slicer:
    """Makes smaller copies of one network.

    Args:
        module: the dense network; it is read at every call and never modified.
        graph: its channel groups.
    """

    def __init__(self, module: nn.Module, graph: ChannelGraph) -> None:
        self.module = module
        self.graph = graph
        self._tensors = state_tensors(module)
        # A tensor that two modules share is listed under its first name in the graph: follow the object.
        self._axes_of = {id(self._tensors[name]): pairs for name, pairs in graph.tensors.items()}
        self._hooks = [
            value for child in module.modules() for value in vars(child).values() if type(value) is OrderedDict
        ]
        self._updates: list[tuple[str, Callable[[nn.Module], None]]] = [
            (path, update) for path, child in module.named_modules() if (update := _width_update(child)) is not None
        ]

    def __reduce__(self) -> tuple[type[Slicer], tuple[nn.Module, ChannelGraph]]:
        return Slicer, (self.module, self.graph)  # what it keeps by a tensor's identity is found again in the copy

    def materialise(self, keep: Mask) -> nn.Module:
        """Return a new network with only the kept channels, in the mode and on the device of the dense one.

        Args:
            keep: shape (channels,), true where a channel stays; a group may not lose all.

        Raises:
            ModelError: the mask does not fit the graph or empties a group.
        """
        self._check(keep)
        selections = self._selections(keep)
        # Every module has some ten empty hooks, whose copying takes most of the time unless it is done here.
        memo: dict[int, object] = {id(hooks): OrderedDict() for hooks in self._hooks if not hooks}
        for tensor in self._tensors.values():
            if id(tensor) not in memo:
                memo[id(tensor)] = _select(tensor, self._axes_of.get(id(tensor), ()), selections)
        smaller = copy.deepcopy(self.module, memo)
        modules = dict(smaller.named_modules())
        for path, update in self._updates:
            update(modules[path])
        for attribute in self.graph.attributes:
            width = int(np.count_nonzero(keep[self.graph.axes[attribute.axis]]))
            setattr(modules[attribute.module], attribute.attribute, width)
        return smaller

    def _check(self, keep: Mask) -> None:
        if keep.shape != (self.graph.channels,):
            raise ModelError(f"A channel mask must have {self.graph.channels} entries, got {keep.shape}")
        for group in self.graph.groups:
            kept = np.count_nonzero(keep[group.span])
            if kept == 0:
                raise ModelError(f"A group must keep at least one channel; {group.name} would keep none")
            if group.pinned is not None and kept < group.size:
                raise ModelError(f"{group.name} must keep all its channels ({group.pinned})")

    def _selections(self, keep: Mask) -> list[torch.Tensor | None]:
        """Return per axis the positions that stay, or None if all do."""
        device = next(iter(self._tensors.values())).device
        kept = [keep[axis] for axis in self.graph.axes]
        return [None if mask.all() else torch.from_numpy(np.flatnonzero(mask)).to(device) for mask in kept]


class Pruner:
    """Turns allocations into networks.

    Args:
        module: the network that is pruned; never modified.
        space: its units.
        order: per group, channels by importance, most important first.
    """

    def __init__(self, module: nn.Module, space: Space, order: Sequence[Ids]) -> None:
        self.module, self.space = module, space
        self._order = order
        self._surgeon = Slicer(module, space.graph)

    def materialise(self, allocation: Allocation) -> nn.Module:
        """Return a new network as wide as the allocation says, batch norm not recalibrated."""
        return self._surgeon.materialise(self.kept(allocation))

    def kept(self, allocation: Allocation) -> Mask:
        """Return which channels of the network stay, shape (channels of the graph,)."""
        return self.space.kept_channels(allocation, self._order)

    def graph_of(self, allocation: Allocation) -> ChannelGraph:
        """Return the channel groups of the network that ``materialise`` makes."""
        return self.space.graph.restricted(self.kept(allocation))


def state_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers by name, non-persistent buffers too, shared ones under every name."""
    tensors: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    return tensors


def _select(
    tensor: torch.Tensor, axes: Sequence[tuple[int, int]], selections: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """Return a new tensor (or parameter) indexed along its axes."""
    result = tensor.detach()
    for dimension, axis in axes:
        selection = selections[axis]
        if selection is not None:
            result = result.index_select(dimension, selection)
    if result.data_ptr() == tensor.data_ptr():
        result = result.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(result, requires_grad=tensor.requires_grad)
    return result


def _width_update(module: nn.Module) -> Callable[[nn.Module], None] | None:
    """Return what reads a module's plain widths off its tensors again, or None if it has none."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return _update_transposed if module.transposed else _update_convolution
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return _update_norm
    if isinstance(module, nn.Linear):
        return _update_linear
    if isinstance(module, nn.PReLU):
        return _update_prelu
    return None


def _update_convolution(module: nn.Module) -> None:
    assert isinstance(module, nn.modules.conv._ConvNd)
    out, inputs = module.weight.shape[:2]
    if module.groups > 1:
        module.groups = out // (module.out_channels // module.groups)  # a group loses all its filters or none
    module.out_channels, module.in_channels = out, inputs * module.groups


def _update_transposed(module: nn.Module) -> None:
    assert isinstance(module, nn.modules.conv._ConvNd)
    inputs, out = module.weight.shape[:2]
    module.in_channels, module.out_channels = inputs, out * module.groups


def _update_norm(module: nn.Module) -> None:
    assert isinstance(module, nn.modules.batchnorm._NormBase)
    source = module.weight if module.weight is not None else module.running_mean
    if source is not None:
        module.num_features = source.shape[0]


def _update_linear(module: nn.Module) -> None:
    assert isinstance(module, nn.Linear)
    module.out_features, module.in_features = module.weight.shape


def _update_prelu(module: nn.Module) -> None:
    assert isinstance(module, nn.PReLU)
    module.num_parameters = module.weight.shape[0]
