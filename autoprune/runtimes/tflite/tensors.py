"""Tensors of a network while it is written: in the order that an operation wants, as numbers or integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.arrays import AnyArray
from autoprune.runtimes.tflite.file import File
from autoprune.runtimes.tflite.network import Network, Node, Scale

TO_LAST = (0, 2, 3, 1)
"""Order of dimensions with the channels last, in terms of ONNX's, which has them second."""

_FROM_LAST = (0, 3, 1, 2)

_KEEP_SCALE = ("MaxPool", "Concat", "Resize", "Slice", "Split", "Reshape", "Transpose", "Flatten", "Squeeze")
"""Operations whose int8 inputs and outputs must have one scale."""

_SHARES = Scale(np.array(1 / 256, dtype=np.float32), np.array(-128, dtype=np.int8))
"""The scale that the runtime demands of a sigmoid's outputs."""


class Tensors:
    """Makes tensors in a file as operations ask for them.

    Every tensor of ONNX exists in up to four forms: with channels last or second, int8 or float. The first is made by
    the operation that computes it; others are derived when they are asked for.

    Args:
        network: where shapes, constants and scales are from.
        file: where to.
    """

    def __init__(self, network: Network, file: File) -> None:
        self.network = network
        self.file = file
        self._made: dict[tuple[str, bool, bool], int] = {}
        _unify(network)

    def source(self, name: str) -> str:
        """Return the tensor that a name stands for, after rounding is left out."""
        return self.network.restored.get(name, name)

    def shape(self, name: str, last: bool = False) -> tuple[int, ...]:
        """Return a tensor's shape; with channels last if asked."""
        shape = self.network.shapes[self.source(name)]
        return tuple(shape[axis] for axis in TO_LAST) if last else shape

    def is_last(self, names: Sequence[str]) -> bool:
        """Return whether an operation on these tensors is best done with channels last: one exists so."""
        rest = [self.source(name) for name in names if name and name not in self.network.constants]
        exists = any((name, integer, True) in self._made for name in rest for integer in (False, True))
        return exists and all(len(self.shape(name)) == 4 for name in rest)

    def are_integers(self, node: Node) -> bool:
        """Return whether an operation's inputs and outputs are all quantised."""
        network = self.network
        rest = [name for name in node.inputs if name and name not in network.constants]
        return all(name in network.scales for name in node.outputs) and all(
            name in network.restored and network.restored[name] in network.scales for name in rest
        )

    def add(self, name: str, *, integer: bool, last: bool) -> int:
        """Make the tensor that an operation computes."""
        scale = self.network.scales[name] if integer else None
        number = self.file.tensor(name, self.shape(name, last), dtype=np.int8 if integer else np.float32, scale=scale)
        self._made[name, integer, last] = number
        return number

    def get(self, name: str, *, integer: bool = False, last: bool = False, scale: Scale | None = None) -> int:
        """Return a tensor in a form; an int8 one in the scale, if one is given."""
        source = self.source(name)
        key = (source, integer, last)
        if key not in self._made:
            if source in self.network.constants:
                self._made[key] = self._constant(source, integer, last)
            else:
                self._derive(source, integer, last)
        if not integer or scale in (None, self.network.scales[source]):
            return self._made[key]
        number = self.file.tensor(f"{source}/rescaled", self.shape(source, last), dtype=np.int8, scale=scale)
        self.file.operate("QUANTIZE", [self._made[key]], [number], "Quantize")
        return number

    def transposed(self, number: int, name: str, order: Sequence[int], to: int) -> None:
        """Add a transposition of a tensor."""
        self.file.operate("TRANSPOSE", [number, self.integers(f"{name}/order", order)], [to], "Transpose")

    def integers(self, name: str, values: Sequence[int] | AnyArray) -> int:
        """Add a constant of 32-bit integers, as arguments of operations are."""
        return self.file.constant(name, np.asarray(values, dtype=np.int32))

    def _constant(self, name: str, integer: bool, last: bool) -> int:
        """Add a constant; for an operation with channels last, with four dimensions."""
        network = self.network
        values = network.integers[name] if integer else network.constants[name]
        if last:
            values = values.reshape((1,) * (4 - values.ndim) + values.shape).transpose(TO_LAST)
        narrow = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}.get(values.dtype)
        values = values if narrow is None else values.astype(narrow)
        return self.file.constant(name, values, scale=network.scales[name] if integer else None)

    def _derive(self, name: str, integer: bool, last: bool) -> None:
        """Make a form of a tensor from another."""
        other = self._made.get((name, integer, not last))
        if other is not None:
            self.transposed(other, name, TO_LAST if last else _FROM_LAST, self.add(name, integer=integer, last=last))
            return
        same = (name, not integer, last)
        if same not in self._made:
            self._derive(name, not integer, last)
        made = self._made[same]
        kind = "QUANTIZE" if integer else "DEQUANTIZE"
        self.file.operate(kind, [made], [self.add(name, integer=integer, last=last)], kind.capitalize())


def _unify(network: Network) -> None:
    """Give tensors that must have one scale that of all their numbers."""
    groups: dict[str, list[str]] = {name: [name] for name in network.scales if name not in network.constants}
    for node in network.nodes:
        names = [network.restored.get(name, name) for name in (*node.inputs, *node.outputs)]
        if node.kind in _KEEP_SCALE and all(name in groups for name in names if name not in network.constants):
            joined = list(dict.fromkeys(one for name in names if name in groups for one in groups[name]))
            groups.update((name, joined) for name in joined)
    network.scales.update(
        {name: Scale.covering([network.scales[one] for one in group]) for name, group in groups.items() if group[1:]}
    )
    for node in network.nodes:
        if node.kind == "Sigmoid" and node.outputs[0] in groups:
            network.scales[node.outputs[0]] = _SHARES
