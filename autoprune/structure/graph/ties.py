"""Widths that something outside the network wants in step: units joined into one decision, or pinned."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from autoprune.structure.graph.types import ChannelGraph, Unit

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
    return graph.with_units([merged[index] for index in sorted(merged)]).pin(reasons)


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
    """Return one unit in place of several; its leader's groups come first."""
    first = graph.units[leader]
    others = [group for index in members if index != leader for group in graph.units[index].groups]
    fewest = max(first.least, math.ceil(least * first.width - 1e-9))
    return Unit(first.name, first.width, (*first.groups, *others), fewest)
