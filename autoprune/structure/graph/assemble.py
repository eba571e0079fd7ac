"""Assemble groups, units and axes from the findings of the walk."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from autoprune.arrays import Ids
from autoprune.structure.graph.types import Activation, ChannelGraph, Group, Layer, Unit, WidthAttribute
from autoprune.structure.graph.walk import ChannelIds, Findings, RawActivation


def assemble(found: Findings) -> ChannelGraph:
    """Form groups (channels with the same memberships) and units (groups tied by splits), and number the channels."""
    interner = _Axes(found.ids)
    tensor_axes = {key: interner.add(ids) for key, ids in found.axes.items()}
    layer_axes = [(interner.add(layer.inputs), interner.add(layer.outputs)) for layer in found.layers]
    attribute_axes = [interner.add(ids) for _, _, ids in found.attributes]
    split_axes = [tuple(interner.add(piece) for piece in pieces) for pieces in found.splits]
    counted = defaultdict[tuple[str, str], list[int]](list)
    for (path, name, _), axis in zip(found.attributes, attribute_axes, strict=True):
        counted[path, name].append(axis)
    split_axes += map(tuple, counted.values())  # what one number counts stays equal, as the pieces of a split do

    members = _form_groups(found.ids, interner.roots)
    group_of = {root: index for index, roots in enumerate(members) for root in roots}
    pins = [found.ids.pinned(roots[0]) for roots in members]
    owner = _tie(split_axes, interner.roots, group_of, members, pins)

    groups, number, offset = [], {}, 0
    for index, roots in enumerate(members):
        groups.append(Group(_layer_name(found.ids.producer(roots[0])), offset, len(roots), pins[index]))
        number.update({root: offset + position for position, root in enumerate(roots)})
        offset += len(roots)
    tensors: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for (name, dimension), axis in tensor_axes.items():
        tensors[name].append((dimension, axis))
    return ChannelGraph(
        groups=tuple(groups),
        units=_units(tuple(groups), owner),
        axes=tuple(np.array([number[root] for root in roots], dtype=np.int64) for roots in interner.roots),
        tensors={name: tuple(sorted(pairs)) for name, pairs in tensors.items()},
        layers=tuple(
            Layer(raw.name, raw.kind, *axes, raw.kernel, raw.stride, raw.in_hw, raw.out_hw, raw.groups, raw.images)
            for raw, axes in zip(found.layers, layer_axes, strict=True)
        ),
        attributes=tuple(
            WidthAttribute(module, name, axis)
            for (module, name, _), axis in zip(found.attributes, attribute_axes, strict=True)
        ),
        uncounted=dict(found.uncounted),
        reads=frozenset(found.reads),
        activations=tuple(_held(raw, found.ids, group_of, groups) for raw in found.activations),
    )


def _held(raw: RawActivation, ids: ChannelIds, group_of: dict[int, int], groups: list[Group]) -> Activation:
    """Return a tensor with its numbers by group; channels that no layer has are fixed."""
    if raw.ids is None:
        return Activation((), raw.numbers, raw.first, raw.last)
    counts = Counter(group_of.get(int(root)) for root in ids.roots(raw.ids))
    fixed = raw.numbers * counts.pop(None, 0)
    shares = tuple(
        (index, raw.numbers * count / groups[index].size) for index, count in counts.items() if index is not None
    )
    return Activation(shares, fixed, raw.first, raw.last)


class _Axes:
    """Axes as runs of representatives, each kept once."""

    def __init__(self, ids: ChannelIds) -> None:
        self._ids = ids
        self._known: dict[bytes, int] = {}
        self.roots: list[tuple[int, ...]] = []

    def add(self, ids: Ids) -> int:
        roots = self._ids.roots(ids)
        key = roots.tobytes()
        if key not in self._known:
            self._known[key] = len(self.roots)
            self.roots.append(tuple(roots.tolist()))
        return self._known[key]


def _form_groups(ids: ChannelIds, axes: list[tuple[int, ...]]) -> list[list[int]]:
    """Return the representatives of each group, groups and channels in the order of the forward pass."""
    memberships: dict[int, list[int]] = defaultdict(list)
    for axis, roots in enumerate(axes):
        for root in roots:
            memberships[root].append(axis)
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for root in sorted(memberships):
        groups[(ids.pinned(root), *memberships[root])].append(root)
    return list(groups.values())


def _tie(
    splits: list[tuple[int, ...]],
    axes: list[tuple[int, ...]],
    group_of: dict[int, int],
    members: list[list[int]],
    pins: list[str | None],
) -> list[int]:
    """Tie groups whose counts must stay equal; returns per group its unit's representative group.

    The pieces of a split must keep equal sums, so pieces are compared as lists of groups: equal sizes in order tie,
    anything else pins.
    """
    owner = list(range(len(members)))

    def find(index: int) -> int:
        while owner[index] != index:
            index = owner[index]
        return index

    for pieces in splits:
        counted = [Counter(group_of[root] for root in axes[piece]) for piece in pieces]
        sizes = [[(len(members[group]), times) for group, times in piece.items()] for piece in counted]
        if any(size != sizes[0] for size in sizes):
            for group in {group for piece in counted for group in piece}:
                pins[group] = pins[group] or "pieces of a split that do not correspond"
            continue
        for piece in counted[1:]:
            for one, other in zip(counted[0], piece, strict=True):
                first, second = sorted((find(one), find(other)))
                owner[second] = first
    for reason, index in [(pins[index], index) for index in range(len(members))]:
        if reason is not None and pins[find(index)] is None:
            pins[find(index)] = reason
    for index in range(len(members)):
        pins[index] = pins[index] or pins[find(index)]
    return [find(index) for index in range(len(members))]


def _units(groups: tuple[Group, ...], owner: list[int]) -> tuple[Unit, ...]:
    """Collect groups into units; two units with one first layer are distinguished by their channels."""
    collected: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        if group.pinned is None:
            collected[owner[index]].append(index)
    names = Counter(groups[first].name for first in collected)
    taken: Counter[str] = Counter()
    units = []
    for first, indices in collected.items():
        name = groups[first].name
        taken[name] += 1
        unique = name if names[name] == 1 else f"{name}#{taken[name]}"
        units.append(Unit(unique, groups[first].size, tuple(indices)))
    return tuple(units)


def _layer_name(path: str) -> str:
    """Name a layer as users do: Ultralytics' ``Conv`` wrapper by its own path, not its inner ``conv``."""
    return path.removesuffix(".conv")
