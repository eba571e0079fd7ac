"""One function per ONNX operation, which adds TensorFlow Lite's to a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from autoprune.runtimes.tflite.network import Node, clamp_of
from autoprune.runtimes.tflite.tensors import TO_LAST, Tensors
from autoprune.runtimes.tflite.windows import Untranslatable, average_pool, convolve, deconvolve, max_pool

Translate: TypeAlias = Callable[[Tensors, Node], None]

_LAST = {0: 0, 1: 3, 2: 1, 3: 2}
"""Where the channels-last order has a dimension of ONNX's."""


def _elementwise(kind: str, options: str, tensors: Tensors, node: Node, **values: Any) -> None:
    """Translate an operation on each number, of one tensor or of several that are broadcast."""
    integer = kind in ("ADD", "SUB", "MUL", "LOGISTIC", "RELU", "RELU6") and tensors.are_integers(node)
    integer = integer and not any(
        name in tensors.network.constants and name not in tensors.network.integers for name in node.inputs
    )
    last = tensors.is_last(node.inputs)
    inputs = [tensors.get(name, integer=integer, last=last) for name in node.inputs if name]
    tensors.file.operate(kind, inputs, [tensors.add(node.outputs[0], integer=integer, last=last)], options, **values)


def _leaky_relu(tensors: Tensors, node: Node) -> None:
    _elementwise("LEAKY_RELU", "LeakyRelu", tensors, node, alpha=float(node.attributes.get("alpha", 0.01)))


def _clip(tensors: Tensors, node: Node) -> None:
    """Translate a clamp; ReLU6 is the one that the format has."""
    if clamp_of(tensors.network, node) != "RELU6":
        raise Untranslatable(f" to {[float(tensors.network.constants[name]) for name in node.inputs[1:] if name]}")
    single = Node(node.name, node.kind, node.inputs[:1], node.outputs, node.attributes)
    _elementwise("RELU6", "", tensors, single)


def _concat(tensors: Tensors, node: Node) -> None:
    name = node.outputs[0]
    integer, last = tensors.are_integers(node), tensors.is_last(node.inputs)
    scale = tensors.network.scales.get(name)
    inputs = [tensors.get(one, integer=integer, last=last, scale=scale) for one in node.inputs]
    axis = int(node.attributes["axis"]) % len(tensors.shape(name))
    tensors.file.operate(
        "CONCATENATION",
        inputs,
        [tensors.add(name, integer=integer, last=last)],
        "Concatenation",
        axis=_LAST[axis] if last else axis,
    )


def _slice(tensors: Tensors, node: Node) -> None:
    """Translate a part of a tensor, with a step or without."""
    shape = tensors.shape(node.inputs[0])
    starts, ends, *rest = (tensors.network.constants[name].tolist() for name in node.inputs[1:] if name)
    axes = rest[0] if rest else range(len(shape))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    if min(steps) < 1:
        raise Untranslatable(" backwards")
    parts = [slice(0, size, 1) for size in shape]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        parts[axis] = slice(*slice(start, end, step).indices(shape[axis]))
    _part(tensors, node, node.outputs[0], parts)


def _split(tensors: Tensors, node: Node) -> None:
    """Translate a division into parts as one slice per part."""
    shape = tensors.shape(node.inputs[0])
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    start = 0
    for name in node.outputs:
        end = start + tensors.shape(name)[axis]
        parts = [slice(0, size, 1) for size in shape]
        parts[axis] = slice(start, end, 1)
        _part(tensors, node, name, parts)
        start = end


