"""Solve every layer of a pruned network by least squares for the outputs of the dense network."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Mask
from autoprune.statistics.layers import evaluating, norms_behind
from autoprune.statistics.sampling import Reader, SampledPositions, activation_hooks
from autoprune.structure.graph import ChannelGraph, Layer, LayerKind

POINTS = 128
"""Feature points per image: a 3×3 convolution of 64 channels has 576 weights per output."""

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, math.inf)
"""Pulls towards the weights as they are that are tried, as shares of the mean variance of what the layer reads."""

HELD_BACK = 1 / 3
"""Share of the images on which a layer's ridge is chosen."""


def reconstruct(
    module: nn.Module,
    dense: nn.Module,
    graph: ChannelGraph,
    keep: Mask,
    inputs: torch.Tensor,
    *,
    trained: nn.Module | None = None,
    seed: int = 0,
) -> None:
    """Solve every convolution and linear layer for the dense network's outputs, one after the other in forward order.

    Minimises ‖Z − Ẑ‖² over a layer's weights, Z the dense layer's output at sampled feature points and Ẑ that of the
    pruned one, which reads what the layers before it give by then (He et al., "Channel Pruning for Accelerating Very
    Deep Neural Networks", ICCV 2017, equations 4 and 5). Means are left out of the squares and go to the bias, or to
    the running mean of the batch norm behind the layer, whose statistics otherwise stay the dense network's.

    A ridge pulls towards the weights as they are, compensated ones for example. It is as strong as predicts the outputs
    on held-back images best, up to leaving the weights alone; fewer than two images are both solved for and predicted.

    A layer whose weights are not trained (``requires_grad``) stays as it is.

    Args:
        module: what surgery made of the dense network, with the dense network's batch norm statistics; changed in
            place, left in eval mode.
        dense: the dense network; not modified.
        graph: its channel groups.
        keep: which of its channels stay, shape (channels,).
        inputs: images, shape (B, C, H, W).
        trained: the same network, whose weights tell by ``requires_grad`` which are trained; the dense one if None.
        seed: of the feature points.
    """
    layers = {layer.name: layer for layer in graph.layers if layer.kind in (LayerKind.CONV, LayerKind.LINEAR)}
    trained = trained or dense
    names = [name for name in layers if next(trained.get_submodule(name).parameters()).requires_grad]
    places = SampledPositions(seed=seed, points=POINTS)
    wanted: dict[str, torch.Tensor] = {}

    def note(name: str, layer: Reader, read: torch.Tensor, given: torch.Tensor) -> None:
        if name not in wanted:  # a layer that runs twice is solved for what it reads first
            wanted[name] = places.values(layer, read, given)[:, _kept(graph, layers[name], keep)]

    with evaluating(dense), activation_hooks(dense, names, note), norms_behind(dense, names) as norms:
        dense(inputs)

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def solved(layer: nn.Module, read: tuple[torch.Tensor, ...]) -> None:
            if name not in wanted:
                return
            assert isinstance(layer, Reader)
            points = _Points(places.patches(layer, read[0]), wanted.pop(name), images=len(inputs))
            bias = _solve(layer, points)
            if layer.bias is not None:
                layer.bias.copy_(bias)
            elif name in norms:
                channels = _kept(graph, layers[name], keep)
                _set_mean(module.get_submodule(norms[name]), dense.get_submodule(norms[name]), channels, bias)

        return module.get_submodule(name).register_forward_pre_hook(solved)

    module.eval()
    with torch.no_grad(), ExitStack() as hooks:
        for name in names:
            hooks.enter_context(hook(name))
        module(inputs)


def _set_mean(norm: nn.Module, dense: nn.Module, channels: torch.Tensor, bias: torch.Tensor) -> None:
    """Make up in a batch norm for the bias that the layer before it does not have."""
    mean, before = norm.running_mean, dense.running_mean
    assert isinstance(mean, torch.Tensor)
    assert isinstance(before, torch.Tensor)
    mean.copy_(before[channels.to(mean.device)] - bias)


def _kept(graph: ChannelGraph, layer: Layer, keep: Mask) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(keep[graph.axes[layer.out_axis]]))


