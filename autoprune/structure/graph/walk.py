"""Walk over an exported network, operation by operation, and collect its channels.

Every tensor is represented by the ids of the channels along its channel dimension (dimension 1). The rules, one per
kind of operation, are in ``rules.py``; an operation without one pins every channel that it touches.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from autoprune.arrays import Ids
from autoprune.structure.graph.types import LayerKind

_SLICE = re.compile(r"slice\(None, [^)]*\)\.")


def operation(node: fx.Node) -> str:
    """Return the plain name of a node's operation, e.g. ``conv2d``; in-place ones under their plain name."""
    packet = getattr(node.target, "overloadpacket", None)
    name = packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))
    return str(name) if name.startswith("_") else str(name).rstrip("_")


def owner(node: fx.Node) -> str:
    """Return the path of the module that runs a node ("" for the network itself).

    A network that runs ``layers[:-1]`` has the slice in the path; it starts at the first layer and changes no number.
    """
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return node.name
    return _SLICE.sub("", str(list(stack.values())[-1][0]).removeprefix("L['self']."))


def shape(node: object) -> tuple[int, ...]:
    """Return the shape of a node's tensor; () if it is no tensor, or one without dimensions."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def size_of(node: object) -> tuple[int, int]:
    """Return height and width of a node's images, (1, 1) if it has none."""
    sizes = shape(node)
    return (sizes[2], sizes[3]) if len(sizes) == 4 else (1, 1)


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """Return a positional argument or its default."""
    return node.args[position] if len(node.args) > position else default


