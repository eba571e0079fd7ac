"""The graph proves itself: prune every unit a little, compare with the dense network, and pin what differs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import nn

from autoprune.structure.graph import ChannelGraph, Unit, trace
from autoprune.structure.slicing import ChannelMask, Slicer
from autoprune.structure.zeroing import DenseNetwork

Check = Callable[[Sequence[Unit]], str | None]
"""Units → why the network cannot do without some of their channels, or None."""


def analyse(module: nn.Module, example: torch.Tensor, *, free_outputs: Collection[str] = ()) -> ChannelGraph:
    """Return the network's channel groups, with every unit pinned that cannot really be pruned.

    A unit can be pruned if the smaller network runs, and computes what the dense one does where nothing reads the
    removed channels.

    Args:
        module: the network; it is not modified.
        example: an input of shape (B ≥ 2, C, H, W); layer sizes are recorded for it.
        free_outputs: keys of an output dictionary whose tensors may change their channel count.

    Raises:
        ModelError: the network cannot be copied or exported, or fails even unpruned.
    """
    graph = trace(module, example, free_outputs=free_outputs)
    dense = DenseNetwork(module, example, free_outputs=free_outputs)
    for half in (False, True):
        while faults := _faults(_check(dense, graph, half=half), list(graph.units)):  # some fail only with others
            graph = graph.pin(faults)
    return graph


def _check(dense: DenseNetwork, graph: ChannelGraph, *, half: bool) -> Check:
    surgeon = Slicer(dense.module, graph)
    return lambda units: dense.fault(surgeon, _without_some(graph, units, half=half))


def _without_some(graph: ChannelGraph, units: Sequence[Unit], *, half: bool) -> ChannelMask:
    """Remove channels of every group of these units: one or two, which divisors show, or half, which steps show."""
    keep = np.ones(graph.channels, dtype=np.bool_)
    for position, unit in enumerate(units):
        removed = unit.width // 2 if half else min(1 + position % 2, unit.width - 1)
        for index in unit.groups:
            offset = graph.groups[index].offset
            keep[offset : offset + removed] = False
    return keep


def _faults(check: Check, units: list[Unit]) -> dict[str, str]:
    """Return the units at fault with the reason: halves that pass together are clean, one that fails alone is not."""
    reason = check(units)
    if reason is None:
        return {}
    if len(units) == 1:
        return {units[0].name: reason}
    half = len(units) // 2
    faults = _faults(check, units[:half]) | _faults(check, units[half:])
    # Where each half passes alone, the first of the second half is blamed; the next round looks again.
    return faults or {units[half].name: f"fails together with others: {reason}"}
