"""An ONNX network with its constants computed and all shapes known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.arrays import AnyArray
from autoprune.errors import DeviceError

_ROUNDS = 20


@dataclass(frozen=True)
class Scale:
    """How integers stand for numbers: number = scale · (integer - zero).

    Attributes:
        scale: one, or one per channel.
        zero: as many.
    """

    scale: AnyArray
    zero: AnyArray

    @classmethod
    def covering(cls, ranges: Sequence[Scale]) -> Scale:
        """Return the finest scale of int8 that has all numbers of other scales."""
        least = min(float(one.scale) * (-128 - int(one.zero)) for one in ranges)
        most = max(float(one.scale) * (127 - int(one.zero)) for one in ranges)
        scale = np.float32((most - least) / 255)
        return cls(np.array(scale), np.array(np.clip(np.round(-128 - least / scale), -128, 127), dtype=np.int8))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scale):
            return NotImplemented
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.zero, other.zero)


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: of the operation, a path of modules.
        kind: ONNX's name of it.
        inputs: names of tensors; empty for one that is left out.
        outputs: names of tensors.
        attributes: by name.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass
class Network:
    """A network; pairs that quantise are no operations here, but scales of tensors.

    Attributes:
        nodes: in the order of computation.
        inputs: names of tensors.
        outputs: names of tensors.
        metadata: of the file.
        shapes: of all tensors, by name.
        constants: tensors with known values, by name.
        scales: of the tensors that are quantised, constants included, by name.
        integers: the integers of quantised constants, by name.
        restored: tensors that are another's numbers after rounding, by name.
    """

    nodes: list[Node]
    inputs: list[str]
    outputs: list[str]
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, AnyArray] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)
    integers: dict[str, AnyArray] = field(default_factory=dict)
    restored: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> Network:
    """Read an ONNX file.

    Raises:
        DeviceError: a shape depends on the input.
    """
    import onnx  # late: it belongs to an extra

    model = onnx.load(path)
    graph = model.graph
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    for _ in range(_ROUNDS):  # a computed constant makes more shapes known, which make more constants known
        shapes = _shapes(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
        before = len(constants)
        _compute(model, constants, shapes)
        if len(constants) == before:
            break
    nodes = [_node(one) for one in graph.node if not all(name in constants for name in one.output)]
    unknown = next((one for one in nodes if any(name not in shapes for name in one.outputs)), None)
    if unknown is not None:
        raise DeviceError(
            f"The network must have fixed shapes to run on LiteRT, and the output's of {unknown.kind} {unknown.name} "
            "depends on the input; use another `runtime`"
        )
    found = Network(
        nodes=nodes,
        inputs=[one.name for one in graph.input if one.name not in constants],
        outputs=[one.name for one in graph.output],
        metadata={one.key: one.value for one in model.metadata_props},
        shapes={**shapes, **{name: value.shape for name, value in constants.items()}},
        constants=constants,
    )
    _take_scales(found, graph)
    _fuse_clamps(found)
    return found


def clamp_of(network: Network, node: Node) -> str:
    """Return the format's name of the clamp that an operation is, ``RELU`` or ``RELU6``; empty for another."""
    if node.kind == "Relu":
        return "RELU"
    bounds = [network.constants.get(name) for name in node.inputs[1:] if name]
    return "RELU6" if node.kind == "Clip" and bounds == [0.0, 6.0] else ""


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes that are known in full."""
    shapes = {}
    for one in (*graph.input, *graph.value_info, *graph.output):
        kind = one.type.tensor_type
        sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim]
        if kind.HasField("shape") and -1 not in sizes:
            shapes[one.name] = tuple(sizes)
    return shapes


def _compute(model: Any, constants: dict[str, AnyArray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Add the outputs of operations on constants, and shapes, to the constants; and to the model, as initializers."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    known = set()
    for node in model.graph.node:
        if all(name in constants for name in node.output):
            continue
        if node.op_type == "Shape" and node.input[0] in shapes:
            values: Any = [np.array(shapes[node.input[0]], dtype=np.int64)]
        elif all(name in constants for name in node.input if name):
            values = ReferenceEvaluator(node).run(None, {name: constants[name] for name in node.input if name})
        else:
            continue
        constants.update(zip(node.output, map(np.asarray, values), strict=True))
        if constants[node.output[0]].dtype == np.int64:  # a size or a bound, on which shapes may depend
            known.add(node.output[0])
    kept = [node for node in model.graph.node if node.output[0] not in known]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(constants[name], name) for name in known)


def _node(node: Any) -> Node:
    import onnx

    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    return Node(node.name or node.output[0], node.op_type, tuple(node.input), tuple(node.output), attributes)


def _take_scales(network: Network, graph: Any) -> None:
    """Turn the operations that quantise and restore tensors into scales of the tensors."""
    integers: dict[str, str] = {}
    for node in network.nodes:
        if node.kind == "QuantizeLinear":
            integers[node.outputs[0]] = node.inputs[0]
            network.scales[node.inputs[0]] = _scale(network, node.inputs)
        elif node.kind == "DequantizeLinear":
            network.restored[node.outputs[0]] = integers[node.inputs[0]]
    network.nodes = [one for one in network.nodes if one.kind not in ("QuantizeLinear", "DequantizeLinear")]
    for one in graph.node:
        if one.op_type == "DequantizeLinear" and one.input[0] in network.constants:
            network.integers[one.output[0]] = network.constants[one.input[0]]
            network.scales[one.output[0]] = _scale(network, one.input)


def _fuse_clamps(network: Network) -> None:
    """Have convolutions clamp their outputs (attribute ``clamp``) in place of a ReLU or ReLU6 that alone reads them."""
    read = Counter(network.restored.get(name, name) for node in network.nodes for name in node.inputs)
    read.update(network.restored.get(name, name) for name in network.outputs)
    nodes: dict[tuple[str, ...], Node] = {}
    for node in network.nodes:
        clamp = clamp_of(network, node)
        source = network.restored.get(node.inputs[0], node.inputs[0]) if clamp else ""
        before = nodes.get((source,))
        alike = (source in network.scales) == (node.outputs[0] in network.scales)
        if before and before.kind == "Conv" and "clamp" not in before.attributes and read[source] == 1 and alike:
            del nodes[source,]
            node = replace(before, outputs=node.outputs, attributes={**before.attributes, "clamp": clamp})
        nodes[node.outputs] = node
    network.nodes = list(nodes.values())


def _scale(network: Network, inputs: Sequence[str]) -> Scale:
    scale = network.constants[inputs[1]]
    zero = network.constants[inputs[2]] if len(inputs) > 2 else np.zeros_like(scale, dtype=np.int8)
    return Scale(scale, zero)