def _part(tensors: Tensors, node: Node, name: str, parts: list[slice]) -> None:
    """Add a slice of an operation's first input: by axis, its start, end and step."""
    integer, last = tensors.are_integers(node), tensors.is_last(node.inputs[:1])
    source = tensors.get(node.inputs[0], integer=integer, last=last, scale=tensors.network.scales.get(name))
    parts = [parts[axis] for axis in TO_LAST] if last else parts
    begin = tensors.integers(f"{name}/begin", [one.start for one in parts])
    to = [tensors.add(name, integer=integer, last=last)]
    if all(one.step == 1 for one in parts):
        size = tensors.integers(f"{name}/size", [one.stop - one.start for one in parts])
        tensors.file.operate("SLICE", [source, begin, size], to, "Slice")
        return
    end = tensors.integers(f"{name}/end", [one.stop for one in parts])
    step = tensors.integers(f"{name}/step", [one.step for one in parts])
    tensors.file.operate("STRIDED_SLICE", [source, begin, end, step], to, "StridedSlice")


def _reshape(tensors: Tensors, node: Node) -> None:
    """Translate whatever changes a shape and no order: numbers in ONNX's order are needed for it."""
    name = node.outputs[0]
    integer = tensors.are_integers(node)
    shape = tensors.integers(f"{name}/shape", tensors.shape(name))
    source = tensors.get(node.inputs[0], integer=integer, scale=tensors.network.scales.get(name))
    tensors.file.operate("RESHAPE", [source, shape], [tensors.add(name, integer=integer, last=False)], "Reshape")


def _transpose(tensors: Tensors, node: Node) -> None:
    name, source = node.outputs[0], node.inputs[0]
    integer, last = tensors.are_integers(node), tensors.is_last(node.inputs)
    order = node.attributes.get("perm") or range(len(tensors.shape(source)))[::-1]
    order = [_LAST[axis] for axis in order] if last else list(order)
    number = tensors.get(source, integer=integer, last=last, scale=tensors.network.scales.get(name))
    tensors.transposed(number, name, order, tensors.add(name, integer=integer, last=False))


def _softmax(tensors: Tensors, node: Node) -> None:
    """Translate a softmax, which the format has along the last dimension."""
    name, source = node.outputs[0], node.inputs[0]
    rank = len(tensors.shape(source))
    axis = int(node.attributes.get("axis", -1)) % rank
    last = rank == 4 and axis == 1
    if not last and axis != rank - 1:
        raise Untranslatable(f" along dimension {axis}")
    number = tensors.get(source, last=last)
    tensors.file.operate("SOFTMAX", [number], [tensors.add(name, integer=False, last=last)], "Softmax", beta=1.0)


def _matmul(tensors: Tensors, node: Node) -> None:
    inputs = [tensors.get(name) for name in node.inputs]
    to = [tensors.add(node.outputs[0], integer=False, last=False)]
    tensors.file.operate("BATCH_MATMUL", inputs, to, "BatchMatMul")


