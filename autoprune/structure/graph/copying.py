"""Copying a network that others built, or saying in a sentence why that cannot be done."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from autoprune.errors import ModelError


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy of a network whose layers hold their weights as they use them.

    Raises:
        ModelError: a layer computes a weight from other tensors at every pass, or the network cannot be copied.
    """
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
        reason = (str(error) or type(error).__name__).splitlines()[0]
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
