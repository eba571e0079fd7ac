"""A few training steps of a proposal, so that it is compared as the network it could become (NetAdapt, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import nn

from autoprune.errors import TrainingError
from autoprune.models._base import Adapter, Batch
from autoprune.statistics.layers import no_dropout, train_mode
from autoprune.training.plain import backward
from autoprune.training.registry import trainer_of

HELD_IMAGES = 128
"""Most training images that are held for short fine-tunes; longer ones go through them again."""


def training_batches(adapter: Adapter, *, scoring: int, steps: int, batch: int, seed: int) -> Sequence[Batch]:
    """Return training images that no candidate is scored on, as batches held on the device.

    Args:
        adapter: the data.
        scoring: how many images score candidates; with the same seed these are left out.
        steps: how many batches are wanted; fewer are returned if there are not as many images.
        batch: images per batch.
        seed: chooses the images.

    Raises:
        TrainingError: the training split has no other images.
    """
    skipped = math.ceil(scoring / batch)  # whole batches, so that no scoring image is left in the first one
    wanted = min(steps, math.ceil(HELD_IMAGES / batch))
    drawn = adapter.batches("train", images=(skipped + wanted) * batch, batch=batch, seed=seed)
    before = [0, *accumulate(len(adapter.inputs(one)) for one in drawn)]  # a last batch but one may lack an image
    found = [one for one, images in zip(drawn, before, strict=False) if images >= scoring]
    if not found:
        raise TrainingError(
            f"short fine-tunes need training images besides the {scoring} that score candidates, and the training "
            "split has none; lower `images`, or give `short_term_steps` 0"
        )
    return found


def train_briefly(
    adapter: Adapter, module: nn.Module, batches: Sequence[Batch], *, steps: int, lr_scale: float
) -> None:
    """Train a network in place for a few steps, with the dense training's optimizer at its first learning rate.

    Images are not augmented; nothing is random.

    Args:
        adapter: the dense network, whose settings the optimizer takes.
        module: changed; left in train mode.
        batches: used in turn.
        steps: optimizer steps, one batch each.
        lr_scale: learning rate as a share of the dense training's.

    Raises:
        TrainingError: the loss is not a number, or the network's family has no training.
        DeviceError: memory runs out.
    """
    trainer = trainer_of(adapter)
    optimizer = trainer.optimizer(module.parameters(), batch=len(adapter.inputs(batches[0])), lr_scale=lr_scale)
    train_mode(module)

    @no_dropout()
    def terms(batch: Batch) -> Mapping[str, torch.Tensor]:
        return {"loss": trainer.loss(module, batch)}

    for step in range(steps):
        loss = partial(terms, batches[step % len(batches)])
        backward(loss, module, optimizer, place=f"step {step + 1} of a short fine-tune", lower="`lr_scale`")
        optimizer.step()
