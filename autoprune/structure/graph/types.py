"""Describe what the analysis of a network finds: channel groups, units, axes, layers; join units in proportion."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from autoprune.arrays import Ids, Mask


class LayerKind(Enum):
    """What a layer computes, as far as its cost is concerned."""

    CONV = "conv"
    DEPTHWISE = "depthwise"
    TRANSPOSED = "transposed conv"
    LINEAR = "linear"
    NORM = "norm"
    POOL = "pool"
    UPSAMPLE = "upsample"
    ELEMENTWISE = "elementwise"


MIXING = (LayerKind.CONV, LayerKind.TRANSPOSED, LayerKind.LINEAR)
"""Layers that make channels out of others; a depthwise one only passes them on."""


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together, index by index.

    Attributes:
        name: the first layer that produces them.
        offset: global number of the first channel; the group's channels are ``offset … offset + size - 1``.
        size: number of channels in the dense network.
        pinned: why no channel may be removed, or None.
    """

    name: str
    offset: int
    size: int
    pinned: str | None = None

    @property
    def span(self) -> slice:
        """Where its channels are among all of the graph."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Unit:
    """Groups that keep the same share of their channels: one decision of the search.

    As the analysis finds them, all groups of a unit are equally wide and keep the same number; `tie` also joins
    groups of other widths.

    Attributes:
        name: the first producing layer, e.g. ``model.2.cv1``.
        width: channels of its first group in the dense network; no group is wider.
        groups: indices into ``ChannelGraph.groups``.
        least: the fewest channels that its first group may keep.
    """

    name: str
    width: int
    groups: tuple[int, ...]
    least: int = 1


@dataclass(frozen=True)
class Layer:
    """One operation, with what its cost depends on.

    Attributes:
        name: path of the module that runs it.
        kind: what it computes.
        in_axis: index into ``ChannelGraph.axes`` of the input's channels.
        out_axis: the same for the output.
        kernel: kernel height and width.
        stride: vertical and horizontal stride.
        in_hw: height and width of the input.
        out_hw: height and width of the output.
        groups: convolution groups of the dense layer (a depthwise one has as many as it reads channels).
        images: how many it computes for one of the network's input: 4 if that is cut into quarters.
    """

    name: str
    kind: LayerKind
    in_axis: int
    out_axis: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    in_hw: tuple[int, int] = (1, 1)
    out_hw: tuple[int, int] = (1, 1)
    groups: int = 1
    images: float = 1.0


@dataclass(frozen=True)
class Activation:
    """A tensor that one forward pass makes and keeps until its last reader has run.

    Attributes:
        groups: numbers of one image per kept channel of a group, by the group's index.
        fixed: numbers of one image that no group decides.
        first: the operation that makes it.
        last: the last operation that reads it, or a view of it.
    """

    groups: tuple[tuple[int, float], ...]
    fixed: float
    first: int
    last: int


@dataclass(frozen=True)
class WidthAttribute:
    """A plain number on a module that repeats a channel count, e.g. ``C2f.c``.

    Attributes:
        module: path of the module.
        attribute: its name.
        axis: index into ``ChannelGraph.axes`` of the channels that it counts.
    """

    module: str
    attribute: str
    axis: int


@dataclass(frozen=True)
class ChannelGraph:
    """The channel groups of a network and where they live.

    Attributes:
        groups: all groups, pinned ones too; their channels are numbered without gaps.
        units: what may be decided, in the order of the forward pass; no pinned group is in any.
        axes: per axis, the global channel number at each position; tensors share axes.
        tensors: state-dict name → ((dimension, axis), …); absent tensors never change. One that several modules share
            has the first of its names, as in ``named_parameters``.
        layers: operations that cost something, in the order of the forward pass.
        attributes: plain numbers to be kept in step.
        uncounted: operations whose cost no layer describes, with how often each occurs.
        reads: (state-dict name, dimension) of the weights that read channels: with zeros there the network computes
            what it does without these channels.
        activations: the tensors of one forward pass, in order.
    """

    groups: tuple[Group, ...]
    units: tuple[Unit, ...]
    axes: tuple[Ids, ...]
    tensors: Mapping[str, tuple[tuple[int, int], ...]]
    layers: tuple[Layer, ...]
    attributes: tuple[WidthAttribute, ...]
    uncounted: Mapping[str, int] = field(default_factory=dict)
    reads: frozenset[tuple[str, int]] = frozenset()
    activations: tuple[Activation, ...] = ()

    @property
    def channels(self) -> int:
        """Number of channels over all groups."""
        return sum(group.size for group in self.groups)

    @property
    def prunable(self) -> Mask:
        """Which channels belong to a unit, shape (channels,)."""
        found = np.zeros(self.channels, dtype=np.bool_)
        for unit in self.units:
            for index in unit.groups:
                found[self.groups[index].span] = True
        return found

    def restricted(self, keep: Mask) -> ChannelGraph:
        """Return the graph of the smaller network that surgery makes of the kept channels.

        Args:
            keep: shape (channels,), true where a channel stays; every group keeps some, a unit's the same share.
        """
        sizes = [int(np.count_nonzero(keep[group.span])) for group in self.groups]
        offsets = np.cumsum([0, *sizes])
        numbers = np.cumsum(keep) - 1
        axes = tuple(numbers[axis[keep[axis]]] for axis in self.axes)
        return replace(
            self,
            groups=tuple(
                replace(group, offset=int(offset), size=size)
                for group, offset, size in zip(self.groups, offsets, sizes, strict=False)
            ),
            units=tuple(replace(unit, width=sizes[unit.groups[0]]) for unit in self.units),
            axes=axes,
            layers=tuple(
                replace(layer, groups=len(axes[layer.in_axis])) if layer.kind is LayerKind.DEPTHWISE else layer
                for layer in self.layers
            ),
        )

    def pin(self, reasons: Mapping[str, str]) -> ChannelGraph:
        """Return the graph with the named units pinned, each for its reason."""
        pinned = {index: reasons[unit.name] for unit in self.units if unit.name in reasons for index in unit.groups}
        groups = tuple(
            replace(group, pinned=pinned.get(index, group.pinned)) for index, group in enumerate(self.groups)
        )
        return replace(self, groups=groups, units=tuple(unit for unit in self.units if unit.name not in reasons))


Place = tuple[str, int]
"""A tensor of the network and one of its dimensions: where channels are."""


@dataclass(frozen=True)
class Tie:
    """Widths that keep the proportions that they have in the dense network.

    Attributes:
        places: where these widths are.
        least: the fewest channels that the widest of them may keep.
        pinned: why they must all stay as they are, or None.
    """

    places: tuple[Place, ...]
    least: int = 1
    pinned: str | None = None


def tie(graph: ChannelGraph, ties: Iterable[Tie]) -> ChannelGraph:
    """Return the graph whose units hold the ties: units that share a tie, or a chain of them, become one.

    The joined unit has the name and the place of its widest member (of equals the first). Where one width of a tie is
    pinned, all of them are.

    Args:
        graph: of the dense network.
        ties: places that the graph does not know count as pinned: they never change.
    """
    joined = _Joined(graph)
    for each in ties:
        joined.join(each)
    sets: dict[int, list[int]] = defaultdict(list)
    for index in range(len(graph.units)):
        sets[joined.find(index)].append(index)
    reasons: dict[str, str] = {}
    merged: dict[int, Unit] = {}
    for root, members in sets.items():
        leader = max(members, key=lambda index: (graph.units[index].width, -index))
        merged[leader] = _merged(graph, leader, members, joined.least.get(root, 0.0))
        if root in joined.pins:
            reasons[merged[leader].name] = joined.pins[root]
    return replace(graph, units=tuple(merged[index] for index in sorted(merged))).pin(reasons)


class _Joined:
    """A union-find over units, with what holds for each set of them.

    Attributes:
        pins: by set, why it is pinned.
        least: by set, the lowest keep ratio.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph
        self._owner = list(range(len(graph.units)))
        self._group_of = [index for index, group in enumerate(graph.groups) for _ in range(group.size)]
        self._unit_of = {group: index for index, unit in enumerate(graph.units) for group in unit.groups}
        self.pins: dict[int, str] = {}
        self.least: dict[int, float] = {}

    def find(self, unit: int) -> int:
        """Return the unit that stands for a unit's set."""
        while self._owner[unit] != unit:
            unit = self._owner[unit]
        return unit

    def join(self, each: Tie) -> None:
        """Put all units of a tie into one set."""
        groups, pin = self._groups(each)
        units = sorted({self._unit_of[group] for group in groups if group in self._unit_of})
        if not units:
            return
        fixed = (group for group in groups if group not in self._unit_of)
        pin = pin or next((f"in step with {self._graph.groups[group].name}" for group in fixed), None)
        roots = sorted({self.find(unit) for unit in units})
        widest = max(self._graph.units[unit].width for unit in units)
        for root in roots:
            self._owner[root] = roots[0]
            pin = pin or self.pins.get(root)
        self.least[roots[0]] = max([each.least / widest, *(self.least.get(root, 0.0) for root in roots)])
        if pin is not None:
            self.pins[roots[0]] = pin

    def _groups(self, each: Tie) -> tuple[list[int], str | None]:
        """Return the groups at a tie's places, and why they are pinned, if it says so."""
        found: set[int] = set()
        pin = each.pinned
        for tensor, dimension in each.places:
            axis = dict(self._graph.tensors.get(tensor, ())).get(dimension)
            if axis is None:
                pin = pin or f"in step with {tensor}, which never changes"
            else:
                found |= {self._group_of[channel] for channel in self._graph.axes[axis].tolist()}
        return sorted(found), pin


def _merged(graph: ChannelGraph, leader: int, members: list[int], least: float) -> Unit:
    """Return one unit instead of several; its leader's groups come first."""
    first = graph.units[leader]
    others = [group for index in members if index != leader for group in graph.units[index].groups]
    fewest = max(first.least, math.ceil(least * first.width - 1e-9))
    return Unit(first.name, first.width, (*first.groups, *others), fewest)
