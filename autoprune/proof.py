"""The graph proves itself: prune every unit a little, run the network, and pin what fails."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.graph import ChannelGraph, Unit, trace
from autoprune.surgery import Surgeon

PROOF_SIZE = 64
"""Height and width of the crop on which the proof runs, where the network takes one that small."""


def analyse(module: nn.Module, example: torch.Tensor, *, free_outputs: Collection[str] = ()) -> ChannelGraph:
    """Return the network's channel groups, with every unit pinned that cannot really be pruned.

    Args:
        module: the network; it is not modified.
        example: an input of shape (B ≥ 2, C, H, W); layer sizes are recorded for it.
        free_outputs: keys of an output dictionary whose tensors may change their channel count.

    Raises:
        ModelError: the network cannot be exported, or fails even unpruned.
    """
    graph = trace(module, example, free_outputs=free_outputs)
    surgeon = Surgeon(module, graph)
    crop = example[..., :PROOF_SIZE, :PROOF_SIZE]
    if _failure(surgeon, crop, ()) is not None:
        crop = example
        if (reason := _failure(surgeon, crop, ())) is not None:
            raise ModelError(f"A network must run on its example input; {type(module).__name__} fails with: {reason}")
    faults: dict[str, str] = {}
    _bisect(lambda units: _failure(surgeon, crop, units), list(graph.units), faults)
    while faults:  # units may fail only together with others
        graph = graph.pin(faults)
        surgeon = Surgeon(module, graph)
        faults = {}
        _bisect(lambda units, surgeon=surgeon: _failure(surgeon, crop, units), list(graph.units), faults)  # type: ignore[misc]
    return graph


def _bisect(check: Callable[[Sequence[Unit]], str | None], units: list[Unit], faults: dict[str, str]) -> None:
    """Collect the units at fault: halves that pass together are clean, a single unit that fails is at fault."""
    reason = check(units)
    if reason is None:
        return
    if len(units) == 1:
        faults[units[0].name] = reason
        return
    half = len(units) // 2
    before = len(faults)
    _bisect(check, units[:half], faults)
    _bisect(check, units[half:], faults)
    if len(faults) == before:  # each half passes alone: blame the first of the second half and look again
        faults[units[half].name] = f"fails together with others: {reason}"


def _failure(surgeon: Surgeon, example: torch.Tensor, units: Sequence[Unit]) -> str | None:
    """Prune the units a little and run both modes; returns why that fails, or None."""
    keep = np.ones(surgeon.graph.channels, dtype=np.bool_)
    for position, unit in enumerate(units):
        removed = min(1 + position % 2, unit.width - 1)
        for index in unit.groups:
            offset = surgeon.graph.groups[index].offset
            keep[offset : offset + removed] = False
    module = surgeon.materialise(keep)
    try:
        with torch.no_grad():
            module.eval()(example)
            module.train()(example)
    except Exception as error:
        text = (str(error) or type(error).__name__).splitlines()[0]
        return f"the network fails without some of its channels: {text}"
    return None
