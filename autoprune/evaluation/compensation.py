"""Make up for removed channels in closed form: least squares over channel covariances, or folding of constants.

Source: Kim et al., "Neuron Merging: Compensating for Pruned Neurons", NeurIPS 2020, section 3, with the least squares
solution instead of the single most similar neuron; He et al., "Channel Pruning for Accelerating Very Deep Neural
Networks", ICCV 2017, is the sequential form (`reconstruction`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Mask
from autoprune.statistics.layers import (
    Norm,
    Reader,
    activation_hooks,
    evaluating,
    input_of,
    mixing_layers,
    norms_behind,
    outputs_first,
    shift_output,
    summed_over_kernel,
)
from autoprune.statistics.moments import Moments, regression
from autoprune.structure.graph import MIXING, ChannelGraph


def compensate(module: nn.Module, dense: nn.Module, graph: ChannelGraph, keep: Mask, moments: Moments) -> None:
    """Add to the weights of every layer what best predicts, from the kept channels, what the removed ones gave it.

    ``W ← W_K + W_R · A`` with ``A = Σ_RK (Σ_KK + λI)⁻¹``, the same A at every kernel position; the means that are left
    go to the bias, or off the running means of the batch norms behind the layer.

    Args:
        module: what surgery made of the dense network; changed in place.
        dense: the dense network; not modified.
        graph: its channel groups.
        keep: which of its channels stay, shape (channels,).
        moments: of the dense network.
    """
    layers = mixing_layers(dense, graph)
    originals, modules = dict(dense.named_modules()), dict(module.named_modules())
    with torch.no_grad():
        for name in moments.mean:
            layer, source, target = layers[name], originals[name], modules[name]
            assert isinstance(source, Reader)
            assert isinstance(target, Reader)
            kept, staying = keep[graph.axes[layer.in_axis]], keep[graph.axes[layer.out_axis]]
            if not kept.all():
                constants = _compensate_layer(
                    target, source, kept, staying, moments.mean[name], moments.covariance[name]
                )
                shift_output(target, [modules[path] for path in moments.norms.get(name, ())], constants)


def _compensate_layer(
    target: Reader, source: Reader, kept: Mask, staying: Mask, mean: torch.Tensor, covariance: torch.Tensor
) -> torch.Tensor:
    """Compensate a layer's weights; return what the removed channels' means add beyond that, shape (outputs,)."""
    stays, goes, outputs = (torch.from_numpy(np.flatnonzero(mask)).to(mean.device) for mask in (kept, ~kept, staying))
    coefficients, shift = regression(mean, covariance, stays, goes)
    removed = outputs_first(source).index_select(0, outputs).index_select(1, goes).to(coefficients.dtype)
    weight = outputs_first(target)  # a view
    weight.add_(torch.einsum("or...,rk->ok...", removed, coefficients).to(weight.dtype))
    return summed_over_kernel(removed, source) @ shift


def fold_constants(module: nn.Module, dense: nn.Module, graph: ChannelGraph, keep: Mask, example: torch.Tensor) -> None:
    """Add to every layer what it would have read from the constants of removed channels.

    A channel whose batch norm scale γ is 0 gives the constant act(β) whatever it reads. To a following layer it adds
    that constant times the weights that read it, summed over the kernel; this goes to the layer's bias or, where it has
    none, off the running means of the batch norms behind it (as in network slimming of YOLOv3, Lam1360/
    YOLOv3-model-pruning, after Liu et al., "Network Slimming", ICCV 2017). For γ = 0 the network then computes what the
    dense one does, but near borders where zeros are padded around the constant. If γ is not 0, β is the channel's
    mean before its activation, and so the best that is known without data.

    Nothing is assumed of the architecture: the dense network runs once with every removed channel silenced where it is
    made, and what its layers read of them then, behind activations, sums and depthwise convolutions, are the constants.

    Args:
        module: what surgery made of the dense network, batch norm not yet recalibrated; changed in place. A layer with
            neither bias nor batch norm behind it stays as it is, since a pruned network has no parameters of its own.
        dense: the dense network; not modified.
        graph: its channel groups.
        keep: which of its channels stay, shape (channels,).
        example: an input, shape (B, C, H, W); one image is enough, and what it shows does not matter.
    """
    masks = {
        layer.name: tuple(torch.from_numpy(keep[graph.axes[axis]]) for axis in (layer.in_axis, layer.out_axis))
        for layer in graph.layers
        if layer.kind in MIXING and isinstance(dense.get_submodule(layer.name), Reader)
    }
    with evaluating(dense), norms_behind(dense, list(masks)) as norms:
        dense(example)
    own = mixing_layers(dense, graph)  # a bias that two layers share would get the constants of both
    shifts: dict[str, torch.Tensor] = {}

    def at_source(name: str, layer: Reader, read: torch.Tensor, given: torch.Tensor) -> None:
        kept_in, kept_out = masks[name]
        if name in own and not kept_in.all() and name not in shifts:  # a layer that runs twice counts as it runs first
            shifts[name] = _response(layer, read, ~kept_in)[kept_out.to(given.device)]
        _silence(given, kept_out, layer.bias)

    def at_norm(kept: torch.Tensor) -> Callable[..., None]:
        def note(norm: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
            assert isinstance(norm, Norm)
            _silence(input_of(args, kwargs), kept, norm.running_mean)  # of which it makes β, and its activation act(β)

        return note

    with evaluating(dense), activation_hooks(dense, list(masks), at_source), ExitStack() as hooks:
        for name, paths in norms.items():
            for path in paths:
                hooks.enter_context(
                    dense.get_submodule(path).register_forward_pre_hook(at_norm(masks[name][1]), with_kwargs=True)
                )
        dense(example)
    with torch.no_grad():
        for name, shift in shifts.items():
            behind = [module.get_submodule(path) for path in norms.get(name, ())]
            shift_output(module.get_submodule(name), behind, shift)


def _silence(output: torch.Tensor, kept: torch.Tensor, constants: torch.Tensor | None) -> None:
    """Overwrite the channels that do not stay by a constant each, 0 if there are none."""
    removed = (~kept).nonzero().flatten().to(output.device)
    values = output.new_zeros(len(removed)) if constants is None else constants[removed]
    output[:, removed] = values.view(1, -1, *[1] * (output.ndim - 2))


def _response(layer: Reader, read: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    """Return what constant input channels add to a layer's output, shape (out channels,).

    Args:
        layer: of one group.
        read: its input, shape (B, C, …).
        removed: which of the input's channels are the constant ones, shape (C,).
    """
    removed = removed.to(read.device)
    return summed_over_kernel(outputs_first(layer)[:, removed], layer) @ _constants(read[:, removed])


def _constants(read: torch.Tensor) -> torch.Tensor:
    """Return the value of constant channels, shape (C,): their median away from the borders, where padding changes it.

    Args:
        read: shape (B, C) or (B, C, H, W).
    """
    for dimension, size in list(enumerate(read.shape))[2:]:
        read = read.narrow(dimension, size // 4, size - 2 * (size // 4))
    return read.transpose(0, 1).flatten(1).median(dim=1).values
