"""Compute the costs that follow from the allocation alone: FLOPs, parameters, checkpoint size, channels.

Each is exact and in closed form, a quadratic function of the kept counts at most: a layer's cost is a product of two
widths at most, and widths are affine in the counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from autoprune.arrays import Array, Counts
from autoprune.errors import ModelError
from autoprune.statistics.layers import evaluating
from autoprune.structure.constraint import Cost
from autoprune.structure.graph import ChannelGraph, Layer, LayerKind
from autoprune.structure.slicing import state_tensors
from autoprune.structure.space import Space


class WidthPolynomial:
    """A sum of terms coefficient, coefficient × width or coefficient × width × width, over axes of the graph.

    All coefficients must be at least 0, so that the sum never falls when a unit keeps more. Sums of whole numbers
    below 2**53 are exact.
    """

    def __init__(self, space: Space) -> None:
        self._constants = space.axis_widths(np.zeros_like(space.dense))
        self._slopes = space.axis_widths(np.eye(len(space), dtype=np.int64)).T - self._constants[:, None]
        self._quadratic: Array = np.zeros((len(space), len(space)))
        self._linear: Array = np.zeros(len(space))
        self._constant = 0.0

    def add(self, coefficient: float, *axes: int) -> None:
        """Add coefficient × the widths of up to two axes."""
        if not axes:
            self._constant += coefficient
        elif len(axes) == 1:
            self._linear += coefficient * self._slopes[axes[0]]
            self._constant += coefficient * self._constants[axes[0]]
        else:
            (one, two), (base, other) = (self._slopes[list(axes)], self._constants[list(axes)])
            self._quadratic += coefficient * np.outer(one, two)
            self._linear += coefficient * (base * two + other * one)
            self._constant += coefficient * base * other

    def __call__(self, counts: Counts) -> Array:
        """Return the value: shape (units,) → (), (candidates, units) → (candidates,)."""
        values = counts.astype(np.float64)
        return np.asarray(((values @ self._quadratic + self._linear) * values).sum(axis=-1) + self._constant)


Shapes = Mapping[str, Sequence[int]]
"""Tensor name → its shape in the dense network."""

_NORM_MACS = 4  # subtract, divide, scale, shift: as thop counts an affine batch norm in eval mode
_FREE = (LayerKind.POOL, LayerKind.UPSAMPLE, LayerKind.ELEMENTWISE)
_COUNTED_BY_TORCH = frozenset(
    (
        *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    )
)


@dataclass(frozen=True)
class CostSubject:
    """What costs are made of: a dense network.

    Attributes:
        module: the network.
        graph: its channel groups.
        space: its allocations.
        example: one input.
        checkpoint_bytes: of the network's checkpoint.
        bytes_per_number: in a checkpoint.
    """

    module: nn.Module
    graph: ChannelGraph
    space: Space
    example: torch.Tensor
    checkpoint_bytes: int
    bytes_per_number: int


class FlopsCost(Cost):
    """FLOPs of one image, 2 × multiply-accumulates, as Ultralytics' ``model.info()`` prints them.

    Counted as its ``thop`` does for the unfused network: convolutions and linear layers without bias, batch (and
    instance) norm as 4 operations per element, and matrix products of attention. ``uncounted`` returns the rest.

    Args:
        space: the space of allocations; the graph's layers carry the image size.
        fixed: FLOPs that no layer describes and no allocation changes, see ``undescribed_flops``.
        idle: layers that do not count, see ``idle_layers``.
    """

    metric = "flops"
    unit = "FLOPs"

    def __init__(self, space: Space, *, fixed: float = 0.0, idle: Collection[str] = ()) -> None:
        self._polynomial = WidthPolynomial(space)
        self._polynomial.add(fixed)
        for layer in space.graph.layers:
            if layer.name not in idle:
                coefficient, axes = layer_macs(layer)
                self._polynomial.add(2 * coefficient, *axes)

    @classmethod
    def of(cls, subject: CostSubject) -> FlopsCost:
        """Make it for a network."""
        network = subject.module, subject.graph, subject.example
        return cls(subject.space, fixed=undescribed_flops(*network), idle=idle_layers(*network))

    def __call__(self, counts: Counts) -> Array:
        """Return FLOPs; see ``Cost``."""
        return self._polynomial(counts)


class ParamsCost(Cost):
    """Number of parameters, exactly.

    Args:
        space: the space of allocations.
        shapes: shapes of the dense network's parameters, see ``parameter_shapes``.
    """

    metric = "params"
    unit = "parameters"

    def __init__(self, space: Space, shapes: Shapes) -> None:
        self._polynomial = elements(space, shapes)

    @classmethod
    def of(cls, subject: CostSubject) -> ParamsCost:
        """Make it for a network."""
        return cls(subject.space, parameter_shapes(subject.module))

    def __call__(self, counts: Counts) -> Array:
        """Return parameters; see ``Cost``."""
        return self._polynomial(counts)


class SizeCost(Cost):
    """Bytes of the saved checkpoint: what its structure takes, plus a fixed number of bytes per element.

    Args:
        space: the space of allocations.
        shapes: shapes of the dense network's parameters and buffers, see ``state_shapes``.
        dense_bytes: measured size of the dense network's checkpoint; it calibrates the structure's share.
        bytes_per_element: 2, since Ultralytics' checkpoints are half precision.
    """

    metric = "size"
    unit = "bytes"

    def __init__(self, space: Space, shapes: Shapes, *, dense_bytes: int, bytes_per_element: int = 2) -> None:
        self._elements = elements(space, shapes)
        self._bytes = bytes_per_element
        self._overhead = dense_bytes - bytes_per_element * float(self._elements(space.dense))
        if self._overhead < 0:
            raise ModelError(
                f"A checkpoint must hold every element in {bytes_per_element} bytes, "
                f"but the dense one has only {dense_bytes} bytes"
            )

    @classmethod
    def of(cls, subject: CostSubject) -> SizeCost:
        """Make it for a network."""
        return cls(
            subject.space,
            state_shapes(subject.module),
            dense_bytes=subject.checkpoint_bytes,
            bytes_per_element=subject.bytes_per_number,
        )

    def __call__(self, counts: Counts) -> Array:
        """Return bytes; see ``Cost``."""
        return np.asarray(self._elements(counts) * self._bytes + self._overhead)


class ChannelsCost(Cost):
    """Number of channels kept, of those that can be pruned: what network slimming prunes a share of.

    Liu et al., "Learning efficient convolutional networks through network slimming", ICCV 2017, section 3.3. A unit of
    several channel groups counts for each of them; pinned channels do not count.

    Args:
        space: the space of allocations.
    """

    metric = "channels"
    unit = "channels"

    def __init__(self, space: Space) -> None:
        groups = space.graph.groups
        self._groups: Array = np.array(
            [sum(groups[index].size for index in unit.groups) / unit.width for unit in space.units], dtype=np.float64
        )

    @classmethod
    def of(cls, subject: CostSubject) -> ChannelsCost:
        """Make it for a network."""
        return cls(subject.space)

    def __call__(self, counts: Counts) -> Array:
        """Return channels; see ``Cost``."""
        return np.asarray(counts @ self._groups)


def layer_macs(layer: Layer) -> tuple[float, tuple[int, ...]]:
    """Return a layer's multiply-accumulates for one image, as coefficient and the axes whose widths multiply it."""
    area_in, area_out = (layer.images * height * width for height, width in (layer.in_hw, layer.out_hw))
    window = layer.kernel[0] * layer.kernel[1]
    if layer.kind is LayerKind.NORM:
        return float(_NORM_MACS * area_in), (layer.in_axis,)
    if layer.kind in _FREE:
        return 0.0, ()
    if layer.kind is LayerKind.DEPTHWISE:
        return float(window * area_out), (layer.out_axis,)
    area = area_in if layer.kind is LayerKind.TRANSPOSED else area_out
    return window * area / layer.groups, (layer.in_axis, layer.out_axis)


