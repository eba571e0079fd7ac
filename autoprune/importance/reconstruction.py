"""Weights that make up for removed channels: every layer is solved to give again what the dense network gave."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
from torch import nn

from autoprune.graph import ChannelGraph, Layer, LayerKind
from autoprune.importance._base import evaluating
from autoprune.importance.sampling import Places, Reader, watched
from autoprune.surgery import Keep

POINTS = 128
"""Feature points per image: a 3×3 convolution of 64 channels has 576 weights per output."""

RIDGE = 1e-2
"""Pull towards the weights as they are, as a share of the mean square of what the layer reads."""


def reconstruct(
    module: nn.Module, dense: nn.Module, graph: ChannelGraph, keep: Keep, inputs: torch.Tensor, *, seed: int = 0
) -> tuple[str, ...]:
    """Solve every convolution and linear layer for the dense network's outputs, one after the other in forward order.

    Minimises ‖Z − Ẑ‖² over a layer's weights, Z the dense layer's output at sampled feature points and Ẑ that of the
    pruned one, which reads what the layers before it give by then (He et al., "Channel Pruning for Accelerating Very
    Deep Neural Networks", ICCV 2017, equations 4 and 5). Fewer points than weights, or channels that say the same,
    would leave it without one answer; the ridge takes that nearest to the weights as they are. A layer whose weights
    are not trained (``requires_grad``) stays as it is, and so do biases and batch norms.

    Args:
        module: what surgery made of the dense network, batch norm not yet recalibrated; changed in place, left in eval
            mode.
        dense: the dense network; not modified.
        graph: its channel groups.
        keep: which of its channels stay, shape (channels,).
        inputs: images, shape (B, C, H, W).
        seed: of the feature points.

    Returns:
        The layers whose least squares had more than one answer, so that the ridge chose it.
    """
    layers = {layer.name: layer for layer in graph.layers if layer.kind in (LayerKind.CONV, LayerKind.LINEAR)}
    names = [name for name in layers if next(dense.get_submodule(name).parameters()).requires_grad]
    places = Places(seed=seed, points=POINTS)
    wanted: dict[str, torch.Tensor] = {}
    undetermined: list[str] = []

    def note(name: str, layer: Reader, read: torch.Tensor, given: torch.Tensor) -> None:
        wanted[name] = places.values(layer, read, given)[:, _kept(graph, layers[name], keep)]

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def solved(layer: nn.Module, read: tuple[torch.Tensor, ...]) -> None:
            assert isinstance(layer, Reader)
            if name not in wanted:
                return  # a layer that runs twice is solved for what it reads first
            if not _solve(layer, places.patches(layer, read[0]), wanted.pop(name)):
                undetermined.append(name)

        return module.get_submodule(name).register_forward_pre_hook(solved)

    with evaluating(dense), watched(dense, names, note):
        dense(inputs)
    module.eval()
    with torch.no_grad(), ExitStack() as hooks:
        for name in names:
            hooks.enter_context(hook(name))
        module(inputs)
    return tuple(undetermined)


def _kept(graph: ChannelGraph, layer: Layer, keep: Keep) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(keep[graph.axes[layer.out_axis]]))


def _solve(layer: Reader, read: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Move a layer's weights to the least squares solution.

    Args:
        layer: changed in place.
        read: what it reads, shape (n, channels, kernel positions).
        wanted: what it should give, shape (n, out channels).

    Returns:
        Whether there is one solution without the ridge.
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    target = wanted.double() if layer.bias is None else wanted.double() - layer.bias.double()
    weights, parts = layer.weight.flatten(1).double(), read.double().chunk(groups, dim=1)
    found, determined = [], True
    for rows, part, aim in zip(weights.chunk(groups), parts, target.chunk(groups, dim=1), strict=True):
        points = part.flatten(1)
        inner = points.T @ points
        determined = determined and _regular(inner)
        ridge = RIDGE * float(inner.diagonal().mean()) + torch.finfo(inner.dtype).tiny
        inner.diagonal().add_(ridge)
        step = torch.cholesky_solve(points.T @ (aim - points @ rows.T), torch.linalg.cholesky(inner))
        found.append(rows + step.T)
    layer.weight.copy_(torch.cat(found).reshape(layer.weight.shape))
    return determined


def _regular(inner: torch.Tensor) -> bool:
    """Return whether a Gram matrix, shape (n, n), has full rank, as far as its rounding can tell.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 10.3 (Cholesky of semidefinite
    matrices: a pivot of the size of the rounding ends it).
    """
    factor, failed = torch.linalg.cholesky_ex(inner)
    smallest = len(inner) * torch.finfo(inner.dtype).eps * float(inner.diagonal().max())
    return not failed and float(factor.diagonal().square().min()) > smallest
