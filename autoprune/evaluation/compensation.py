"""Closed-form compensation: weights that make up for removed channels, from the dense network's channel covariances.

Source: Kim et al., "Neuron Merging: Compensating for Pruned Neurons", NeurIPS 2020, section 3, with the least squares
solution in place of the single most similar neuron; He et al., "Channel Pruning for Accelerating Very Deep Neural
Networks", ICCV 2017, is the sequential form (`reconstruction`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from autoprune.statistics.layers import Reader, outputs_first, shift_output, summed_over_kernel
from autoprune.statistics.moments import Moments, regression
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import ChannelMask


def compensate(module: nn.Module, dense: nn.Module, graph: ChannelGraph, keep: ChannelMask, moments: Moments) -> None:
    """Add to the weights of every layer what best predicts, from the kept channels, what the removed ones gave it.

    ``W ← W_K + W_R · A`` with ``A = Σ_RK (Σ_KK + λI)⁻¹``, the same A at every kernel position; the means that are left
    go to the bias, or off the running mean of the batch norm behind the layer.

    Args:
        module: what surgery made of the dense network; changed in place.
        dense: the dense network; not modified.
        graph: its channel groups.
        keep: which of its channels stay, shape (channels,).
        moments: of the dense network.
    """
    layers = {layer.name: layer for layer in graph.layers}
    with torch.no_grad():
        for name in moments.mean:
            layer = layers[name]
            kept, staying = keep[graph.axes[layer.in_axis]], keep[graph.axes[layer.out_axis]]
            if not kept.all():
                _compensate_layer(module, dense, name, kept, staying, moments)


def _compensate_layer(
    module: nn.Module, dense: nn.Module, name: str, kept: ChannelMask, staying: ChannelMask, moments: Moments
) -> None:
    source, target = dense.get_submodule(name), module.get_submodule(name)
    assert isinstance(source, Reader)
    assert isinstance(target, Reader)
    mean, covariance = moments.mean[name], moments.covariance[name]
    stays, goes = (torch.from_numpy(np.flatnonzero(mask)).to(mean.device) for mask in (kept, ~kept))
    coefficients, shift = regression(mean, covariance, stays, goes)
    outputs = torch.from_numpy(np.flatnonzero(staying)).to(mean.device)
    removed = outputs_first(source)[outputs][:, goes].to(coefficients.dtype)
    added = torch.einsum("or...,rk->ok...", removed, coefficients)
    weight = outputs_first(target)  # a view
    weight.add_(added.to(weight.dtype))
    constants = summed_over_kernel(source)[outputs][:, goes].to(shift.dtype) @ shift
    shift_output(module, name, moments.norm.get(name), constants)
