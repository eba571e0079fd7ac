"""Kept channels by name, as a policy has them, applied to any weights of the architecture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from autoprune.criteria._base import CalibrationData
from autoprune.criteria.registry import make_criterion
from autoprune.evaluation.pruning import Calibration, calibration_of, evidence_of, prune
from autoprune.models import adapter_of
from autoprune.models._base import Adapter
from autoprune.models.detection.channels import input_channels
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse

EXAMPLE_SIZE = 128
"""Pixels of the images that a network without data is traced with."""


def apply_keep(
    module: nn.Module,
    keep: Mapping[str, int],
    *,
    criterion: str,
    check: Callable[[Mapping[str, int]], None],
    data: Adapter | Path | str | None,
    imgsz: int | None,
    compensate: bool,
    reconstruct: bool,
    example: torch.Tensor | None,
    free_outputs: Collection[str],
    evidence: CalibrationData | None,
) -> nn.Module:
    """Return a new network that keeps so many channels of every unit; arguments as for `Policy.apply`.

    Args:
        module: the network; not modified.
        keep: kept channels per unit, by name.
        criterion: which channels stay.
        check: refuses an architecture, given the channels of its units by name.
        data: see `Policy.apply`.
        imgsz: see `Policy.apply`.
        compensate: see `Policy.apply`.
        reconstruct: see `Policy.apply`.
        example: see `Policy.apply`.
        free_outputs: see `Policy.apply`.
        evidence: see `Policy.apply`.
    """
    dense, adapter = module, None
    if isinstance(data, Adapter):
        adapter = data
    elif data is not None:
        adapter = adapter_of(module, data=Path(data), image_size=imgsz)
        dense = adapter.module  # the same weights, ready for gradients
    if adapter is not None:
        example, free_outputs = adapter.example(2), adapter.free_outputs
    elif example is None:
        parameter = next(module.parameters())
        shape = (2, input_channels(module), EXAMPLE_SIZE, EXAMPLE_SIZE)
        example = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    graph = analyse(dense, example, free_outputs=free_outputs)
    space = Space(graph, round_to=1, min_keep=1e-6)
    check({unit.name: unit.width for unit in space.units})
    images = partial(evidence_of, adapter) if adapter is not None else (lambda: evidence) if evidence else None
    order = make_criterion(criterion, images).order(dense, graph)
    return prune(
        Pruner(module, space, order),
        space.from_names(keep),
        criterion=criterion,
        example=example[:1],
        calibration=Calibration() if adapter is None else calibration_of(adapter, compensate=compensate),
        reconstructed=reconstruct,
        trained=dense,
    )
