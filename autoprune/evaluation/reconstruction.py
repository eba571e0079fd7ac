"""Solve every layer of a pruned network by least squares for the outputs of the dense network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Mask
from autoprune.statistics.layers import Reader, activation_hooks, evaluating, input_of, mixing_layers, norms_behind
from autoprune.statistics.sampling import SampledPositions
from autoprune.structure.graph import ChannelGraph, Layer, LayerKind

POINTS = 128
"""Feature points per image: a 3×3 convolution of 64 channels has 576 weights per output."""

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, math.inf)
"""Pulls towards the weights as they are that are tried, as shares of the mean variance of what the layer reads."""

_ROUNDING = 1e-12
"""Share of the mean square of what a layer reads that may be rounding: constants must not seem to vary."""

HELD_BACK = 1 / 3
"""Share of the images on which a layer's ridge is chosen; of one image, of its positions."""

_SOLVED = (LayerKind.CONV, LayerKind.LINEAR)
_TORCHS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def reconstruct(
    module: nn.Module,
    dense: nn.Module,
    graph: ChannelGraph,
    keep: Mask,
    inputs: torch.Tensor,
    *,
    trained: nn.Module | None = None,
) -> None:
    """Solve every convolution and linear layer for the dense network's outputs, one after the other in forward order.

    Minimises ‖Z − Ẑ‖² over a layer's weights, Z the dense layer's output at sampled feature points and Ẑ that of the
    pruned one, which reads what the layers before it give by then (He et al., "Channel Pruning for Accelerating Very
    Deep Neural Networks", ICCV 2017, equations 4 and 5). Means are left out of the squares and go to the bias, or to
    the running mean of the batch norm behind the layer, whose statistics otherwise stay the dense network's; if there
    is neither, they stay in the squares.

    A ridge pulls towards the weights as they are, compensated ones for example. It is as strong as predicts the outputs
    on held-back images best, or at held-back positions if there is one image, up to leaving the weights alone.

    A layer that runs several times is solved for all that it reads, and what reads it in a pass of its own. A layer
    stays as it is if another module shares its weight, if its weights are not trained (``requires_grad``), if its class
    computes more than torch's (pads, standardises its weights, has its activation inside), or if it reads at one
    position only, as behind a mean over a single image.

    Args:
        module: what surgery made of the dense network, with the dense network's batch norm statistics; changed in
            place, left in eval mode.
        dense: the dense network; not modified.
        graph: its channel groups.
        keep: which of its channels stay, shape (channels,).
        inputs: images, shape (B, C, H, W).
        trained: the same network, whose weights tell by ``requires_grad`` which are trained; the dense one if None.
    """
    layers = {name: layer for name, layer in mixing_layers(dense, graph).items() if layer.kind in _SOLVED}
    trained = trained or dense
    names = [
        name
        for name in layers
        if next(trained.get_submodule(name).parameters()).requires_grad and _is_torchs(dense.get_submodule(name))
    ]
    places = SampledPositions(seed=0, points=POINTS)
    wanted: dict[str, list[torch.Tensor]] = {}
    reads: dict[str, list[torch.Tensor]] = {}

    def note(name: str, layer: Reader, read: torch.Tensor, given: torch.Tensor) -> None:
        values = places.values(layer, read, given)[:, _kept(graph, layers[name], keep)]
        wanted.setdefault(name, []).append(values)

    with evaluating(dense), activation_hooks(dense, names, note), norms_behind(dense, names) as norms:
        dense(inputs)

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def solved(layer: nn.Module, args: tuple[torch.Tensor, ...], kwargs: Any) -> None:
            if name not in wanted or (reads and name not in reads):  # while one is read, no other is solved
                return
            assert isinstance(layer, Reader)
            reads.setdefault(name, []).append(places.patches(layer, input_of(args, kwargs)))
            if len(reads[name]) < len(wanted[name]):
                return
            points = _Points.of(reads[name], wanted.pop(name), images=len(inputs))
            if len(reads[name]) == 1:  # else what it gave before reached others already
                reads.clear()
            if points.solved_for == len(points.read):  # a single one
                return
            bias = _solve(layer, points, intercept=layer.bias is not None or name in norms)
            if layer.bias is not None:
                layer.bias.copy_(bias)
                return
            for path in norms.get(name, ()):
                channels = _kept(graph, layers[name], keep)
                _set_mean(module.get_submodule(path), dense.get_submodule(path), channels, bias)

        return module.get_submodule(name).register_forward_pre_hook(solved, with_kwargs=True)

    module.eval()
    with torch.no_grad(), ExitStack() as hooks:
        for name in names:
            hooks.enter_context(hook(name))
        left = -1
        while wanted and len(wanted) != left:
            left = len(wanted)
            module(inputs)
            reads.clear()


