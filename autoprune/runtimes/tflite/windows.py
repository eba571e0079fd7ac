"""Operations that slide a window over an image: convolutions and pooling, with the padding that they need."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoprune.arrays import AnyArray
from autoprune.runtimes.tflite.network import Node, Scale
from autoprune.runtimes.tflite.tensors import Tensors

_SAME, _VALID = 0, 1
"""TensorFlow Lite's numbers of its two paddings."""


class Untranslatable(Exception):
    """An operation has no translation, for the reason in the text."""


def convolve(tensors: Tensors, node: Node) -> None:
    """Translate a convolution, grouped or depthwise, with padding in front if the format's own would be another."""
    source, weight, *_ = node.inputs
    shape, kernel = tensors.shape(source), tensors.shape(weight)
    if len(shape) != 4 or weight not in tensors.network.constants:
        raise Untranslatable(f" of shape {shape}")
    integer = tensors.are_integers(node) and weight in tensors.network.integers
    deep = kernel[1] == 1 and node.attributes.get("group", 1) == shape[1] > 1
    x, padding = _padded(tensors, node, kernel[2:], integer=integer, fill=0.0)
    order, axis = ((1, 2, 3, 0), 3) if deep else ((0, 2, 3, 1), 0)
    inputs = [x, *_weights(tensors, node, integer=integer, order=order, axis=axis)]
    clamp = getattr(tensors.file.schema.ActivationFunctionType, node.attributes.get("clamp", "NONE"))
    options = {"padding": padding, "fusedActivationFunction": clamp, **_steps(node, ("stride", "dilation"))}
    kind, name = ("DEPTHWISE_CONV_2D", "DepthwiseConv2D") if deep else ("CONV_2D", "Conv2D")
    if deep:
        options["depthMultiplier"] = kernel[0] // shape[1]
    tensors.file.operate(kind, inputs, [tensors.add(node.outputs[0], integer=integer, last=True)], name, **options)


def deconvolve(tensors: Tensors, node: Node) -> None:
    """Translate a transposed convolution without padding."""
    source, weight, *_ = node.inputs
    attributes = node.attributes
    kernel = tensors.shape(weight)
    if any(attributes.get("pads", ())) or attributes.get("group", 1) != 1 or len(kernel) != 4:
        raise Untranslatable(" with padding or groups")
    size = tensors.integers(f"{node.name}/size", tensors.shape(node.outputs[0], last=True))
    weights, bias = _weights(tensors, node, integer=False, order=(1, 2, 3, 0), axis=0)
    inputs = [size, weights, tensors.get(source, last=True), bias]
    to = [tensors.add(node.outputs[0], integer=False, last=True)]
    options = {"padding": _VALID, **_steps(node, ("stride",))}
    tensors.file.operate("TRANSPOSE_CONV", inputs, to, "TransposeConv", **options)


def max_pool(tensors: Tensors, node: Node) -> None:
    """Translate a maximum over windows; what pads it is never the maximum."""
    _pool("MAX_POOL_2D", tensors, node, integer=tensors.are_integers(node), fill=-np.inf)


def average_pool(tensors: Tensors, node: Node) -> None:
    """Translate a mean over windows without padding."""
    if any(node.attributes.get("pads", ())):
        raise Untranslatable(" with padding")
    _pool("AVERAGE_POOL_2D", tensors, node, integer=False, fill=0.0)


def _pool(kind: str, tensors: Tensors, node: Node, *, integer: bool, fill: float) -> None:
    height, width = node.attributes["kernel_shape"]
    x, padding = _padded(tensors, node, (height, width), integer=integer, fill=fill)
    options = {"padding": padding, "filterHeight": height, "filterWidth": width, **_steps(node, ("stride",))}
    to = [tensors.add(node.outputs[0], integer=integer, last=True)]
    tensors.file.operate(kind, [x], to, "Pool2D", **options)


def _steps(node: Node, names: tuple[str, ...]) -> dict[str, int]:
    """Return strides and dilations as options."""
    found: dict[str, int] = {}
    for name in names:
        height, width = node.attributes.get(f"{name}s", (1, 1))
        keys = ("strideH", "strideW") if name == "stride" else ("dilationHFactor", "dilationWFactor")
        found.update(zip(keys, (height, width), strict=True))
    return found


