"""An allocation turned into the network that is used: pruned, compensated, batch norm recalibrated.

One place for all that prune by a policy, so that the Python call gives what the command writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from autoprune.choices import FOLDED
from autoprune.importance import Evidence
from autoprune.importance.compensation import collect_moments, compensate
from autoprune.importance.folding import fold_constants
from autoprune.models._base import Adapter
from autoprune.models.recalibration import recalibrate
from autoprune.space import Allocation
from autoprune.surgery import Pruner

EVIDENCE_IMAGES, EVIDENCE_BATCH = 64, 16
"""Training images that a criterion looks at, and how many at once."""

CALIBRATION_IMAGES, CALIBRATION_BATCH = 60, 16
"""Training images that recalibrate batch norm where nothing else is asked for, and how many at once."""


def evidence_of(adapter: Adapter) -> Evidence:
    """Return the training images that criteria look at: the same in every run, so that a policy says which channels.

    There are labels in every batch: training divides its loss by them, and one without would outweigh all others.
    """
    batches = adapter.batches("train", images=EVIDENCE_IMAGES, batch=EVIDENCE_BATCH, seed=0, balanced=True)
    return Evidence(batches, adapter.inputs, adapter.loss)


def calibration_of(
    adapter: Adapter, *, images: int = CALIBRATION_IMAGES, batch: int = CALIBRATION_BATCH, seed: int = 0
) -> Sequence[torch.Tensor]:
    """Return the training images that recalibrate batch norm; none where the network came without data."""
    return adapter.calibration(images=images, batch=batch, seed=seed) if adapter.has_images else ()


def prune(
    pruner: Pruner,
    allocation: Allocation,
    *,
    criterion: str,
    example: torch.Tensor,
    calibration: Sequence[torch.Tensor],
    compensated: bool = True,
    notify: Callable[[str], None] = lambda note: None,
) -> nn.Module:
    """Return the network that an allocation gives, as close to the dense one as it gets without training.

    Args:
        pruner: of the dense network.
        allocation: kept channels per unit.
        criterion: what ranked the channels; where nothing is compensated, the constants of removed channels are folded
            for those of ``FOLDED``.
        example: one input.
        calibration: training images for compensation and batch norm; without any the kept channels keep the dense
            network's weights and statistics.
        compensated: let the kept channels' weights make up for the removed ones.
        notify: told in a sentence where layers cannot be compensated.
    """
    module, graph, kept = pruner.materialise(allocation), pruner.space.graph, pruner.kept(allocation)
    if compensated and calibration:
        compensate(
            module, pruner.module, graph, kept, collect_moments(pruner.module, graph, calibration, notify=notify)
        )
    elif criterion in FOLDED:
        fold_constants(module, pruner.module, graph, kept, example)
    if calibration:
        recalibrate(module, calibration)
    return module