def pair(value: Any) -> tuple[int, int]:
    """Return a kernel or stride as two numbers."""
    if isinstance(value, (list, tuple)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


class ChannelIds:
    """A growing set of channel ids, their unions and their pins.

    Every union's representative is its smallest id, so that numbering follows the forward pass.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._producer: list[str] = []
        self._pins: dict[int, str] = {}

    def new(self, count: int, producer: str, reason: str | None = None) -> Ids:
        """Return ``count`` fresh ids made by a layer; with a reason they are pinned."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._producer.extend([producer] * count)
        ids = np.arange(start, start + count, dtype=np.int64)
        if reason is not None:
            self.pin(ids, reason)
        return ids

    def root(self, index: int) -> int:
        """Return the representative of an id's union."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def roots(self, ids: Ids) -> Ids:
        """Return the representatives of many ids, same shape."""
        return np.array([self.root(int(index)) for index in ids], dtype=np.int64)

    def unite(self, left: Ids, right: Ids) -> None:
        """Unite two runs of ids index by index."""
        for one, other in zip(left, right, strict=True):
            first, second = sorted((self.root(int(one)), self.root(int(other))))
            if first != second:
                self._parent[second] = first
                if second in self._pins:
                    self._pins.setdefault(first, self._pins.pop(second))

    def pin(self, ids: Ids, reason: str) -> None:
        """Forbid the removal of these channels; the first reason is kept."""
        for index in ids:
            self._pins.setdefault(self.root(int(index)), reason)

    def pinned(self, root: int) -> str | None:
        """Return why a representative's union is pinned, or None."""
        return self._pins.get(root)

    def producer(self, root: int) -> str:
        """Return the layer that made a representative."""
        return self._producer[root]


Value = Ids | list[Ids] | None
"""Channel ids of a tensor, of each tensor of a list, or nothing known."""


@dataclass(frozen=True)
class RawLayer:
    """A layer with channel ids instead of axis numbers."""

    name: str
    kind: LayerKind
    inputs: Ids
    outputs: Ids
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    in_hw: tuple[int, int] = (1, 1)
    out_hw: tuple[int, int] = (1, 1)
    groups: int = 1
    images: float = 1.0


@dataclass(frozen=True)
class RawActivation:
    """A tensor with channel ids; see `autoprune.structure.graph.types.Activation`.

    Attributes:
        ids: of its channels; None if they are unknown.
        numbers: of one image, per channel if the ids are known.
        first: the operation that makes it.
        last: the last operation that reads it.
    """

    ids: Ids | None
    numbers: float
    first: int
    last: int


@dataclass
class Findings:
    """What the walk collects.

    Attributes:
        ids: the channel ids with their unions and pins.
        axes: (state-dict name, dimension) → channel ids along it.
        reads: those of them along which a layer sums over the channels that it reads.
        layers: operations in order.
        splits: per chunk or split along channels, the ids of its pieces.
        attributes: (module path, attribute name, ids that it counts).
        uncounted: operations that no layer describes.
        activations: the tensors that are made, in order.
    """

    ids: ChannelIds = field(default_factory=ChannelIds)
    axes: dict[tuple[str, int], Ids] = field(default_factory=dict)
    reads: set[tuple[str, int]] = field(default_factory=set)
    layers: list[RawLayer] = field(default_factory=list)
    splits: list[tuple[Ids, ...]] = field(default_factory=list)
    attributes: list[tuple[str, str, Ids]] = field(default_factory=list)
    uncounted: Counter[str] = field(default_factory=Counter)
    activations: list[RawActivation] = field(default_factory=list)


class Walk:
    """Walks the nodes of an exported program once, in order, and offers its rules what they need.

    Args:
        module: the module that was exported.
        exported: its operations.
        free_outputs: keys of outputs whose channels may be pruned.
        batch: images of the input.

    Attributes:
        module: the module that was exported; only plain attributes are read.
        found: what was found so far.
        state_names: the state-dict name of every parameter and buffer node, of a shared one the first.
    """

    def __init__(
        self, module: nn.Module, exported: ExportedProgram, *, free_outputs: frozenset[str], batch: int
    ) -> None:
        self.module = module
        self._batch = batch
        self.found = Findings()
        self.state_names: dict[fx.Node, str] = {}
        self._first_names = first_names(module)
        self._exported = exported
        self._free_outputs = free_outputs
        self._values: dict[fx.Node, Value] = {}
        self._current: fx.Node | None = None
        self._known_uses: set[tuple[fx.Node, fx.Node | None]] = set()

    def run(self, rules: Mapping[str, Callable[[Walk, fx.Node], Value]]) -> Findings:
        """Walk everything by the rules (operation name → rule) and return what was found."""
        specs = {spec.arg.name: spec for spec in self._exported.graph_signature.input_specs}
        for node in self._exported.graph.nodes:
            if node.op == "placeholder":
                spec = specs[node.name]
                if spec.kind is InputKind.USER_INPUT:
                    self._values[node] = self._pinned(node, "network input")
                elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                    self.state_names[node] = self._first_names[str(spec.target)]
            elif node.op == "call_function":
                self._current = node
                self._values[node] = rules.get(operation(node), Walk.unknown)(self, node)
            elif node.op == "output":
                self._pin_outputs()
        self._pin_other_uses()
        return self.found

    # -- for the rules -----------------------------------------------------------------------------

    def value(self, source: object) -> Value:
        """Return what is known of an argument."""
        return self._values.get(source) if isinstance(source, fx.Node) else None

    def input(self, node: fx.Node, position: int = 0) -> Ids | None:
        """Return the channel ids of an argument that is one tensor, or None."""
        value = self.value(argument(node, position))
        return value if isinstance(value, np.ndarray) else None

    def owner(self, node: fx.Node) -> str:
        """Return the path of the module that runs a node; of a module that is registered twice the first."""
        path = owner(node)
        return self._first_names.get(path, path)

    def new(self, count: int, producer: str, reason: str | None = None) -> Ids:
        """Return fresh channel ids; with a reason they are pinned."""
        return self.found.ids.new(count, producer, reason)

    def axis(self, parameter: object, dimension: int, ids: Ids, *, read: bool = False) -> None:
        """Record that a state tensor's dimension is indexed by these channels; a shared tensor unites its channels.

        Args:
            parameter: the tensor's node; anything else is passed over.
            dimension: of the tensor.
            ids: the channels along it.
            read: whether the layer sums over them, as over its input channels.
        """
        if not isinstance(parameter, fx.Node) or parameter not in self.state_names:
            return
        self._known_uses.add((parameter, self._current))
        key = (self.state_names[parameter], dimension)
        if key in self.found.axes:
            self.found.ids.unite(self.found.axes[key], ids)
        else:
            self.found.axes[key] = ids
        if read:
            self.found.reads.add(key)

    def layer(
        self,
        node: fx.Node,
        kind: LayerKind,
        inputs: Ids,
        outputs: Ids,
        *,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        """Record an operation that costs something."""
        source = node.args[0]
        first = source[0] if isinstance(source, (list, tuple)) else source
        images = (shape(first) or (self._batch,))[0] / self._batch
        sizes = size_of(first), size_of(node)
        self.found.layers.append(
            RawLayer(self.owner(node), kind, inputs, outputs, kernel, stride, *sizes, groups, images)
        )

    def unknown(self, node: fx.Node) -> Value:
        """Pin all channels that an operation without a rule touches; its own are new, and pinned too."""
        touched = [ids for source in node.all_input_nodes if (ids := self._values.get(source)) is not None]
        from_state = any(source in self.state_names for source in node.all_input_nodes)
        if not touched and not (from_state and shape(node)):
            return None
        name = operation(node)
        self.found.uncounted[name] += 1
        reason = f"{name} in {self.owner(node)}"
        for value in touched:
            for ids in value if isinstance(value, list) else [value]:
                self.found.ids.pin(ids, reason)
        return self._pinned(node, reason)

    # -- inputs, outputs and other uses of state tensors -------------------------------------------

    def _pinned(self, node: fx.Node, reason: str) -> Value:
        value = node.meta.get("val")
        if isinstance(value, (list, tuple)):
            widths = [item.shape[1] if item.ndim >= 2 else 0 for item in value]
            return [self.new(width, self.owner(node), reason) for width in widths]
        size = shape(node)
        return self.new(size[1], self.owner(node), reason) if len(size) >= 2 else None

    def _pin_outputs(self) -> None:
        outputs = [spec for spec in self._exported.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
        by_name = {node.name: node for node in self._exported.graph.nodes}
        tree = self._exported.call_spec.out_spec
        assert tree is not None
        paths, _ = torch.utils._pytree.tree_flatten_with_path(tree.unflatten([spec.arg.name for spec in outputs]))
        for path, name in paths:
            keys = {getattr(entry, "key", None) for entry in path}
            value = self.value(by_name.get(name))
            if isinstance(value, np.ndarray) and not keys & self._free_outputs:
                self.found.ids.pin(value, "network output")

    def _pin_other_uses(self) -> None:
        """Pin the channels of a state tensor that something else than a layer uses too, such as a tied embedding."""
        for source, name in self.state_names.items():
            for user in source.users:
                if (source, user) in self._known_uses:
                    continue
                for ids in [ids for (tensor, _), ids in self.found.axes.items() if tensor == name]:
                    self.found.ids.pin(ids, f"{operation(user)} in {self.owner(user)} uses {name}")


def first_names(module: nn.Module) -> dict[str, str]:
    """Return the name of every submodule, parameter and buffer → the first name under which the same object is known.

    These are the names that ``named_modules``, ``named_parameters`` and ``named_buffers`` give by default.
    """
    named = [
        *module.named_modules(remove_duplicate=False),
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(each), name) for name, each in named}