def _weights(tensors: Tensors, node: Node, *, integer: bool, order: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Add weights, in an order of dimensions with those of the outputs at the axis, and the bias."""
    network, (source, weight, *rest) = tensors.network, node.inputs
    outputs = tensors.shape(node.outputs[0])[1]
    bias = network.constants[rest[0]] if rest else np.zeros(outputs)
    if not integer:
        values = network.constants[weight].astype(np.float32).transpose(order)
        return (
            tensors.file.constant(weight, values),
            tensors.file.constant(f"{node.name}/bias", bias.astype(np.float32)),
        )
    each: AnyArray = np.broadcast_to(network.scales[weight].scale, outputs)
    of_bias = each.astype(np.float64) * float(network.scales[tensors.source(source)].scale)
    zeros = np.zeros(outputs, dtype=np.int64)
    rounded = np.clip(np.round(bias / of_bias), -(2**31), 2**31 - 1).astype(np.int32)
    return (
        tensors.file.constant(weight, network.integers[weight].transpose(order), scale=Scale(each, zeros), axis=axis),
        tensors.file.constant(f"{node.name}/bias", rounded, scale=Scale(of_bias, zeros)),
    )


def _padded(tensors: Tensors, node: Node, kernel: Any, *, integer: bool, fill: float) -> tuple[int, int]:
    """Return an operation's input, padded as ONNX says, and which padding of the format completes that.

    Raises:
        Untranslatable: the padding is not given in numbers, or windows end beyond the image.
    """
    source, attributes = node.inputs[0], node.attributes
    if bytes(attributes.get("auto_pad", b"NOTSET")) not in (b"NOTSET", b"VALID"):
        raise Untranslatable(" with automatic padding")
    sizes = tensors.shape(source)[2:]
    pads = list(attributes.get("pads", (0, 0, 0, 0)))
    same, expected = [], []
    for axis, size in enumerate(sizes):
        stride = attributes.get("strides", (1, 1))[axis]
        extent = (kernel[axis] - 1) * attributes.get("dilations", (1, 1))[axis] + 1
        expected.append((size + pads[axis] + pads[axis + 2] - extent) // stride + 1)
        whole = max((-(-size // stride) - 1) * stride + extent - size, 0)
        same.append(
            (whole // 2, whole - whole // 2) == (pads[axis], pads[axis + 2]) and expected[-1] == -(-size // stride)
        )
    if tuple(expected) != tensors.shape(node.outputs[0])[2:]:
        raise Untranslatable(" with windows beyond the image")
    scale = tensors.network.scales.get(node.outputs[0]) if node.kind == "MaxPool" else None
    x = tensors.get(source, integer=integer, last=True, scale=scale)
    if all(same):
        return x, _SAME
    if not any(pads):
        return x, _VALID
    return _surrounded(tensors, node, x, pads, integer=integer, fill=fill), _VALID


def _surrounded(tensors: Tensors, node: Node, x: int, pads: list[int], *, integer: bool, fill: float) -> int:
    """Add a border around an image: zeros, or what no maximum is."""
    name, source = f"{node.name}/padded", tensors.source(node.inputs[0])
    top, left, bottom, right = pads
    around = [(0, 0), (top, bottom), (left, right), (0, 0)]
    shape = [size + sum(more) for size, more in zip(tensors.shape(source, last=True), around, strict=True)]
    scale = tensors.network.scales[source] if integer else None
    to = tensors.file.tensor(name, shape, dtype=np.int8 if integer else np.float32, scale=scale)
    inputs = [x, tensors.integers(f"{name}/by", np.array(around))]
    if fill:
        least: AnyArray = np.array([-128], np.int8) if integer else np.array([np.finfo(np.float32).min], np.float32)
        inputs.append(tensors.file.constant(f"{name}/fill", least, scale=scale))
    tensors.file.operate("PADV2" if fill else "PAD", inputs, [to], "PadV2" if fill else "Pad")
    return to
