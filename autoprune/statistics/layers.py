"""Run layers in eval mode and watch them, read weights and shift outputs, and recalibrate batch norm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from autoprune.listener import tracked
from autoprune.structure.graph import MIXING, ChannelGraph, Layer

Reader = nn.modules.conv._ConvNd | nn.Linear
Norm = nn.modules.batchnorm._BatchNorm


def mixing_layers(module: nn.Module, graph: ChannelGraph) -> dict[str, Layer]:
    """Return the layers that make channels out of others, by name, in the order of the forward pass.

    Those are left out whose weight or bias another module shares: what fits the one would not fit the other.
    """
    uses = Counter(id(tensor) for child in module.modules() for tensor in child.parameters(recurse=False))

    def alone(name: str) -> bool:
        layer = module.get_submodule(name)
        return isinstance(layer, Reader) and all(uses[id(tensor)] == 1 for tensor in layer.parameters())

    return {layer.name: layer for layer in graph.layers if layer.kind in MIXING and alone(layer.name)}


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


def shift_output(layer: nn.Module, norms: Sequence[nn.Module], shift: torch.Tensor) -> None:
    """Add constants to a layer's outputs; a layer with neither bias nor batch norm behind it gets a bias.

    Args:
        layer: changed in place, unless batch norms are.
        norms: the batch norms that read the layer's outputs, as `norms_behind` finds them.
        shift: what is added to each output channel, shape (out channels,).
    """
    assert isinstance(layer, Reader)
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias.dtype))
    elif norms:
        for norm in norms:
            mean = norm.running_mean
            assert isinstance(mean, torch.Tensor)
            mean.sub_(shift.to(mean.dtype))
    else:
        layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)


@contextmanager
def activation_hooks(
    module: nn.Module, layers: Sequence[str], see: Callable[[str, Reader, torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """Call ``see`` with name, layer, input and output whenever one of the layers runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def seen(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            assert isinstance(layer, Reader)
            see(name, layer, inputs[0], output)

        return seen

    with ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(module.get_submodule(name).register_forward_hook(hook(name)))
        yield


@contextmanager
def norms_behind(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    """Find, while the block runs the network, the batch norms that read the very tensors which each layer gives.

    Yields:
        Layer → batch norms, by path; complete after the block. A layer that runs on several levels can have one for
        each. Those are left out that do not read all that their layer gives, or read something else, too.
    """
    found: dict[str, list[str]] = {}
    runs, read = Counter[str](), set[tuple[str, int]]()
    sources: dict[str, set[str]] = {}
    last: list[tuple[str, torch.Tensor]] = []

    def gave(name: str, layer: Reader, _: torch.Tensor, given: torch.Tensor) -> None:
        runs[name] += 1
        last[:] = [(name, given)]

    def before(path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def reads(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            name = last[0][0] if last and inputs[0] is last[0][1] else ""
            sources.setdefault(path, set()).add(name)
            if name:
                read.add((name, runs[name]))
                found[name] = list(dict.fromkeys([*found.get(name, ()), path]))

        return reads

    with activation_hooks(module, layers, gave), ExitStack() as hooks:
        for path, child in module.named_modules():
            if isinstance(child, Norm) and child.running_mean is not None:
                hooks.enter_context(child.register_forward_pre_hook(before(path)))
        yield found
    last.clear()
    covered = Counter(name for name, _ in read)
    for name in list(found):
        if covered[name] < runs[name] or any(sources[path] != {name} for path in found[name]):
            del found[name]


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
    norms = [child for child in module.modules() if isinstance(child, Norm)]
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