def _gemm(tensors: Tensors, node: Node) -> None:
    """Translate a linear layer."""
    constants, attributes = tensors.network.constants, node.attributes
    if attributes.get("transA") or any(attributes.get(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        raise Untranslatable(" with factors")
    weight = constants.get(node.inputs[1])
    if weight is None:
        raise Untranslatable(" of two results")
    weight = weight if attributes.get("transB") else weight.T
    inputs = [tensors.get(node.inputs[0]), tensors.file.constant(node.inputs[1], np.ascontiguousarray(weight))]
    inputs += [tensors.get(node.inputs[2])] if len(node.inputs) > 2 else []
    to = [tensors.add(node.outputs[0], integer=False, last=False)]
    tensors.file.operate("FULLY_CONNECTED", inputs, to, "FullyConnected")


def _reduce(kind: str, tensors: Tensors, node: Node) -> None:
    """Translate a mean, sum or maximum over dimensions; ONNX names these by an attribute or by an input."""
    name, rank = node.outputs[0], len(tensors.shape(node.inputs[0]))
    given = node.attributes.get("axes")
    if len(node.inputs) > 1:
        given = tensors.network.constants[node.inputs[1]].tolist()
    if node.kind == "GlobalAveragePool":
        given = range(2, rank)
    axes = [int(axis) % rank for axis in given or range(rank)]
    keep = bool(node.attributes.get("keepdims", 1))
    last = keep and tensors.is_last(node.inputs[:1])
    numbers = tensors.integers(f"{name}/axes", [_LAST[axis] for axis in axes] if last else axes)
    inputs = [tensors.get(node.inputs[0], last=last), numbers]
    to = [tensors.add(name, integer=False, last=last)]
    tensors.file.operate(kind, inputs, to, "Reducer", keepDims=keep)


def _resize(tensors: Tensors, node: Node) -> None:
    """Translate an enlargement by the nearest pixel or by bilinear interpolation."""
    name, values = node.outputs[0], node.attributes
    ways = tuple(bytes(values.get(key, other)).decode() for key, other in _RESIZE_DEFAULTS.items())
    if ways not in _RESIZES or tensors.shape(name)[:2] != tensors.shape(node.inputs[0])[:2]:
        raise Untranslatable(f" ({', '.join(ways)})")
    single = Node(node.name, node.kind, node.inputs[:1], node.outputs, values)
    integer = tensors.are_integers(single)
    inputs = [
        tensors.get(node.inputs[0], integer=integer, last=True, scale=tensors.network.scales.get(name)),
        tensors.integers(f"{name}/size", tensors.shape(name)[2:]),
    ]
    kind, options, corners, half = _RESIZES[ways]
    to = [tensors.add(name, integer=integer, last=True)]
    tensors.file.operate(kind, inputs, to, options, alignCorners=corners, halfPixelCenters=half)


_RESIZE_DEFAULTS = {
    "mode": b"nearest",
    "coordinate_transformation_mode": b"half_pixel",
    "nearest_mode": b"round_prefer_floor",
}
_NEAREST, _BILINEAR = ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor"), ("RESIZE_BILINEAR", "ResizeBilinear")
_RESIZES = {
    ("nearest", "asymmetric", "floor"): (*_NEAREST, False, False),
    ("linear", "half_pixel", "floor"): (*_BILINEAR, False, True),
    ("linear", "pytorch_half_pixel", "floor"): (*_BILINEAR, False, True),
    ("linear", "align_corners", "floor"): (*_BILINEAR, True, False),
}
"""By ONNX's mode, coordinates and rounding."""


def _alias(tensors: Tensors, node: Node) -> None:
    """Translate an operation that returns its input."""
    tensors.network.restored[node.outputs[0]] = tensors.source(node.inputs[0])


OPERATIONS: Mapping[str, Translate] = {
    "Conv": convolve,
    "ConvTranspose": deconvolve,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "Sigmoid": partial(_elementwise, "LOGISTIC", ""),
    "Relu": partial(_elementwise, "RELU", ""),
    "LeakyRelu": _leaky_relu,
    "Clip": _clip,
    "HardSwish": partial(_elementwise, "HARD_SWISH", ""),
    "Tanh": partial(_elementwise, "TANH", ""),
    "Exp": partial(_elementwise, "EXP", "Exp"),
    "Log": partial(_elementwise, "LOG", ""),
    "Sqrt": partial(_elementwise, "SQRT", ""),
    "Neg": partial(_elementwise, "NEG", "Neg"),
    "Abs": partial(_elementwise, "ABS", "Abs"),
    "Add": partial(_elementwise, "ADD", "Add"),
    "Sub": partial(_elementwise, "SUB", "Sub"),
    "Mul": partial(_elementwise, "MUL", "Mul"),
    "Div": partial(_elementwise, "DIV", "Div"),
    "Pow": partial(_elementwise, "POW", "Pow"),
    "Max": partial(_elementwise, "MAXIMUM", "MaximumMinimum"),
    "Min": partial(_elementwise, "MINIMUM", "MaximumMinimum"),
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Softmax": _softmax,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "ReduceMean": partial(_reduce, "MEAN"),
    "GlobalAveragePool": partial(_reduce, "MEAN"),
    "ReduceSum": partial(_reduce, "SUM"),
    "ReduceMax": partial(_reduce, "REDUCE_MAX"),
    "Resize": _resize,
    "Identity": _alias,
    "Dropout": _alias,
}
"""By ONNX's name of the operation."""

__all__ = ["OPERATIONS", "Untranslatable"]
