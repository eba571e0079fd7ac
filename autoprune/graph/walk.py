"""The walk over an exported network: one small rule per kind of operation.

Every tensor value is represented by the ids of the channels along its channel dimension (dimension 1). Rules unite
ids that must be removed together (union-find), record which parameters they index, and pin what must not change.
An operation without a rule pins every channel that it touches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from autoprune.graph.channels import ChannelIds
from autoprune.graph.types import Ids, LayerKind

WIDTH_ATTRIBUTES = ("c", "c_", "hidden_channels")
"""Names under which modules keep the width of a piece that their forward pass splits off (Ultralytics' C2f: ``c``)."""

_PASS = frozenset(
    """silu relu relu6 hardtanh leaky_relu elu selu gelu mish hardswish hardsigmoid sigmoid tanh softplus logsigmoid
    clone contiguous detach alias dropout feature_dropout alpha_dropout identity to _to_copy type_as abs neg exp sqrt
    clamp clamp_min clamp_max max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d
    upsample_bilinear2d upsample_bicubic2d lift_fresh_copy""".split()
)
_BINARY = frozenset("add sub rsub mul div maximum minimum".split())
_COUNTED = {
    "avg_pool2d": LayerKind.POOL,
    "adaptive_avg_pool2d": LayerKind.POOL,
    "max_pool2d": LayerKind.ELEMENTWISE,
    "upsample_nearest2d": LayerKind.ELEMENTWISE,
    "upsample_bilinear2d": LayerKind.UPSAMPLE,
}
_FREE = frozenset("clone contiguous detach alias dropout identity to _to_copy lift_fresh_copy".split())


@dataclass(frozen=True)
class RawLayer:
    """A layer with channel ids in place of axis numbers."""

    name: str
    kind: LayerKind
    inputs: Ids
    outputs: Ids
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    in_hw: tuple[int, int] = (1, 1)
    out_hw: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass
class Findings:
    """What the walk collects.

    Attributes:
        ids: the channel ids with their unions and pins.
        axes: (state-dict name, dimension) → channel ids along it.
        layers: operations in order.
        splits: per chunk or split along channels, the ids of its pieces.
        attributes: (module path, attribute name, ids that it counts).
        uncounted: operations that no layer describes.
    """

    ids: ChannelIds = field(default_factory=ChannelIds)
    axes: dict[tuple[str, int], Ids] = field(default_factory=dict)
    layers: list[RawLayer] = field(default_factory=list)
    splits: list[tuple[Ids, ...]] = field(default_factory=list)
    attributes: list[tuple[str, str, Ids]] = field(default_factory=list)
    uncounted: Counter[str] = field(default_factory=Counter)


class Walk:
    """Walks the nodes of an exported program once, in order.

    Args:
        module: the module that was exported; only plain attributes are read.
        exported: its exported program, unlifted constants and all.
        free_outputs: keys of an output dictionary whose tensors stay unpinned.
    """

    def __init__(self, module: nn.Module, exported: ExportedProgram, *, free_outputs: frozenset[str]) -> None:
        self.module = module
        self.exported = exported
        self.free_outputs = free_outputs
        self.found = Findings()
        self.values: dict[fx.Node, Any] = {}
        self.state_names: dict[fx.Node, str] = {}

    def run(self) -> Findings:
        """Walk everything and return what was found."""
        specs = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                spec = specs[node.name]
                if spec.kind is InputKind.USER_INPUT:
                    self.values[node] = self._pinned(node, "network input")
                elif spec.target is not None:
                    self.state_names[node] = spec.target
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                self._pin_outputs()
        return self.found

    # -- dispatch ------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> Any:
        name = operation(node)
        if name == "getitem":
            source = self.values.get(node.args[0])  # type: ignore[arg-type]
            return source[node.args[1]] if isinstance(source, list) else source
        rule: Callable[[fx.Node], Any] | None = getattr(self, f"_rule_{name}", None)
        if rule is not None:
            return rule(node)
        if name in _PASS:
            return self._pass(node, name)
        if name in _BINARY:
            return self._binary(node)
        return self._unknown(node)

    def _unknown(self, node: fx.Node, reason: str | None = None) -> Any:
        touched = [self.values[source] for source in node.all_input_nodes if self.values.get(source) is not None]
        parameters = [source for source in node.all_input_nodes if source in self.state_names]
        if not touched and not (parameters and shape(node)):
            return None
        name = operation(node)
        self.found.uncounted[name] += 1
        reason = reason or f"{name} in {owner(node)}"
        for value in touched:
            for ids in value if isinstance(value, list) else [value]:
                self.found.ids.pin(ids, reason)
        return self._pinned(node, reason)

    def _pinned(self, node: fx.Node, reason: str) -> Any:
        value = node.meta.get("val")
        if isinstance(value, (list, tuple)):
            return [self._new(item.shape[1], owner(node), reason) if item.ndim >= 2 else None for item in value]
        size = shape(node)
        return self._new(size[1], owner(node), reason) if size is not None and len(size) >= 2 else None

    def _new(self, count: int, producer: str, reason: str | None = None) -> Ids:
        return self.found.ids.new(count, producer, reason)

    def _axis(self, node: fx.Node, dimension: int, ids: Ids) -> None:
        """Record that a state tensor's dimension is indexed by these channels (shared tensors unite theirs)."""
        key = (self.state_names[node], dimension)
        if key in self.found.axes:
            self.found.ids.unite(self.found.axes[key], ids)
        else:
            self.found.axes[key] = ids

    def _input(self, node: fx.Node, position: int = 0) -> Ids | None:
        source = node.args[position] if len(node.args) > position else None
        value = self.values.get(source) if isinstance(source, fx.Node) else None
        return value if isinstance(value, np.ndarray) else None

    def _layer(self, node: fx.Node, kind: LayerKind, inputs: Ids, outputs: Ids, **details: Any) -> None:
        source = node.args[0]
        size_in = shape(source[0] if isinstance(source, (list, tuple)) else source)  # type: ignore[arg-type]
        size_out = shape(node)
        self.found.layers.append(
            RawLayer(owner(node), kind, inputs, outputs, in_hw=_hw(size_in), out_hw=_hw(size_out), **details)
        )

    # -- rules: layers with parameters -----------------------------------------------------------

    def _rule_conv2d(self, node: fx.Node) -> Ids | None:
        inputs, weight = self._input(node), argument(node, 1)
        if inputs is None or weight not in self.state_names:
            return self._unknown(node)  # type: ignore[no-any-return]
        size = shape(weight)
        assert size is not None
        groups = int(argument(node, 6, 1))
        stride = _pair(argument(node, 3, 1))
        out, bias = size[0], argument(node, 2)
        producer = owner(node)
        if groups == 1:
            outputs, kind = self._new(out, producer), LayerKind.CONV
            self._axis(weight, 1, inputs)
        elif groups == len(inputs) == out:
            outputs, kind = inputs, LayerKind.DEPTHWISE
        else:
            outputs, kind = self._new(out, producer, f"grouped convolution {producer}"), LayerKind.CONV
            self.found.ids.pin(inputs, f"grouped convolution {producer}")
        self._axis(weight, 0, outputs)
        if bias in self.state_names:
            self._axis(bias, 0, outputs)
        kernel = (size[2], size[3])
        self._layer(node, kind, inputs, outputs, kernel=kernel, stride=stride, groups=groups)
        return outputs

    def _rule_conv_transpose2d(self, node: fx.Node) -> Ids | None:
        inputs, weight = self._input(node), argument(node, 1)
        groups = int(argument(node, 6, 1))
        if inputs is None or weight not in self.state_names or groups != 1:
            return self._unknown(node)  # type: ignore[no-any-return]
        size = shape(weight)
        assert size is not None
        outputs = self._new(size[1], owner(node))
        self._axis(weight, 0, inputs)
        self._axis(weight, 1, outputs)
        bias = argument(node, 2)
        if bias in self.state_names:
            self._axis(bias, 0, outputs)
        stride = _pair(argument(node, 3, 1))
        self._layer(node, LayerKind.TRANSPOSED, inputs, outputs, kernel=(size[2], size[3]), stride=stride)
        return outputs

    def _rule_linear(self, node: fx.Node) -> Ids | None:
        inputs, weight = self._input(node), argument(node, 1)
        size_in = shape(node.args[0])  # type: ignore[arg-type]
        if inputs is None or weight not in self.state_names or size_in is None or len(size_in) != 2:
            return self._unknown(node)  # type: ignore[no-any-return]
        size = shape(weight)
        assert size is not None
        outputs = self._new(size[0], owner(node))
        self._axis(weight, 0, outputs)
        self._axis(weight, 1, inputs)
        bias = argument(node, 2)
        if bias in self.state_names:
            self._axis(bias, 0, outputs)
        self._layer(node, LayerKind.LINEAR, inputs, outputs)
        return outputs

    def _rule_batch_norm(self, node: fx.Node) -> Ids | None:
        inputs = self._input(node)
        if inputs is None:
            return self._unknown(node)  # type: ignore[no-any-return]
        for source in node.args[1:5]:
            if isinstance(source, fx.Node) and source in self.state_names:
                self._axis(source, 0, inputs)
        self._layer(node, LayerKind.NORM, inputs, inputs)
        return inputs

    def _rule_prelu(self, node: fx.Node) -> Ids | None:
        inputs, weight = self._input(node), argument(node, 1)
        if inputs is None or weight not in self.state_names:
            return self._unknown(node)  # type: ignore[no-any-return]
        size = shape(weight)
        if size is not None and size[0] == len(inputs):
            self._axis(weight, 0, inputs)
        return self._pass(node, "prelu")

    # -- rules: what joins, splits and reshapes ----------------------------------------------------

    def _rule_cat(self, node: fx.Node) -> Ids | None:
        parts = [self.values.get(source) for source in node.args[0]]  # type: ignore[union-attr,arg-type]
        if any(not isinstance(part, np.ndarray) for part in parts):
            return self._unknown(node)  # type: ignore[no-any-return]
        size = shape(node)
        assert size is not None
        if int(argument(node, 1, 0)) % len(size) == 1:
            joined: Ids = np.concatenate(parts)
            self._layer(node, LayerKind.ELEMENTWISE, joined, joined)
            return joined
        for part in parts[1:]:
            if len(part) != len(parts[0]):
                return self._unknown(node)  # type: ignore[no-any-return]
            self.found.ids.unite(parts[0], part)
        return parts[0]

    def _rule_chunk(self, node: fx.Node) -> Any:
        inputs = self._input(node)
        size = shape(node.args[0])  # type: ignore[arg-type]
        if inputs is None or size is None or int(argument(node, 2, 0)) % len(size) != 1:
            return self._unknown(node)
        step = math.ceil(len(inputs) / int(argument(node, 1)))
        return self._split(node, inputs, [step] * (len(inputs) // step) + [len(inputs) % step] * bool(len(inputs) % step))

    def _rule_split_with_sizes(self, node: fx.Node) -> Any:
        inputs = self._input(node)
        size = shape(node.args[0])  # type: ignore[arg-type]
        sizes = argument(node, 1)
        if inputs is None or size is None or int(argument(node, 2, 0)) % len(size) != 1:
            return self._unknown(node)
        pieces = self._split(node, inputs, list(sizes))
        counted = {len(ids) for module, _, ids in self.found.attributes if module == owner(node)}
        if not set(sizes) <= counted:
            self.found.ids.pin(inputs, f"split into fixed sizes in {owner(node)}")
        return pieces

    def _split(self, node: fx.Node, inputs: Ids, sizes: list[int]) -> list[Ids]:
        pieces = list(np.split(inputs, np.cumsum(sizes)[:-1]))
        if len({len(piece) for piece in pieces}) > 1:
            self.found.ids.pin(inputs, f"split into unequal pieces in {owner(node)}")
        self.found.splits.append(tuple(pieces))
        path = owner(node)
        module = self.module.get_submodule(path) if path else self.module
        for name in WIDTH_ATTRIBUTES:
            value = getattr(module, name, None)
            if type(value) is int and value == len(pieces[0]):
                self.found.attributes.append((path, name, pieces[0]))
        return pieces

    def _rule_flatten(self, node: fx.Node) -> Ids | None:
        inputs, size_in, size_out = self._input(node), shape(node.args[0]), shape(node)  # type: ignore[arg-type]
        if inputs is None or size_in is None or size_out is None or len(size_out) < 2 or size_in[0] != size_out[0]:
            return self._unknown(node)  # type: ignore[no-any-return]
        return np.repeat(inputs, size_out[1] // len(inputs))

    def _rule_view(self, node: fx.Node) -> Ids | None:
        size_in, size_out, wish = shape(node.args[0]), shape(node), argument(node, 1)  # type: ignore[arg-type]
        if size_in is not None and size_out is not None and len(size_out) == 2 and wish[-1] == -1:
            return self._rule_flatten(node)
        source = node.args[0]
        if source in self.state_names and size_in is not None and len(size_in) == 1 and size_out is not None:
            if len(size_out) >= 2 and size_out[1] == size_in[0] == math.prod(size_out):
                ids = self._new(size_in[0], self.state_names[source])  # type: ignore[index]
                self._axis(source, 0, ids)  # type: ignore[arg-type]
                return ids
        return self._unknown(node)  # type: ignore[no-any-return]

    _rule_reshape = _view = _rule_view

    def _rule_mean(self, node: fx.Node) -> Ids | None:
        dims = argument(node, 1)
        size = shape(node.args[0])  # type: ignore[arg-type]
        if size is None or dims is None or any(int(dim) % len(size) < 2 for dim in dims):
            return self._unknown(node)  # type: ignore[no-any-return]
        return self._pass(node, "mean")

    def _rule_pad(self, node: fx.Node) -> Ids | None:
        return self._pass(node, "pad") if len(argument(node, 1)) <= 4 else self._unknown(node)

    _rule_constant_pad_nd = _rule_pad

    def _pass(self, node: fx.Node, name: str) -> Any:
        inputs = self._input(node)
        if inputs is not None and name not in _FREE:
            kernel = _pair(argument(node, 1)) if "_pool2d" in name and "adaptive" not in name else (1, 1)
            self._layer(node, _COUNTED.get(name, LayerKind.ELEMENTWISE), inputs, inputs, kernel=kernel)
        return inputs

    def _binary(self, node: fx.Node) -> Ids | None:
        left, right = self._input(node, 0), self._input(node, 1)
        if left is None and right is None:
            return None
        others = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
        if left is None or right is None:
            if len(others) == 1 or all(not shape(other) for other in others if self.values.get(other) is None):
                return left if left is not None else right  # with a plain number
            return self._unknown(node)  # type: ignore[no-any-return]
        sizes = [shape(other) for other in others]
        if len(left) == len(right) and sizes[0] is not None and sizes[1] is not None and len(sizes[0]) == len(sizes[1]):
            self.found.ids.unite(left, right)
            self._layer(node, LayerKind.ELEMENTWISE, left, left)
            return left
        return self._unknown(node)  # type: ignore[no-any-return]

    # -- outputs -------------------------------------------------------------------------------------

    def _pin_outputs(self) -> None:
        names = [spec.arg.name for spec in self.exported.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
        by_name = {node.name: node for node in self.exported.graph.nodes}
        spec = self.exported.call_spec.out_spec
        assert spec is not None
        paths = torch.utils._pytree.tree_flatten_with_path(spec.unflatten(names))[0]
        for path, name in paths:
            keys = {getattr(entry, "key", None) for entry in path}
            value = self.values.get(by_name[name]) if name in by_name else None
            if isinstance(value, np.ndarray) and not keys & self.free_outputs:
                self.found.ids.pin(value, "network output")


def operation(node: fx.Node) -> str:
    """Return the plain name of a node's operation, e.g. ``conv2d``; in-place ones under their plain name."""
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    name = packet.__name__ if packet is not None else getattr(target, "__name__", str(target))
    return name.rstrip("_") if not name.startswith("_") else name


def owner(node: fx.Node) -> str:
    """Return the path of the module that runs a node ("" for the network itself)."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]).removeprefix("L['self'].") if stack else node.name


def shape(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of a node's tensor, or None where it is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else None


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """Return a positional argument or its default."""
    return node.args[position] if len(node.args) > position else default


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, (list, tuple)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


def _hw(size: tuple[int, ...] | None) -> tuple[int, int]:
    return (size[2], size[3]) if size is not None and len(size) == 4 else (1, 1)
