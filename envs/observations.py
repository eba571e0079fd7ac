"""The state that an agent sees: named columns, each scaled to [0, 1].

All but ``sensitivity`` are AMC's (He et al., "AMC", ECCV 2018, section 3.1). A column that depends on the unit alone
goes into ``unit_columns``, one that depends on the walk into ``Observer.observe``; one that only the caller knows is
handed in through ``PruningProblem.columns``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from autoprune.arrays import Array, Counts
from autoprune.envs.problem import PruningProblem
from autoprune.structure.graph import ChannelGraph, Layer, LayerKind, Unit
from autoprune.structure.space import Space

WALK_COLUMNS = ("reduced", "rest", "last_action")
"""Columns that change along the walk."""

_PRODUCERS = (LayerKind.CONV, LayerKind.TRANSPOSED, LayerKind.LINEAR, LayerKind.DEPTHWISE)


class Observer:
    """Turns where a walk stands into a row of the state.

    Attributes:
        names: the columns, in order.
        box: the Gymnasium space of one row, shape (columns,).

    Example:
        >>> observer = Observer(problem)  # of the example in `PruningProblem`
        >>> observer.names[-3:]
        ('reduced', 'rest', 'last_action')
        >>> state = observer.observe(0, widest=problem.space.dense, narrowest=problem.space.lower, last=0.0)
        >>> state.shape == observer.box.shape
        True
    """

    def __init__(self, problem: PruningProblem) -> None:
        columns = unit_columns(problem)
        walked = list(problem.walked)
        self.names: tuple[str, ...] = (*columns, *WALK_COLUMNS)
        self.box = spaces.Box(0.0, 1.0, shape=(len(self.names),), dtype=np.float32)
        self._fixed = np.stack([_scaled(values[walked]) for values in columns.values()], axis=1)
        self._cost = problem.cost
        self._dense = float(problem.cost(problem.space.dense))

    def observe(self, step: int, *, widest: Counts, narrowest: Counts, last: float) -> npt.NDArray[np.float32]:
        """Return the state before a step; after the last step, its unit's row again.

        Args:
            step: position in the walk.
            widest: counts decided so far, later units dense, shape (units,).
            narrowest: counts decided so far, later units at their lower bounds, shape (units,).
            last: the action before, scaled to [0, 1].

        Returns:
            Shape (columns,). ``reduced`` is the share of the dense cost that is saved so far, ``rest`` the share that
            later units could still save.
        """
        most, least = self._cost(np.stack([widest, narrowest])) / self._dense
        row = np.append(self._fixed[min(step, len(self._fixed) - 1)], [1 - most, most - least, last])
        return np.asarray(np.clip(row, 0.0, 1.0), dtype=np.float32)


def unit_columns(problem: PruningProblem) -> Mapping[str, Array]:
    """Return the columns that depend on the unit alone, name → shape (units,), not yet scaled.

    A unit may have several layers: in channels, feature map, stride and kernel are those of its first producing layer.
    ``cost`` covers every layer that it touches, see ``unit_costs``.

    Example:
        >>> unit_columns(problem)["out_channels"]  # of the example in `PruningProblem`
        array([16., 32.])
    """
    graph, units = problem.space.graph, problem.space.units
    layers = [first_layer(graph, unit) for unit in units]
    values = {
        "index": list(range(len(units))),
        "out_channels": [unit.width for unit in units],
        "in_channels": [len(graph.axes[layer.in_axis]) if layer else 0 for layer in layers],
        "height": [layer.in_hw[0] if layer else 0 for layer in layers],
        "width": [layer.in_hw[1] if layer else 0 for layer in layers],
        "stride": [layer.stride[0] if layer else 0 for layer in layers],
        "kernel": [layer.kernel[0] if layer else 0 for layer in layers],
        "cost": unit_costs(problem),
        "sensitivity": problem.sensitivity,
        **problem.columns,
    }
    return {name: np.asarray(column, dtype=np.float64) for name, column in values.items()}


def first_layer(graph: ChannelGraph, unit: Unit) -> Layer | None:
    """Return the layer that the unit is named after, or the first that produces any of its channels.

    Example:
        >>> first_layer(problem.space.graph, problem.space.units[0]).kernel  # of the example in `PruningProblem`
        (3, 3)
    """
    named = next((layer for layer in graph.layers if layer.name == unit.name and layer.kind in _PRODUCERS), None)
    if named is not None:
        return named
    offsets = [(graph.groups[index].offset, graph.groups[index].size) for index in unit.groups]
    for layer in graph.layers:
        axis = graph.axes[layer.out_axis]
        if layer.kind in _PRODUCERS and any(((axis >= low) & (axis < low + size)).any() for low, size in offsets):
            return layer
    return None


def unit_costs(problem: PruningProblem) -> Array:
    """Return what each unit's layers cost in the dense network, by the budgeted cost function, shape (units,).

    It is the slope of the cost from the unit's lower bound to dense, times its width. Where the cost is linear in one
    unit's width, as FLOPs are for all but a layer that reads and writes the same unit, that is the cost of all layers
    that it touches; any other cost, latency too, has its own share in the same sense.

    Example:
        >>> (unit_costs(problem) / 1e6).round(2)  # of the example in `PruningProblem`
        array([8.  , 7.43])
    """
    space: Space = problem.space
    narrowed = np.repeat(space.dense[None, :], len(space), axis=0)
    np.fill_diagonal(narrowed, space.lower)
    saved = float(problem.cost(space.dense)) - problem.cost(narrowed)
    given_up = 1 - space.ratios(space.lower)
    return np.asarray(np.divide(saved, given_up, out=np.zeros(len(space)), where=given_up > 0))


def _scaled(values: Array) -> Array:
    """Scale a column to [0, 1] over the walked units; a constant one becomes zeros."""
    spread = values.max() - values.min()
    return np.asarray((values - values.min()) / spread if spread > 0 else np.zeros_like(values))