def _is_torchs(layer: nn.Module) -> bool:
    """Return whether a layer computes what torch's convolution or linear layer does, and nothing else."""
    return any(type(layer).forward is kind.forward for kind in _TORCHS)


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
        read: shape (points, channels, kernel positions).
        wanted: shape (points, out channels).
        solved_for: the weights are solved for this number of points, and the ridge is chosen on those behind them.
    """

    read: torch.Tensor
    wanted: torch.Tensor
    solved_for: int

    @classmethod
    def of(cls, reads: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], *, images: int) -> _Points:
        """Return the points of all runs of a layer; in each run those of one image follow each other."""
        share = round(images * HELD_BACK) / images or HELD_BACK
        (read, cut), (given, _) = (_parted(runs, share) for runs in (reads, wanted))
        return cls(read, given, cut)


def _parted(runs: Sequence[torch.Tensor], share: float) -> tuple[torch.Tensor, int]:
    """Return all points with those of all runs to hold back last, and the number of the others."""
    parts = [run.tensor_split([len(run) - round(share * len(run))]) for run in runs]
    first, last = (torch.cat(part) for part in zip(*parts, strict=True))
    return torch.cat([first, last]), len(first)


def _solve(layer: Reader, points: _Points, *, intercept: bool) -> torch.Tensor:
    """Move a layer's weights to the ridge solution; return the bias that goes with them, shape (out channels,).

    Without an intercept the bias is zero.
    """
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    weights = layer.weight.flatten(1).double().chunk(groups)
    reads = points.read.double().chunk(groups, dim=1)
    aims = points.wanted.double().chunk(groups, dim=1)
    problems = [
        _Problem.of(weight, read.flatten(1), aim, points.solved_for, intercept=intercept)
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
    def of(cls, read: torch.Tensor, wanted: torch.Tensor, *, intercept: bool) -> _Sums:
        first = read.sum(0) * intercept, wanted.sum(0) * intercept  # as if the means were zero
        return cls(len(read), *first, read.T @ read, read.T @ wanted, wanted.square().sum())

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def solved(self, weight: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights, shape (out channels, n), and bias, shape (out channels,), nearest to a weight by a ridge."""
        centre, middle = self.read / self.count, self.wanted / self.count
        if math.isfinite(ridge):
            inner = self.inner - torch.outer(self.read, centre)
            step = self.cross - torch.outer(self.read, middle) - inner @ weight.T
            floor = _ROUNDING * float(self.inner.diagonal().mean()) + torch.finfo(inner.dtype).tiny
            inner.diagonal().add_(ridge * float(inner.diagonal().mean()) + floor)
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
        cls, weight: torch.Tensor, read: torch.Tensor, wanted: torch.Tensor, cut: int, *, intercept: bool
    ) -> _Problem:
        centre, middle = read.mean(0) * intercept, wanted.mean(0) * intercept
        read, wanted = read - centre, wanted - middle
        parts = (slice(None, cut), slice(cut, None))
        solved_for, held_back = (_Sums.of(read[part], wanted[part], intercept=intercept) for part in parts)
        return cls(weight, centre, middle, solved_for, held_back, solved_for + held_back)

    def error(self, ridge: float) -> float:
        """Return the squared error on the points held back."""
        return self.held_back.error(*self.solved_for.solved(self.weight, ridge))

    def solution(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights and bias for all points."""
        weight, bias = self.every.solved(self.weight, ridge)
        return weight, bias + self.middle - weight @ self.centre