@dataclass(frozen=True)
class _Points:
    """What a layer reads at sampled points and should give there.

    Attributes:
        read: shape (images × points, channels, kernel positions).
        wanted: shape (images × points, out channels).
        images: how many; the points of one image follow each other.
    """

    read: torch.Tensor
    wanted: torch.Tensor
    images: int

    def split(self) -> tuple[slice, slice] | None:
        """Return the points to solve for, and those of held-back images; None if the images are too few for that."""
        each = len(self.read) // self.images
        held = round(self.images * HELD_BACK)
        cut = each * (self.images - held)
        return (slice(0, cut), slice(cut, None)) if held else None


def _solve(layer: Reader, points: _Points) -> torch.Tensor:
    """Move a layer's weights to the ridge solution; return the bias that goes with them, shape (out channels,)."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weights = layer.weight.flatten(1).double().chunk(groups)
    reads = points.read.double().chunk(groups, dim=1)
    aims = points.wanted.double().chunk(groups, dim=1)
    problems = [
        _Problem.of(weight, read.flatten(1), aim, points.split())
        for weight, read, aim in zip(weights, reads, aims, strict=True)
    ]
    errors = [sum(problem.error(ridge) for problem in problems) for ridge in RIDGES]
    found, biases = zip(*(problem.solution(RIDGES[int(np.argmin(errors))]) for problem in problems), strict=True)
    layer.weight.copy_(torch.cat(found).reshape(layer.weight.shape))
    return torch.cat(biases)


@dataclass(frozen=True)
class _Sums:
    """Sums over points: all that least squares need of them, so that many ridges cost little more than one.

    Attributes:
        count: of the points.
        read: of what is read, shape (n,).
        wanted: of what should be given, shape (out channels,).
        inner: of products of what is read, shape (n, n).
        cross: of products of both, shape (n, out channels).
        square: of the squares of what should be given.
    """

    count: int
    read: torch.Tensor
    wanted: torch.Tensor
    inner: torch.Tensor
    cross: torch.Tensor
    square: torch.Tensor

    @classmethod
    def of(cls, read: torch.Tensor, wanted: torch.Tensor) -> _Sums:
        return cls(len(read), read.sum(0), wanted.sum(0), read.T @ read, read.T @ wanted, wanted.square().sum())

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def solved(self, weight: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights, shape (out channels, n), and bias, shape (out channels,), nearest to a weight by a ridge."""
        centre, middle = self.read / self.count, self.wanted / self.count
        if math.isfinite(ridge):
            inner = self.inner - torch.outer(self.read, centre)
            step = self.cross - torch.outer(self.read, middle) - inner @ weight.T
            inner.diagonal().add_(ridge * float(inner.diagonal().mean()) + torch.finfo(inner.dtype).tiny)
            weight = weight + torch.cholesky_solve(step, torch.linalg.cholesky(inner)).T
        return weight, middle - weight @ centre

    def error(self, weight: torch.Tensor, bias: torch.Tensor) -> float:
        """Return the sum of squares that weights and bias leave."""
        given = (weight @ self.inner * weight).sum() + 2 * bias @ weight @ self.read + self.count * bias @ bias
        return float(self.square - 2 * ((weight.T * self.cross).sum() + bias @ self.wanted) + given)


@dataclass(frozen=True)
class _Problem:
    """Least squares of one group of a layer, about the means of all points: near zero squares lose no digits.

    Attributes:
        weight: as it is, shape (out channels, n).
        centre: mean of what is read, shape (n,).
        middle: mean of what should be given, shape (out channels,).
        solved_for: the points that are solved for.
        held_back: the points that the ridge is chosen on.
        every: all points.
    """

    weight: torch.Tensor
    centre: torch.Tensor
    middle: torch.Tensor
    solved_for: _Sums
    held_back: _Sums
    every: _Sums

    @classmethod
    def of(
        cls, weight: torch.Tensor, read: torch.Tensor, wanted: torch.Tensor, parts: tuple[slice, slice] | None
    ) -> _Problem:
        centre, middle = read.mean(0), wanted.mean(0)
        read, wanted = read - centre, wanted - middle
        if parts is None:
            every = _Sums.of(read, wanted)
            return cls(weight, centre, middle, every, every, every)
        solved_for, held_back = (_Sums.of(read[part], wanted[part]) for part in parts)
        return cls(weight, centre, middle, solved_for, held_back, solved_for + held_back)

    def error(self, ridge: float) -> float:
        """Return the squared error on the points held back."""
        return self.held_back.error(*self.solved_for.solved(self.weight, ridge))

    def solution(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights and bias for all points."""
        weight, bias = self.every.solved(self.weight, ridge)
        return weight, bias + self.middle - weight @ self.centre
