"""Turn an allocation into the network that is used: pruned, compensated, batch norm recalibrated.

Everything that prunes by a policy calls this module, so that the Python call gives what the command writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from autoprune.criteria._base import CalibrationData
from autoprune.criteria.registry import make_criterion, spec_of
from autoprune.evaluation.compensation import compensate, fold_constants
from autoprune.evaluation.reconstruction import reconstruct
from autoprune.image_size import SizeLike
from autoprune.listener import warn
from autoprune.models import adapter_of
from autoprune.models._base import Adapter
from autoprune.models._memory import living_bytes
from autoprune.models.detection.channels import input_channels
from autoprune.statistics.layers import evaluating, no_dropout, recalibrate
from autoprune.statistics.moments import Moments, collect_moments
from autoprune.structure.graph import copied
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation, Space
from autoprune.structure.validation import analyse

EVIDENCE_IMAGES, EVIDENCE_BATCH = 64, 16
"""Training images that a criterion looks at, and how many at once."""

CALIBRATION_IMAGES, CALIBRATION_BATCH = 60, 16
"""Training images that recalibrate batch norm by default, and how many at once."""

RECONSTRUCTION_BYTES = 2 * 2**30
"""Activations that reconstruction may hold: its images go through the network all at once."""


def evidence_of(adapter: Adapter) -> CalibrationData:
    """Return the training images that criteria look at: the same in every run, so that a policy says which channels.

    There are labels in every batch: training divides its loss by them, and one without would outweigh all others.
    """
    batches = adapter.batches("train", images=EVIDENCE_IMAGES, batch=EVIDENCE_BATCH, seed=0, balanced=True)
    return CalibrationData(batches, adapter.inputs, no_dropout()(adapter.loss))


@dataclass(frozen=True)
class Calibration:
    """Training images that a network is repaired with after pruning; none if it came without data.

    Attributes:
        plain: as they are, for compensation; tensors of shape (B, C, H, W). Without any nothing is compensated.
        augmented: as training shows them, for batch norm; without any it keeps the dense network's statistics.
    """

    plain: Sequence[torch.Tensor] = ()
    augmented: Sequence[torch.Tensor] = ()


def calibration_of(
    adapter: Adapter,
    *,
    compensate: bool = True,
    images: int = CALIBRATION_IMAGES,
    batch: int = CALIBRATION_BATCH,
    seed: int = 0,
) -> Calibration:
    """Return a network's training images, the ones that a search with the same numbers scores on.

    Args:
        adapter: the network with its data, if any.
        compensate: also return plain ones.
        images: how many of each.
        batch: images per batch.
        seed: chooses them.
    """
    if not adapter.has_images:
        return Calibration()
    plain = adapter.batches("train", images=images, batch=batch, seed=seed, balanced=True) if compensate else ()
    return Calibration(
        [adapter.inputs(batch) for batch in plain], adapter.calibration(images=images, batch=batch, seed=seed)
    )


def prune(
    pruner: Pruner,
    allocation: Allocation,
    *,
    criterion: str,
    example: torch.Tensor,
    calibration: Calibration,
    moments: Moments | None = None,
    reconstructed: bool = True,
    trained: nn.Module | None = None,
) -> nn.Module:
    """Return the network that an allocation gives, as close to the dense one as it gets without training.

    Args:
        pruner: of the dense network.
        allocation: kept channels per unit.
        criterion: what ranked the channels; if nothing is compensated, the constants of removed channels are folded
            if its record says so.
        example: one input.
        calibration: training images.
        moments: of the plain ones, if they are known.
        reconstructed: solve the layers of what is compensated by least squares. Batch norm then keeps the dense
            network's statistics, which the layers were solved for.
        trained: the network whose ``requires_grad`` says which layers are trained, and so may be solved; the pruner's
            if None.

    Returns:
        A new network in eval mode.
    """
    module, dense, graph = pruner.materialise(allocation).eval(), pruner.module, pruner.space.graph
    kept = pruner.kept(allocation)
    if calibration.plain:
        compensate(module, dense, graph, kept, moments or collect_moments(dense, graph, calibration.plain))
        if reconstructed:
            reconstruct(module, dense, graph, kept, _at_once(dense, calibration.plain), trained=trained)
            return module
    elif spec_of(criterion).folds:
        fold_constants(module, dense, graph, kept, example)
    if calibration.augmented:
        recalibrate(module, calibration.augmented)
    return module


def _at_once(dense: nn.Module, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return as many of the images as may go through the dense network at once; say so if these are not all."""
    every = torch.cat(list(images))
    with evaluating(dense):
        each = float(living_bytes(dense, every[:1]).max())
    chosen = every[: max(1, int(RECONSTRUCTION_BYTES / each))]
    if len(chosen) < len(every):
        warn(
            f"Layers are solved for the dense network's outputs on {len(chosen)} of {len(every)} images: all of them "
            f"would take {len(every) * each / 1e9:.1f} GB, more than the limit of {RECONSTRUCTION_BYTES / 1e9:.1f} GB; "
            "a smaller `imgsz` makes room for more."
        )
    return chosen


EXAMPLE_SIZE = 128
"""Pixels of the images that a network without data is traced with."""


def apply_keep(
    module: nn.Module,
    keep: Mapping[str, int],
    *,
    criterion: str,
    check: Callable[[Mapping[str, int]], None],
    data: Adapter | Path | str | None,
    imgsz: SizeLike | None,
    compensate: bool,
    reconstruct: bool,
) -> nn.Module:
    """Return a new network that keeps the given number of channels of every unit; arguments as for `Policy.apply`.

    Args:
        module: the network; not modified.
        keep: kept channels per unit, by name.
        criterion: which channels stay.
        check: refuses an architecture, given the channels of its units by name.
        data: see `Policy.apply`.
        imgsz: see `Policy.apply`.
        compensate: see `Policy.apply`.
        reconstruct: see `Policy.apply`.
    """
    if data is None or isinstance(data, Adapter):
        adapter = data
    else:
        adapter = adapter_of(module, data=Path(data), image_size=imgsz)
    dense = module
    if adapter is not None:
        module = copied(module).to(adapter.device, torch.float32)  # as the images are
        dense = module if adapter is data else adapter.module  # the latter has the same weights, ready for gradients
        example, free_outputs = adapter.example(2), adapter.free_outputs
    else:
        parameter = next(module.parameters())
        shape = (2, input_channels(module), EXAMPLE_SIZE, EXAMPLE_SIZE)
        example = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
        free_outputs = frozenset({"feats"})  # of Ultralytics' training output: their channels may become fewer
    graph = analyse(dense, example, free_outputs=free_outputs)
    space = Space(graph, round_to=1, min_keep=1e-6)
    check({unit.name: unit.width for unit in space.units})
    images = partial(evidence_of, adapter) if adapter is not None and adapter.has_images else None
    order = make_criterion(criterion, images).order(dense, graph)
    return prune(
        Pruner(module, space, order),
        space.from_names(keep),
        criterion=criterion,
        example=example[:1],
        calibration=Calibration() if adapter is None else calibration_of(adapter, compensate=compensate),
        reconstructed=reconstruct,
        trained=dense if adapter is None else adapter.module,  # a loaded network is often frozen, training frees it
    )
