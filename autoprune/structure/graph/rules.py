"""Define one rule per kind of operation: how it passes channels on; all are in ``RULES``."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import fx

from autoprune.arrays import Ids
from autoprune.structure.graph.types import LayerKind
from autoprune.structure.graph.walk import Value, Walk, argument, operation, pair, shape

WIDTH_ATTRIBUTES = ("c", "c_", "hidden_channels")
"""Names under which modules keep the width of a piece that their forward pass splits off (Ultralytics' C2f: ``c``)."""


# -- layers with parameters ------------------------------------------------------------------------


def conv2d(walk: Walk, node: fx.Node) -> Value:
    """A convolution makes new channels, a depthwise one passes them on (each as often as it has filters for it).

    Any other grouped one pins.
    """
    inputs, weight, groups = walk.input(node), argument(node, 1), int(argument(node, 6, 1))
    if inputs is None or weight not in walk.state_names:
        return walk.unknown(node)
    width, _, *kernel = shape(weight)
    if groups == 1:
        outputs, kind = walk.new(width, walk.owner(node)), LayerKind.CONV
        walk.axis(weight, 1, inputs, read=True)
    elif groups == len(inputs):
        outputs, kind = np.repeat(inputs, width // groups), LayerKind.DEPTHWISE
    else:
        reason = f"grouped convolution {walk.owner(node)}"
        outputs, kind = walk.new(width, walk.owner(node), reason), LayerKind.CONV
        walk.found.ids.pin(inputs, reason)
    walk.axis(weight, 0, outputs)
    walk.axis(argument(node, 2), 0, outputs)
    walk.layer(node, kind, inputs, outputs, kernel=pair(kernel), stride=pair(argument(node, 3, 1)), groups=groups)
    return outputs


def conv_transpose2d(walk: Walk, node: fx.Node) -> Value:
    """A transposed convolution makes new channels; its weight has them second."""
    inputs, weight = walk.input(node), argument(node, 1)
    if inputs is None or weight not in walk.state_names or int(argument(node, 6, 1)) != 1:
        return walk.unknown(node)
    _, width, *kernel = shape(weight)
    outputs = walk.new(width, walk.owner(node))
    walk.axis(weight, 0, inputs, read=True)
    walk.axis(weight, 1, outputs)
    walk.axis(argument(node, 2), 0, outputs)
    walk.layer(node, LayerKind.TRANSPOSED, inputs, outputs, kernel=pair(kernel), stride=pair(argument(node, 3, 1)))
    return outputs


def linear(walk: Walk, node: fx.Node) -> Value:
    """A linear layer on (B, C) makes new channels."""
    inputs, weight = walk.input(node), argument(node, 1)
    if inputs is None or weight not in walk.state_names or len(shape(node)) != 2:
        return walk.unknown(node)
    outputs = walk.new(shape(weight)[0], walk.owner(node))
    walk.axis(weight, 0, outputs)
    walk.axis(weight, 1, inputs, read=True)
    walk.axis(argument(node, 2), 0, outputs)
    walk.layer(node, LayerKind.LINEAR, inputs, outputs)
    return outputs


def batch_norm(walk: Walk, node: fx.Node) -> Value:
    """Batch norm, or one of each image, passes channels on and has up to four numbers for each."""
    inputs = walk.input(node)
    if inputs is None:
        return walk.unknown(node)
    for source in node.args[1:5]:
        walk.axis(source, 0, inputs)
    if not any(node.args[1:5]) and hasattr(walk.module.get_submodule(walk.owner(node)), "num_features"):
        walk.found.attributes.append((walk.owner(node), "num_features", inputs))  # no tensor says how many
    walk.layer(node, LayerKind.NORM, inputs, inputs)
    return inputs


def prelu(walk: Walk, node: fx.Node) -> Value:
    """PReLU passes channels on and may have one slope for each."""
    inputs, weight = walk.input(node), argument(node, 1)
    if inputs is not None and shape(weight) == (len(inputs),):
        walk.axis(weight, 0, inputs)
    return elementwise(walk, node)


# -- what passes channels on -----------------------------------------------------------------------


def forward(walk: Walk, node: fx.Node) -> Value:
    """Pass channels on at no cost."""
    return walk.input(node)


def nothing(walk: Walk, node: fx.Node) -> Value:
    """Compute nothing: a check of a tensor's type, as torch.export writes it before a cast."""
    return None


def elementwise(walk: Walk, node: fx.Node) -> Value:
    """Pass channels on; what it costs depends on the number of elements."""
    inputs = walk.input(node)
    if inputs is not None:
        walk.layer(node, LayerKind.ELEMENTWISE, inputs, inputs)
    return inputs


def pool(walk: Walk, node: fx.Node) -> Value:
    """Average pooling of images passes channels on; what has no batch is pooled over its second dimension."""
    inputs = walk.input(node)
    if inputs is None or not _has_images(node):
        return walk.unknown(node)
    window = (1, 1) if operation(node).startswith("adaptive") else pair(argument(node, 1))
    walk.layer(node, LayerKind.POOL, inputs, inputs, kernel=window)
    return inputs


def max_pool(walk: Walk, node: fx.Node) -> Value:
    """Maxima of images pass channels on."""
    return elementwise(walk, node) if _has_images(node) else walk.unknown(node)


def adaptive_max_pool(walk: Walk, node: fx.Node) -> Value:
    """Maxima pass channels on, and so do the places that they are found at."""
    found = max_pool(walk, node)
    return [found, found] if isinstance(found, np.ndarray) else found


def _has_images(node: fx.Node) -> bool:
    """Return whether a node reads a tensor of shape (B, C, H, W)."""
    return len(shape(node.args[0])) == 4


def power(walk: Walk, node: fx.Node) -> Value:
    """A power with one exponent for all passes channels on; an exponent for each is as a factor for each."""
    return elementwise(walk, node) if math.prod(shape(argument(node, 1))) == 1 else binary(walk, node)


def greater(walk: Walk, node: fx.Node) -> Value:
    """The larger or smaller numbers of two tensors; those of one, along a dimension, are another operation."""
    return binary(walk, node) if shape(argument(node, 1)) else walk.unknown(node)


def cut(walk: Walk, node: fx.Node) -> Value:
    """A part of the image passes channels on; a part of the channels or of the batch does not."""
    behind = int(argument(node, 1, 0)) % len(shape(node)) >= 2
    return forward(walk, node) if behind or shape(node) == shape(node.args[0]) else walk.unknown(node)


def upsample(walk: Walk, node: fx.Node) -> Value:
    """Interpolation passes channels on."""
    inputs = walk.input(node)
    if inputs is not None:
        walk.layer(node, LayerKind.UPSAMPLE, inputs, inputs)
    return inputs


def mean(walk: Walk, node: fx.Node) -> Value:
    """A mean over the image passes channels on; one over batch or channels does not."""
    dims, rank = argument(node, 1), len(shape(node.args[0]))
    return elementwise(walk, node) if dims and all(dim % rank >= 2 for dim in dims) else walk.unknown(node)


def pad(walk: Walk, node: fx.Node) -> Value:
    """Padding the image passes channels on."""
    sides, rank = len(argument(node, 1)), len(shape(node))
    return elementwise(walk, node) if sides <= 2 * (rank - 2) else walk.unknown(node)


def binary(walk: Walk, node: fx.Node) -> Value:
    """Two tensors of one shape unite their channels; what is the same for all channels leaves them alone."""
    rank = len(shape(node))
    operands = [argument(node, position) for position in (0, 1)]
    left, right = (_operand(walk, operand, node) for operand in operands)
    sizes = [shape(operand) for operand in operands]
    if left is not None and right is not None and len(left) == len(right) and all(map(len, sizes)):
        walk.found.ids.unite(left, right)
        walk.layer(node, LayerKind.ELEMENTWISE, left, left)
        return left
    for value, other, at in ((left, right, 1), (right, left, 0)):
        strange = other is None and walk.value(operands[at]) is not None  # channels in another dimension
        if value is not None and not strange and _same_for_all(sizes[at], rank):
            if other is not None:
                walk.found.ids.pin(other, f"one channel for all in {walk.owner(node)}")
            return value
    return walk.unknown(node)


def _operand(walk: Walk, operand: object, node: fx.Node) -> Ids | None:
    """Return an operand's channels; a parameter or buffer of shape (1, C, 1, 1) or (C, 1, 1) has its own."""
    size, rank = shape(operand), len(shape(node))
    known = walk.value(operand)
    if isinstance(known, np.ndarray):
        return known if len(size) == rank else None
    dimension = len(size) - rank + 1
    if operand not in walk.state_names or dimension not in (0, 1) or rank < 2:
        return None
    if size[dimension] == 1 or math.prod(size) != size[dimension]:
        return None
    ids = walk.new(size[dimension], walk.owner(node))
    walk.axis(operand, dimension, ids)
    return ids


def _same_for_all(size: tuple[int, ...], rank: int) -> bool:
    """Return whether a tensor of this size is broadcast over the channels of one of that rank."""
    return len(size) < rank - 1 or not size or size[len(size) - rank + 1] == 1


# -- what joins, splits and reshapes ---------------------------------------------------------------


def getitem(walk: Walk, node: fx.Node) -> Value:
    """Take one tensor of a list."""
    source, index = walk.value(node.args[0]), node.args[1]
    return source[index] if isinstance(source, list) and isinstance(index, int) else None


def cat(walk: Walk, node: fx.Node) -> Value:
    """Along channels they are joined; along any other dimension the tensors unite theirs."""
    sources = node.args[0]
    assert isinstance(sources, (list, tuple))
    values = [walk.value(source) for source in sources]
    parts = [value for value in values if isinstance(value, np.ndarray)]
    if len(parts) < len(values):
        return walk.unknown(node)
    if int(argument(node, 1, 0)) % len(shape(node)) == 1:
        joined: Ids = np.concatenate(parts)
        walk.layer(node, LayerKind.ELEMENTWISE, joined, joined)
        return joined
    if any(len(part) != len(parts[0]) for part in parts):
        return walk.unknown(node)
    for part in parts[1:]:
        walk.found.ids.unite(parts[0], part)
    return parts[0]


def chunk(walk: Walk, node: fx.Node) -> Value:
    """Cut channels into pieces of equal number."""
    return _in_steps(walk, node, lambda width: math.ceil(width / int(argument(node, 1))))


def split_with_sizes(walk: Walk, node: fx.Node) -> Value:
    """Cut channels into pieces whose sizes a module's attribute gives; if none does, they are constants and pin."""
    inputs = _along_channels(walk, node)
    if inputs is None:
        return walk.unknown(node)
    sizes = [int(size) for size in argument(node, 1)]
    pieces = _split(walk, node, inputs, np.cumsum(sizes)[:-1].tolist())
    known = {len(ids) for path, _, ids in walk.found.attributes if path == walk.owner(node)}
    if not set(sizes) <= known:
        walk.found.ids.pin(inputs, f"split into fixed sizes in {walk.owner(node)}")
    return pieces


def split(walk: Walk, node: fx.Node) -> Value:
    """Cut channels into pieces of a size that the network computes; the check of values finds one that is constant."""
    return _in_steps(walk, node, lambda _: int(argument(node, 1)))


def _in_steps(walk: Walk, node: fx.Node, step_of: Callable[[int], int]) -> Value:
    """Cut channels into pieces of one size, which follows from their number."""
    inputs = _along_channels(walk, node)
    if inputs is None:
        return walk.unknown(node)
    step = step_of(len(inputs))
    return _split(walk, node, inputs, list(range(step, len(inputs), step)))


def _along_channels(walk: Walk, node: fx.Node) -> Ids | None:
    rank = len(shape(node.args[0]))
    return walk.input(node) if rank and int(argument(node, 2, 0)) % rank == 1 else None


def _split(walk: Walk, node: fx.Node, inputs: Ids, cuts: list[int]) -> list[Ids]:
    """Record the pieces, and the attributes of the owning module that repeat their width."""
    pieces: list[Ids] = np.split(inputs, cuts)
    if len({len(piece) for piece in pieces}) > 1:
        walk.found.ids.pin(inputs, f"split into unequal pieces in {walk.owner(node)}")
    walk.found.splits.append(tuple(pieces))
    module = walk.module.get_submodule(walk.owner(node))
    for name in WIDTH_ATTRIBUTES:
        value = getattr(module, name, None)
        if type(value) is int and value == len(pieces[0]):
            walk.found.attributes.append((walk.owner(node), name, pieces[0]))
    return pieces


def flatten(walk: Walk, node: fx.Node) -> Value:
    """(B, C, H, W) → (B, C·H·W) repeats every channel; a flatten that leaves dimension 1 alone passes them on."""
    inputs, before, after = walk.input(node), shape(node.args[0]), shape(node)
    if inputs is None or len(after) < 2 or before[0] != after[0]:
        return walk.unknown(node)
    return np.repeat(inputs, after[1] // len(inputs))


def reshaped(walk: Walk, node: fx.Node) -> Value:
    """What changes only dimensions behind the channels passes them on: (B, C) ↔ (B, C, 1, 1) → (B, C, H, W)."""
    inputs, before, after = walk.input(node), shape(node.args[0]), shape(node)
    same = len(after) >= 2 and before[:2] == after[:2]
    return inputs if inputs is not None and same and len(inputs) == after[1] else walk.unknown(node)


def view(walk: Walk, node: fx.Node) -> Value:
    """A view to (B, −1) flattens; a vector parameter viewed as (1, C, 1, 1) has channels; others may be `reshaped`."""
    source, before, after = node.args[0], shape(node.args[0]), shape(node)
    if len(after) == 2 and argument(node, 1)[-1] == -1:
        return flatten(walk, node)
    vector = len(before) == 1 and len(after) >= 2 and after[1] == before[0] == math.prod(after)
    if isinstance(source, fx.Node) and source in walk.state_names and vector:
        ids = walk.new(before[0], walk.state_names[source])
        walk.axis(source, 0, ids)
        return ids
    return reshaped(walk, node)


_FORWARD = "clone contiguous detach alias dropout feature_dropout alpha_dropout to _to_copy type_as lift_fresh_copy"
_ELEMENTWISE = (
    "silu relu relu6 hardtanh leaky_relu elu selu gelu mish hardswish hardsigmoid sigmoid tanh softplus abs neg exp "
    "sqrt rsqrt square reciprocal log log1p erf sin cos clamp clamp_min clamp_max logsigmoid softsign celu "
    "upsample_nearest2d _upsample_nearest_exact2d"
)
_BINARY = "add sub rsub mul div maximum minimum"

RULES: dict[str, Callable[[Walk, fx.Node], Value]] = {
    **dict.fromkeys(_FORWARD.split(), forward),
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(_BINARY.split(), binary),
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d"), pool),
    "max_pool2d": max_pool,
    "adaptive_max_pool2d": adaptive_max_pool,
    **dict.fromkeys(("upsample_bilinear2d", "upsample_bicubic2d"), upsample),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    **dict.fromkeys(("view", "reshape"), view),
    **dict.fromkeys(("unsqueeze", "squeeze", "unflatten", "expand", "expand_as"), reshaped),
    **dict.fromkeys(("max", "min"), greater),
    "pow": power,
    "slice": cut,
    "_assert_tensor_metadata": nothing,
    "conv2d": conv2d,
    "conv_transpose2d": conv_transpose2d,
    "linear": linear,
    **dict.fromkeys(("batch_norm", "instance_norm"), batch_norm),
    "prelu": prelu,
    "mean": mean,
    "getitem": getitem,
    "cat": cat,
    "chunk": chunk,
    "split": split,
    "split_with_sizes": split_with_sizes,
    "flatten": flatten,
}
"""Operation name, as exported, → what it does to channels."""
