"""Score channels by the average percentage of zeros of their activations (APoZ)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise

import torch
from torch import nn

from autoprune.criteria._base import CalibrationData, ChannelScores, Importance, observe
from autoprune.statistics.layers import Norm, Reader
from autoprune.structure.graph import MIXING, ChannelGraph, LayerKind

NEAR = 0.05
"""Where an activation has no exact zeros (SiLU), what is up to this share of the layer's root mean square is."""

_WITH_ZEROS = (nn.ReLU, nn.ReLU6)


class ApozImportance(Importance):
    """Share of values that are not zero, 1 − APoZ (Hu et al., "Network Trimming", 2016, arXiv:1607.03250, equation 1).

    It is read off behind the activation that follows a batch norm, or a convolution if the network has no batch
    norms; the network is in eval mode.

    Args:
        evidence: images.
    """

    name = "apoz"

    def __init__(self, evidence: CalibrationData) -> None:
        self._evidence = evidence

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return the share per channel for every layer."""
        modules = dict(module.named_modules())
        norms = [
            layer
            for layer in graph.layers
            if layer.kind is LayerKind.NORM and isinstance(modules[layer.name], Norm)  # not one called as a function
        ]
        mixing = [layer for layer in graph.layers if layer.kind in MIXING and isinstance(modules[layer.name], Reader)]
        layers = norms or mixing
        axes = {layer.name: layer.out_axis for layer in layers}
        alive = {name: torch.zeros(len(graph.axes[axis]), dtype=torch.float64) for name, axis in axes.items()}
        with ExitStack() as hooks:
            for name, total in alive.items():
                count = _counting(activation_after(module, name), total)
                hooks.enter_context(module.get_submodule(name).register_forward_hook(count))
            observe(module, self._evidence)
        return [ChannelScores(graph.axes[axis], alive[name]) for name, axis in axes.items()]


def _counting(activation: nn.Module, total: torch.Tensor) -> Callable[[nn.Module, object, torch.Tensor], None]:
    """Return a hook that adds a batch's share of values that are not zero, per channel."""
    exact = isinstance(activation, _WITH_ZEROS)

    def count(_: nn.Module, __: object, output: torch.Tensor) -> None:
        values = activation(output.clone()).transpose(0, 1).flatten(1)
        least = 0.0 if exact else NEAR * float(values.square().mean().sqrt())
        total.add_((values.abs() > least).double().mean(1).cpu())

    return count


def activation_after(module: nn.Module, name: str) -> nn.Module:
    """Return the activation that a layer's output goes through, or the identity if none is found.

    It is the ``act`` of the block that the layer lies in, as in Ultralytics' blocks, or the child that follows it.
    """
    path, _, leaf = name.rpartition(".")
    block = module.get_submodule(path)
    named = getattr(block, "act", None)
    if isinstance(named, nn.Module):
        return named
    children = list(block.named_children())
    following = [child for (before, _), (_, child) in pairwise(children) if before == leaf]
    if following and type(following[0]).__module__ == "torch.nn.modules.activation":
        return following[0]
    return nn.Identity()
