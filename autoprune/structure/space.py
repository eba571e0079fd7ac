"""The space of allocations: units, bounds, rounding, and how wide every axis becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from autoprune.arrays import Array, Counts, Ids, Mask
from autoprune.errors import ConfigError
from autoprune.io.finite import check_finite
from autoprune.structure.graph import ChannelGraph, Unit

_LEAST = 1e-6
"""A keep ratio that bounds nothing."""

Allocation = tuple[int, ...]
"""Kept channels per unit, in the order of ``Space.units``: one candidate."""


class Space:
    """All allocations of a network that respect the bounds and the rounding.

    A unit may keep any multiple of ``round_to`` from its lower bound up, or all its channels; one that is not wider
    than ``round_to`` stays as it is. Where its groups differ in width, each keeps a whole number of channels.

    Attributes:
        graph: the network's channel groups.
        units: the units, in the order of the forward pass.
        dense: kept channels when nothing is pruned, shape (units,).
        lower: the fewest channels each unit may keep, shape (units,).
        choices: per unit, all counts it may keep, ascending.
        round_to: widths are multiples of this.
        min_keep: lower bound as a keep ratio.
    """

    def __init__(self, graph: ChannelGraph, *, round_to: int = 8, min_keep: float = 0.1) -> None:
        if round_to < 1:
            raise ConfigError(f"round_to must be at least 1, got {round_to}")
        if not 0 < min_keep <= 1:
            raise ConfigError(f"The lowest keep ratio must lie in (0, 1], got {min_keep}")
        self.graph = graph
        self.units: tuple[Unit, ...] = graph.units
        self.round_to = round_to
        self.min_keep = min_keep
        self.choices: tuple[Counts, ...] = tuple(self._choices(unit) for unit in self.units)
        self.dense: Counts = np.array([unit.width for unit in self.units], dtype=np.int64)
        self.lower: Counts = np.array([choices[0] for choices in self.choices], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.units)

    @property
    def narrowing(self) -> str:
        """The way out of wide units, "lower `min_keep` or `round_to`" or one of them; empty if neither alone helps."""
        lower = {
            "min_keep": Space(self.graph, round_to=self.round_to, min_keep=_LEAST),
            "round_to": Space(self.graph, round_to=1, min_keep=self.min_keep),
        }
        names = [f"`{name}`" for name, space in lower.items() if np.any(space.lower < self.lower)]
        return f"lower {' or '.join(names)}" if names else ""

    def _choices(self, unit: Unit) -> Counts:
        """Return the counts that a unit may keep, ascending."""
        sizes = {self.graph.groups[index].size for index in unit.groups}
        counts = _multiples(unit.width, self.round_to, self.min_keep)
        allowed = [
            count
            for count in counts
            if count == unit.width or (count >= unit.least and all(count * size % unit.width == 0 for size in sizes))
        ]
        return np.array(allowed, dtype=np.int64)

    @cached_property
    def _width_model(self) -> tuple[Array, Array]:
        """Axis widths are affine in the counts: (axes, units) multiplicities and (axes,) constants."""
        graph = self.graph
        group_of = np.repeat(np.arange(len(graph.groups)), [group.size for group in graph.groups])
        unit_of = np.full(len(graph.groups), -1)
        for index, unit in enumerate(self.units):
            unit_of[list(unit.groups)] = index
        slope = np.zeros((len(graph.axes), len(self.units)))
        constant = np.zeros(len(graph.axes))
        for index, axis in enumerate(graph.axes):
            owners = unit_of[group_of[axis]]
            constant[index] = np.count_nonzero(owners < 0)
            found, positions = np.unique(owners[owners >= 0], return_counts=True)
            slope[index, found] = positions / self.dense[found]
        return slope, constant

    def axis_widths(self, counts: Counts) -> Array:
        """Return how many positions every axis of the graph keeps.

        Args:
            counts: shape (units,) or (candidates, units).

        Returns:
            Shape (axes,) or (candidates, axes); whole numbers.
        """
        slope, constant = self._width_model
        return np.asarray(counts @ slope.T + constant)

    def round_down(self, ratios: Array) -> Counts:
        """Return the widest allowed counts not above the given keep ratios (or the lower bound), shape (units,).

        Raises:
            ConfigError: a ratio is NaN or infinite.
        """
        self.check_units("keep ratio", ratios)
        wanted = np.asarray(ratios, dtype=np.float64) * self.dense + 1e-9
        return np.array(
            [
                choices[max(int(np.searchsorted(choices, value, side="right")) - 1, 0)]
                for choices, value in zip(self.choices, wanted, strict=True)
            ],
            dtype=np.int64,
        )

    def next_up(self, counts: Counts, unit: int) -> int | None:
        """Return the next wider choice of a unit, or None if it keeps everything."""
        choices = self.choices[unit]
        index = int(np.searchsorted(choices, counts[unit], side="right"))
        return int(choices[index]) if index < len(choices) else None

    def check_units(self, what: str, values: Array) -> None:
        """Refuse numbers, one per unit, of which one is NaN or infinite.

        Raises:
            ConfigError: names the first unit with such a number.
        """
        check_finite(
            values,
            lambda unit: f"The {what} of {self.units[unit].name} (unit {unit + 1} of {len(self)})",
            way_out="look for a logarithm of 0 or a division by 0 where it was computed",
        )

    def ratios(self, counts: Counts) -> Array:
        """Return keep ratios, shape as ``counts``."""
        return np.asarray(counts / self.dense)

    def log_ratios(self, counts: Sequence[int] | Counts) -> Array:
        """Return natural logarithms of keep ratios, shape as ``counts``."""
        return np.log(np.asarray(counts) / self.dense)

    def allocation(self, counts: Sequence[int] | Counts) -> Allocation:
        """Return counts as a hashable allocation, checked against each unit's width.

        Raises:
            ConfigError: a count is missing or outside 1 … width.
        """
        values = tuple(int(count) for count in counts)
        if len(values) != len(self.units):
            raise ConfigError(f"An allocation names every unit: {len(self.units)} counts expected, got {len(values)}")
        for unit, count in zip(self.units, values, strict=True):
            if not 1 <= count <= unit.width:
                raise ConfigError(f"{unit.name} must keep 1 to {unit.width} channels, got {count}")
        return values

    def from_names(self, kept: Mapping[str, int]) -> Allocation:
        """Return the allocation that keeps the given counts, by the names of all units.

        Raises:
            ConfigError: a unit is missing, a name is of no unit, or a count is out of range.
        """
        names = {unit.name for unit in self.units}
        for unknown, what in ((names - kept.keys(), "no count for"), (kept.keys() - names, "an unknown unit")):
            if unknown:
                raise ConfigError(f"An allocation names every unit of the network, got {what} {min(unknown)}")
        return self.allocation([kept[unit.name] for unit in self.units])

    def group_counts(self, counts: Sequence[int] | Counts) -> list[int]:
        """Return how many channels each group of the graph keeps, for the counts of all units."""
        kept = [group.size for group in self.graph.groups]
        for unit, count in zip(self.units, counts, strict=True):
            for index in unit.groups:
                kept[index] = int(count) * kept[index] // unit.width
        return kept

    def kept_channels(self, counts: Sequence[int] | Counts, order: Sequence[Ids]) -> Mask:
        """Return which channels of the network stay.

        Args:
            counts: kept channels per unit.
            order: per group, its channels' numbers within the group, most important first.

        Returns:
            Shape (channels of the graph,), in the graph's global numbering.
        """
        keep = np.ones(self.graph.channels, dtype=np.bool_)
        for group, kept, ranked in zip(self.graph.groups, self.group_counts(counts), order, strict=True):
            keep[group.offset + ranked[kept:]] = False
        return keep


def _multiples(width: int, round_to: int, min_keep: float) -> list[int]:
    """Return the multiples of ``round_to`` from the lower bound up to a width, and the width, ascending."""
    if width <= round_to:
        return [width]
    lowest = max(int(np.ceil(width * min_keep / round_to - 1e-9)), 1) * round_to
    return [*range(lowest, width, round_to), width]
