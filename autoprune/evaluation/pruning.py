"""An allocation turned into the network that is used: pruned, compensated, batch norm recalibrated.

One place for all that prune by a policy, so that the Python call gives what the command writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from autoprune.criteria._base import CalibrationData
from autoprune.criteria.registry import spec_of
from autoprune.evaluation.compensation import compensate
from autoprune.evaluation.folding import fold_constants
from autoprune.evaluation.reconstruction import reconstruct
from autoprune.models._base import Adapter
from autoprune.models._memory import living_bytes
from autoprune.statistics.layers import evaluating
from autoprune.statistics.moments import Moments, collect_moments
from autoprune.statistics.recalibration import recalibrate
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation

EVIDENCE_IMAGES, EVIDENCE_BATCH = 64, 16
"""Training images that a criterion looks at, and how many at once."""

CALIBRATION_IMAGES, CALIBRATION_BATCH = 60, 16
"""Training images that recalibrate batch norm where nothing else is asked for, and how many at once."""

RECONSTRUCTION_BYTES = 2 * 2**30
"""Activations that reconstruction may hold: its images go through the network all at once."""


def evidence_of(adapter: Adapter) -> CalibrationData:
    """Return the training images that criteria look at: the same in every run, so that a policy says which channels.

    There are labels in every batch: training divides its loss by them, and one without would outweigh all others.
    """
    batches = adapter.batches("train", images=EVIDENCE_IMAGES, batch=EVIDENCE_BATCH, seed=0, balanced=True)
    return CalibrationData(batches, adapter.inputs, adapter.loss)


@dataclass(frozen=True)
class Calibration:
    """Training images that a network is repaired with after pruning; none where it came without data.

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
    notify: Callable[[str], None] = lambda note: None,
) -> nn.Module:
    """Return the network that an allocation gives, as close to the dense one as it gets without training.

    Args:
        pruner: of the dense network.
        allocation: kept channels per unit.
        criterion: what ranked the channels; where nothing is compensated, the constants of removed channels are folded
            if its record says so.
        example: one input.
        calibration: training images.
        moments: of the plain ones, where they are known.
        reconstructed: solve the layers of what is compensated by least squares. Batch norm then keeps the dense
            network's statistics, which the layers were solved for.
        trained: the network whose ``requires_grad`` tells which layers are trained, and so may be solved; the pruner's
            if None.
        notify: told in a sentence where layers cannot be compensated.

    Returns:
        A new network in eval mode.
    """
    module, dense, graph = pruner.materialise(allocation).eval(), pruner.module, pruner.space.graph
    kept = pruner.kept(allocation)
    if calibration.plain:
        compensate(
            module, dense, graph, kept, moments or collect_moments(dense, graph, calibration.plain, notify=notify)
        )
        if reconstructed:
            reconstruct(module, dense, graph, kept, _at_once(dense, calibration.plain), trained=trained)
            return module
    elif spec_of(criterion).folds:
        fold_constants(module, dense, graph, kept, example)
    if calibration.augmented:
        recalibrate(module, calibration.augmented)
    return module


def _at_once(dense: nn.Module, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return as many of the images as may go through the dense network at once."""
    every = torch.cat(list(images))
    with evaluating(dense):
        each = float(living_bytes(dense, every[:1]).max())
    return every[: max(1, int(RECONSTRUCTION_BYTES / each))]
