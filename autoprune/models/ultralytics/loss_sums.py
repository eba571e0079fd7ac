"""Ultralytics' losses as sums: its criteria normalise by the content of a batch; here that is undone.

Divisors of the terms:

==========================  =======================================================
box, cls, dfl, l1, angle    the sum of the target scores, at least 1
seg, pose, kobj             the number of predictions assigned to an object
rle                         the number of visible keypoints of these
sem                         the number of images, if any has an object
those of an RT-DETR         the number of objects
==========================  =======================================================

The minimum of 1 is left out: it would shrink the loss of a network with tiny target scores, whose boxes overlap with no
object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autoprune.models._base import LossSum

LEAST_SCORE = 1e-20
"""Lower bound of scores in the assignment, so that their powers do not underflow."""

NO_EPSILON = 1e-30
"""Far below the alignment that belongs to ``LEAST_SCORE``."""

_DIVISORS = {
    **dict.fromkeys(("box_loss", "cls_loss", "dfl_loss", "l1_loss", "angle_loss"), "targets"),
    **dict.fromkeys(("seg_loss", "pose_loss", "kobj_loss"), "positives"),
    "rle_loss": "keypoints",
    "sem_loss": "images",
}
"""Ultralytics' name of a term → its divisor."""


def boxes_criterion(module: Any) -> Any:
    """Return the own criterion of a network that finds boxes, changed for scoring.

    Ultralytics' target score is a prediction's alignment relative to the best one's plus a small epsilon. If all scores
    are below that epsilon, the targets vanish, and a network that detects nothing would have no loss; so the epsilon is
    reduced.
    """
    criterion = module.init_criterion()
    for branch in (criterion.one2many, criterion.one2one) if _two_fold(criterion) else (criterion,):
        branch.assigner.eps = NO_EPSILON
        branch.assigner.register_forward_pre_hook(_with_least_score)
    return criterion


def queries_criterion(module: Any) -> Any:
    """Return the own criterion of an RT-DETR, whose loss for batches without objects is here that of other batches."""
    criterion = module.init_criterion()
    criterion.fl = _WithoutObjects(criterion.vfl)
    return criterion


def boxes_sum(criterion: Any, module: nn.Module, batch: Mapping[str, Any]) -> LossSum:
    """Return the sum of a loss with boxes, and with masks, keypoints or angles.

    An end-to-end head (YOLOv10, YOLO26) has two such losses, with their weights at the start of the training.
    """
    predictions = module(batch["img"])
    if not _two_fold(criterion):
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


def _two_fold(criterion: Any) -> bool:
    return hasattr(criterion, "one2many")


def queries_sum(loss: torch.Tensor, batch: Mapping[str, Any], queries: int) -> LossSum:
    """Return the sum of an RT-DETR's loss; each of its ``queries`` finds one object at most."""
    counts = batch["batch_idx"].long().bincount(minlength=1).clamp(max=queries)
    objects = counts.sum().to(loss)
    return LossSum((loss * objects.clamp(min=1)).view(1), objects.view(1))


def _undivided(criterion: Any, predictions: Mapping[str, Any], batch: Mapping[str, Any]) -> LossSum:
    """Return the sum of one such loss; hooks record its divisors while it is computed."""
    images = len(batch["img"])
    with _recording(criterion) as seen:
        terms, _ = criterion.loss(predictions, batch)
    seen["images"] = terms.new_tensor(images)
    names = criterion.loss_names
    weights = torch.stack([seen[_DIVISORS[name]].to(terms) for name in names])
    totals = terms / images * weights.clamp(min=1)
    if "likelihoods" in seen:  # the term itself is clamped at zero
        totals[names.index("rle_loss")] = seen["likelihoods"] * criterion.hyp.rle
    if "sem_loss" in names and not seen["positives"]:  # then the term is left out
        totals[names.index("sem_loss")] = _semantic_loss(criterion, predictions["proto"]) * images
    return LossSum(totals, weights)


@contextmanager
def _recording(criterion: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Record target scores, assigned predictions and keypoints by hooks while a criterion computes."""
    seen: dict[str, torch.Tensor] = {"keypoints": torch.tensor(NO_EPSILON)}  # none: the term is zero, not missing

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
    """Return YOLO26's semantic loss per image if no pixel has a class."""
    if not isinstance(prototypes, tuple):
        return 0.0
    loss: torch.Tensor = criterion.bcedice_loss(prototypes[1], torch.zeros_like(prototypes[1])) * criterion.hyp.box
    return loss


def _with_least_score(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (arguments[0].clamp(min=LEAST_SCORE), *arguments[1:])


class _WithoutObjects(nn.Module):
    """Gives batches without objects the varifocal loss of other batches, in an RT-DETR's criterion."""

    def __init__(self, varifocal: nn.Module) -> None:
        super().__init__()
        self._varifocal = varifocal

    def forward(self, scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self._varifocal(scores, wanted, wanted)
        return loss
