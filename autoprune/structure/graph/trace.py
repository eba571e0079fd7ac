"""Copy a network, export it, and find its channel groups."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from autoprune.errors import ModelError, first_line
from autoprune.structure.graph.assemble import assemble
from autoprune.structure.graph.lifetimes import activations
from autoprune.structure.graph.program import export_program
from autoprune.structure.graph.rules import RULES
from autoprune.structure.graph.types import ChannelGraph
from autoprune.structure.graph.walk import Walk


def trace(module: nn.Module, example: torch.Tensor, *, free_outputs: Collection[str] = ()) -> ChannelGraph:
    """Export the network in train mode, walk its operations once and return its channel groups.

    Args:
        module: the network, in any mode; it is not modified.
        example: an input of shape (B, C, H, W) with B at least 2; layer sizes are recorded for its H and W.
        free_outputs: keys of an output dictionary whose tensors may change their channel count.

    Raises:
        ModelError: the network cannot be copied or exported.
    """
    network = copied(module).train()
    for child in network.modules():
        if isinstance(child, nn.modules.batchnorm._NormBase) and child.momentum is None:
            child.momentum = 0.1  # a cumulative average divides by the number of batches, which cannot be exported
    rule = "torch.export must be able to export a network before its channel groups can be found;"
    exported = export_program(network, example, f"{rule} {type(network).__name__}")
    walk = Walk(network, exported, free_outputs=frozenset(free_outputs), batch=len(example))
    found = walk.run(RULES)
    found.activations = activations(exported.graph.nodes, walk.value, len(example))
    return assemble(found)


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy of a network whose layers hold their weights as they use them.

    Raises:
        ModelError: a layer computes a weight from other tensors at every pass, the network cannot be copied, or it is
            an Ultralytics object around one, such as a ``YOLO``, whose ``train()`` begins a training.
    """
    if any(kind.__module__ == "ultralytics.engine.model" for kind in type(module).__mro__):
        name = type(module).__name__
        raise ModelError(f"A network is a module of layers, and this {name} object holds one; give its `model`")
    for path, tensor, way_out in _computed_weights(module):
        raise ModelError(
            f"A network's layers must hold their weights as they use them, and {path or type(module).__name__} "
            f"computes its {tensor} at every pass; call {way_out} before"
        )
    try:
        return copy.deepcopy(module)
    except MemoryError:
        raise
    except Exception as error:  # torch's, or that of an object that the network holds
        reason = first_line(error)
        raise ModelError(
            f"copy.deepcopy must be able to copy a network, and {type(module).__name__} fails with: {reason}"
        ) from error


def _computed_weights(module: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Yield every weight that is no parameter: its module's path, its name, and the call that makes it one."""
    for path, child in module.named_modules():
        place = f"network.{path}" if path else "network"
        if parametrize.is_parametrized(child):
            for name in child.parametrizations:
                yield path, name, f"torch.nn.utils.parametrize.remove_parametrizations({place}, {name!r})"
        for hook in child._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield path, hook.name, f"torch.nn.utils.remove_weight_norm({place}, {hook.name!r})"
            elif isinstance(hook, SpectralNorm):
                yield path, hook.name, f"torch.nn.utils.remove_spectral_norm({place}, {hook.name!r})"
            elif isinstance(hook, BasePruningMethod):
                name = hook._tensor_name
                yield path, name, f"torch.nn.utils.prune.remove({place}, {name!r})"