def undescribed_flops(module: nn.Module, graph: ChannelGraph, example: torch.Tensor) -> float:
    """Return the FLOPs per image that no layer of the graph describes and no allocation changes.

    Those are matrix products (attention, linear layers on tokens, weights of one's own, whose channels are pinned), and
    layers that run only in eval mode, such as the decoding of a detector's boxes.

    Args:
        module: the dense network; it is not changed.
        graph: its channel groups.
        example: an input of shape (B, C, H, W).
    """
    with evaluating(module), _slow_attention(), FlopCounterMode(display=False) as counter:
        module(example)
    counts = counter.get_flop_counts()
    total = float(sum(counts["Global"].values())) / len(example)
    for name in {layer.name for layer in graph.layers}:
        path = f"{type(module).__name__}.{name}".rstrip(".")
        if isinstance(module.get_submodule(name), (nn.modules.conv._ConvNd, nn.Linear)):
            total -= sum(counts.get(path, {}).values()) / len(example)
        elif path in counts:  # what runs a convolution or a product with a weight of its own
            total -= sum(2 * _dense_macs(graph, layer) for layer in graph.layers if layer.name == name)
    return total


def idle_layers(module: nn.Module, graph: ChannelGraph, example: torch.Tensor) -> set[str]:
    """Return the layers that run while a network trains and not in eval mode, such as those of an auxiliary head.

    Args:
        module: the dense network; it is not changed.
        graph: its channel groups.
        example: an input of shape (B, C, H, W).
    """
    with evaluating(module), _Used() as used:
        module(example)
    own = {layer.name: state_tensors(module.get_submodule(layer.name)).values() for layer in graph.layers}
    return {name for name, tensors in own.items() if tensors and used.isdisjoint(map(id, tensors))}


