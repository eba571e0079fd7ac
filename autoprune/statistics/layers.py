"""Run layers in eval mode, read weights and shift outputs, and recalibrate batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from autoprune.listener import tracked

Reader = nn.modules.conv._ConvNd | nn.Linear
Norm = nn.modules.batchnorm._BatchNorm


def outputs_first(layer: Reader) -> torch.Tensor:
    """Return a view of a layer's weight as (outputs, inputs, kernel …)."""
    transposed = isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed
    return layer.weight.transpose(0, 1) if transposed else layer.weight


def summed_over_kernel(weight: torch.Tensor, layer: Reader) -> torch.Tensor:
    """Return what one unit of every input channel adds to the outputs, shape (outputs, inputs).

    Behind a transposed convolution it is a pattern as large as its stride, of which this is the mean.

    Args:
        weight: some of a layer's weights, shape (outputs, inputs, kernel …).
        layer: of one group.
    """
    summed = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed:
        return summed / math.prod(layer.stride)
    return summed


def shift_output(layer: nn.Module, norm: nn.Module | None, shift: torch.Tensor) -> None:
    """Add constants to a layer's outputs; a layer with neither bias nor batch norm behind it gets a bias.

    Args:
        layer: changed in place, unless the batch norm is.
        norm: the batch norm that reads the layer's output, or None.
        shift: what is added to each output channel, shape (out channels,).
    """
    assert isinstance(layer, Reader)
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias.dtype))
    elif norm is not None:
        mean = norm.running_mean
        assert isinstance(mean, torch.Tensor)
        mean.sub_(shift.to(mean.dtype))
    else:
        layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)


@contextmanager
def norms_behind(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, str]]:
    """Find, while the block runs the network, the batch norm that reads the very tensor which each layer gives.

    Yields:
        Layer → batch norm, by path; filled as the network runs.
    """
    found: dict[str, str] = {}
    last: list[tuple[str, torch.Tensor]] = []

    def after(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def note(layer: nn.Module, read: tuple[torch.Tensor, ...], given: torch.Tensor) -> None:
            last[:] = [(name, given)]

        return note

    def before(path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def note(norm: nn.Module, read: tuple[torch.Tensor, ...]) -> None:
            if last and read[0] is last[0][1]:
                found.setdefault(last[0][0], path)

        return note

    with ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(module.get_submodule(name).register_forward_hook(after(name)))
        for path, child in module.named_modules():
            if isinstance(child, Norm) and child.running_mean is not None:
                hooks.enter_context(child.register_forward_pre_hook(before(path)))
        yield found
        last.clear()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, without gradients, and back into its own mode."""
    training = module.training
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def recalibrate(module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Replace batch norm statistics by those of the inputs (Li et al., "EagleEye", ECCV 2020, section 3.3).

    Args:
        module: changed in place; left in eval mode.
        inputs: tensors of shape (B, C, H, W); every one counts the same.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    module.train()
    with torch.no_grad():
        for tensor in tracked(inputs, "Recalibrating"):
            module(tensor)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
