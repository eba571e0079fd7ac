"""Which of the graph's layers the deployed network really runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from autoprune.latency.tables import TIMED
from autoprune.structure.graph import Layer


def deployed_layers(layers: Sequence[Layer], deployable: nn.Module, shape: tuple[int, ...]) -> tuple[Layer, ...]:
    """Return the convolutions and linear layers that the deployed network really runs.

    Fusing drops layers (a head used only in training) and merges others (the branches of a re-parameterised
    convolution become one); a merged one is described by the branch of its kernel and stride.

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
    """Return the network itself, which may be a submodule of what is deployed: most of the layers lie in it."""
    names = {layer.name for layer in layers}
    return max(deployable.modules(), key=lambda module: len(names & {path for path, _ in module.named_modules()}))


def _executed(module: nn.Module, shape: tuple[int, ...], *, root: nn.Module) -> dict[str, nn.Module]:
    """Return by path within the root the convolutions and linear layers that one forward pass runs."""
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
