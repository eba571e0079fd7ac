"""Reading the nodes of an exported network."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

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
    """Return the shape of a node's tensor; () where it is no tensor, or one without dimensions."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def size_of(node: object) -> tuple[int, int]:
    """Return height and width of a node's images, (1, 1) where it has none."""
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
