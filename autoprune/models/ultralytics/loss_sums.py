"""Ultralytics' losses as sums: its criteria divide by what is in a batch, here the division is undone.

How a criterion divides each of its terms:

==========================  ============================================================
box, cls, dfl, l1, angle    by the scores that predictions are to have, summed; at least 1
seg, pose, kobj             by the predictions that are to find an object
rle                         by the visible keypoints of these
sem                         by the images, if any of them has an object
those of an RT-DETR         by the objects
==========================  ============================================================

The least of 1 is left out: a network that is to have next to no score anywhere, since its boxes overlap with no object,
would be divided by more than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autoprune.models import stock
from autoprune.models._base import LossSum

LEAST_SCORE = 1e-20
"""What assignment takes for a score that is lower, so that powers of it are numbers still."""

_NO_EPSILON = 1e-30
"""Far below what assignment makes of ``LEAST_SCORE``."""

_DIVISORS = {
    **dict.fromkeys(("box_loss", "cls_loss", "dfl_loss", "l1_loss", "angle_loss"), "targets"),
    **dict.fromkeys(("seg_loss", "pose_loss", "kobj_loss"), "positives"),
    "rle_loss": "keypoints",
    "sem_loss": "images",
}
"""By Ultralytics' name of a term, what divides it."""


def scoring_criterion(module: Any) -> Any:
    """Return a network's own criterion as scoring needs it.

    It asks silent networks for what it asks of all others. Ultralytics wants a prediction to have its share of the
    best one's score and overlap, and adds a small number to the latter: where all scores are lower than that, it wants
    no score at all, and a network that finds nothing is right. An RT-DETR's criterion gives batches without objects
    another loss than others; here they have the same.
    """
    criterion = module.init_criterion()
    for one in (getattr(criterion, "one2many", criterion), getattr(criterion, "one2one", criterion)):
        if hasattr(one, "assigner"):
            one.assigner.eps = _NO_EPSILON
            one.assigner.register_forward_pre_hook(_with_least_score)
    if isinstance(module, stock.RTDETRDetectionModel):
        criterion.fl = _WithoutObjects(criterion.vfl)
    return criterion


def boxes_sum(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> LossSum:
    """Return the sum of a loss with boxes, and with masks, keypoints or angles.

    An end-to-end head (YOLOv10, YOLO26) has two such losses, with the weights of the training's start.
    """
    predictions = module(batch["img"])
    if not hasattr(criterion, "one2many"):
        return _undivided(criterion, predictions, batch)
    parts = [
        (gain, _undivided(branch, predictions[name], batch))
        for gain, branch, name in (
            (criterion.o2m, criterion.one2many, "one2many"),
            (criterion.o2o, criterion.one2one, "one2one"),
        )
    ]
    return LossSum(
        torch.cat([part.totals * gain for gain, part in parts]), torch.cat([part.weights for _, part in parts])
    )


def queries_sum(loss: torch.Tensor, batch: Mapping[str, Any], queries: int) -> LossSum:
    """Return the sum of an RT-DETR's loss: each of so many queries finds one object at most."""
    counts = batch["batch_idx"].long().bincount(minlength=1).clamp(max=queries)
    objects = counts.sum().to(loss)
    return LossSum((loss * objects.clamp(min=1)).view(1), objects.view(1))


def _undivided(criterion: Any, predictions: Mapping[str, Any], batch: Mapping[str, Any]) -> LossSum:
    """Return the sum of one such loss; what it is divided by is seen while it is computed."""
    images = len(batch["img"])
    with _watched(criterion) as seen:
        terms, _ = criterion.loss(predictions, batch)
    seen["images"] = terms.new_tensor(images)
    names = criterion.loss_names
    weights = torch.stack([seen[_DIVISORS[name]].to(terms) for name in names])
    totals = terms / images * weights.clamp(min=1)
    if "likelihoods" in seen:  # the term itself is cut off at zero
        totals[names.index("rle_loss")] = seen["likelihoods"] * criterion.hyp.rle
    if "sem_loss" in names and not seen["positives"]:  # the term is left out then
        totals[names.index("sem_loss")] = _semantic_loss(criterion, predictions["proto"]) * images
    return LossSum(totals, weights)


@contextmanager
def _watched(criterion: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Note what assignment finds, and how many keypoints have a likelihood, while a criterion computes."""
    seen: dict[str, torch.Tensor] = {"keypoints": torch.tensor(_NO_EPSILON)}  # none: the term is zero, not missing

    def assigned(_: nn.Module, arguments: Any, found: Any) -> None:
        seen["targets"], seen["positives"] = found[2].sum(), found[3].sum()

    def likely(_: nn.Module, arguments: Any, mean: torch.Tensor) -> None:
        seen["keypoints"] = mean.new_tensor(len(arguments[0]))
        seen["likelihoods"] = mean * len(arguments[0])

    hooks = [criterion.assigner.register_forward_hook(assigned)]
    if getattr(criterion, "rle_loss", None) is not None:
        hooks.append(criterion.rle_loss.register_forward_hook(likely))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _semantic_loss(criterion: Any, prototypes: Any) -> torch.Tensor | float:
    """Return YOLO26's loss of the classes of pixels, per image, where no pixel has any."""
    if not isinstance(prototypes, tuple):
        return 0.0
    loss: torch.Tensor = criterion.bcedice_loss(prototypes[1], torch.zeros_like(prototypes[1])) * criterion.hyp.box
    return loss


def _with_least_score(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (arguments[0].clamp(min=LEAST_SCORE), *arguments[1:])


class _WithoutObjects(nn.Module):
    """What an RT-DETR's criterion computes of a batch without objects: the varifocal loss of the other batches."""

    def __init__(self, varifocal: nn.Module) -> None:
        super().__init__()
        self._varifocal = varifocal

    def forward(self, scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self._varifocal(scores, wanted, wanted)
        return loss
