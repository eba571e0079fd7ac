"""Find which tensors of a forward pass are held at the same time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import fx

from autoprune.structure.graph.walk import RawActivation, Value, operation, shape

_VIEWS = (
    *("getitem", "chunk", "split", "split_with_sizes", "slice", "select", "unbind", "detach", "alias", "expand"),
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t"),
)
_IN_PLACE = ("batch_norm", "dropout", "relu", "relu6", "hardtanh", "clone", "contiguous")
"""Operations that runtimes fold into the layer before, or compute where their input was."""


def activations(nodes: Iterable[fx.Node], value: Callable[[object], Value], batch: int) -> list[RawActivation]:
    """Return the tensors of images that a forward pass makes; views and work in place share what they read.

    Args:
        nodes: the operations, in order.
        value: returns the channel ids of a node, see `Walk.value`.
        batch: images of the traced input.
    """
    of_images: set[fx.Node] = set()  # computed from the input
    storage: dict[fx.Node, fx.Node] = {}
    first: dict[fx.Node, int] = {}
    last: dict[fx.Node, int] = {}
    for number, node in enumerate(nodes):
        held = [source for source in node.all_input_nodes if source in storage]
        last.update({storage[source]: number for source in held})
        if of_images.intersection(node.all_input_nodes) or (node.op == "placeholder" and value(node) is not None):
            of_images.add(node)
        if held and _shares(node, held):
            storage[node] = storage[held[0]]
        elif node in of_images and _is_held(node):
            storage[node] = node
            first[node] = last[node] = number
    return [_raw(node, value(node), batch, first[node], last[node]) for node in first]


def _shares(node: fx.Node, held: list[fx.Node]) -> bool:
    """Return whether a node's tensor lies where its first input does."""
    name = operation(node)
    alone = len(held) == 1 and len(held[0].users) == 1 and shape(node) == shape(held[0])
    return name in _VIEWS or (name in _IN_PLACE and alone)


def _is_held(node: fx.Node) -> bool:
    tensor = node.meta.get("val")
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and node.op != "output"


def _raw(node: fx.Node, ids: Value, batch: int, first: int, last: int) -> RawActivation:
    sizes = shape(node)
    numbers = math.prod(sizes) / batch
    if isinstance(ids, np.ndarray) and len(sizes) > 1 and len(ids) == sizes[1] > 0:
        return RawActivation(ids, numbers / sizes[1], first, last)
    return RawActivation(None, numbers, first, last)