class _Used(TorchFunctionMode):
    """Notes the tensors that are computed with, by their identities: the set that its context gives."""

    def __enter__(self) -> set[int]:
        self._seen = set[int]()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self._seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._seen.update(map(id, tree_leaves((args, kwargs))))
        return func(*args, **(kwargs or {}))


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Keep torch from fusing attention with its linear layers, which its counter does not see then."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _dense_macs(graph: ChannelGraph, layer: Layer) -> float:
    """Return a layer's multiply-accumulates in the dense network, but for those of batch norm."""
    macs, axes = layer_macs(layer)
    return 0.0 if layer.kind is LayerKind.NORM else macs * math.prod(len(graph.axes[axis]) for axis in axes)


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's parameters, shared ones once."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def state_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that a network's checkpoint holds: parameters and buffers, shared ones once."""
    buffers = {name: tuple(buffer.shape) for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    return parameter_shapes(module) | buffers


def uncounted(graph: ChannelGraph) -> dict[str, int]:
    """Return the operations that FLOPs do not include, with how often each occurs."""
    counts = Counter({name: count for name, count in graph.uncounted.items() if name not in _COUNTED_BY_TORCH})
    counts.update(layer.kind.value for layer in graph.layers if layer.kind in _FREE)
    return dict(counts)


def elements(space: Space, shapes: Shapes) -> WidthPolynomial:
    """Return the number of elements of all tensors as a function of the allocation."""
    polynomial = WidthPolynomial(space)
    for name, shape in shapes.items():
        axes = space.graph.tensors.get(name, ())
        if len(axes) > 2:
            raise ModelError(f"A tensor may be pruned along two dimensions at most, {name} along {len(axes)}")
        indexed = {dimension for dimension, _ in axes}
        fixed = np.prod([size for dimension, size in enumerate(shape) if dimension not in indexed])
        polynomial.add(float(fixed), *(axis for _, axis in axes))
    return polynomial
