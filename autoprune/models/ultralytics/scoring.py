"""Ultralytics' detection loss, evaluated only for anchors within objects: fast scoring of thousands of candidates.

The stock loss compares every anchor with every object of the fullest image, and decodes every anchor's box. Only
anchors with their centre in an object can be assigned to it, which depends on the labels alone. So these pairs are
found once per batch, and only they are decoded and compared. The value is that of the stock loss up to the rounding of
sums, in a third of its time (YOLOv5n, 320 px).

Source: task-aligned assignment, Feng et al., "TOOD", ICCV 2021, section 3.2, as in Ultralytics'
``TaskAlignedAssigner``; the losses as in its ``v8DetectionLoss``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from autoprune.models import stock
from autoprune.models._base import LossSum
from autoprune.models.ultralytics.loss_sums import LEAST_SCORE


@dataclass(frozen=True)
class Pairs:
    """The pairs (object, anchor) of a batch with the anchor's centre in the object.

    P pairs, sorted by object; C distinct anchors of distinct images among them; O objects with at least
    one pair, of which the largest has K.

    Attributes:
        image: image of each distinct anchor, shape (C,).
        anchor: its index on the feature maps, shape (C,).
        point: its centre, in strides, shape (C, 2).
        stride: its stride in pixels, shape (C, 1).
        candidate: index of each pair's anchor among the distinct ones, shape (P,).
        row: index of each pair's object, shape (P,).
        slot: index of each pair among the pairs of its object, shape (P,).
        class_id: class of each pair's object, shape (P,).
        box: its box, as corners in pixels, shape (P, 4).
        objects: O.
        largest: K.
    """

    image: torch.Tensor
    anchor: torch.Tensor
    point: torch.Tensor
    stride: torch.Tensor
    candidate: torch.Tensor
    row: torch.Tensor
    slot: torch.Tensor
    class_id: torch.Tensor
    box: torch.Tensor
    objects: int
    largest: int


def find_pairs(criterion: Any, batch: Mapping[str, Any]) -> Pairs:
    """Return the pairs that the labels of a batch allow.

    Args:
        criterion: Ultralytics' ``v8DetectionLoss``.
        batch: images and labels as `data.to_batch` makes them.
    """
    images = batch["img"]
    height, width = images.shape[-2:]
    maps = [images.new_empty(1, 1, height // int(stride), width // int(stride)) for stride in criterion.stride]
    points, strides = stock.make_anchors(maps, criterion.stride, 0.5)
    labels = torch.cat((batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]), 1)
    scale = torch.tensor([width, height, width, height], device=images.device)
    class_ids, boxes = criterion.preprocess(labels, len(images), scale_tensor=scale).split((1, 4), 2)
    valid = boxes.sum(2, keepdim=True).gt(0)
    if not valid.numel():
        inside = torch.zeros(0, 3, dtype=torch.long, device=images.device)
    else:
        inside = (criterion.assigner.select_candidates_in_gts(points * strides, boxes, valid) & valid).nonzero()
    image, thing, anchor = inside.unbind(1)
    distinct, candidate = torch.unique(image * len(points) + anchor, return_inverse=True)
    _, row, sizes = (image * max(boxes.shape[1], 1) + thing).unique_consecutive(return_inverse=True, return_counts=True)
    first = sizes.cumsum(0) - sizes
    return Pairs(
        image=distinct // len(points),
        anchor=distinct % len(points),
        point=points[distinct % len(points)],
        stride=strides[distinct % len(points)],
        candidate=candidate,
        row=row,
        slot=torch.arange(len(row), device=images.device) - first[row],
        class_id=class_ids[image, thing, 0].long(),
        box=boxes[image, thing],
        objects=len(sizes),
        largest=int(sizes.max()) if len(sizes) else 0,
    )


def supports(criterion: Any) -> bool:
    """Return whether `scoring_sum` evaluates this criterion: a plain one-to-many head with distributed boxes."""
    return type(criterion) is stock.v8DetectionLoss and criterion.use_dfl and criterion.class_weights is None


def scoring_sum(criterion: Any, predictions: Mapping[str, torch.Tensor], pairs: Pairs) -> LossSum:
    """Return the stock loss before its division by the target scores.

    Args:
        criterion: Ultralytics' ``v8DetectionLoss``.
        predictions: the network's output in train mode, ``boxes`` (B, 4·bins, anchors) and ``scores``
            (B, classes, anchors).
        pairs: of the batch.
    """
    scores, gains = predictions["scores"], criterion.hyp
    classification = F.softplus(scores).sum()
    if not pairs.objects:
        return LossSum((classification * gains.cls).view(1), classification.new_zeros(1))
    bins = predictions["boxes"].transpose(1, 2)[pairs.image, pairs.anchor].view(-1, 4, criterion.reg_max)
    distances = bins.softmax(2).matmul(criterion.proj)
    boxes = stock.dist2bbox(distances, pairs.point, xywh=False) * pairs.stride
    logits = scores[pairs.image[pairs.candidate], pairs.class_id, pairs.anchor[pairs.candidate]]
    similarity = stock.bbox_iou(boxes[pairs.candidate], pairs.box, xywh=False, CIoU=True).squeeze(-1)
    probability = logits.sigmoid().clamp(min=LEAST_SCORE)
    with torch.no_grad():
        chosen, target = _assign(criterion.assigner, pairs, probability, similarity.clamp(min=0))
    candidate = pairs.candidate[chosen]
    sides = stock.bbox2dist(pairs.point[candidate], pairs.box[chosen] / pairs.stride[candidate], criterion.reg_max - 1)
    distribution = criterion.bbox_loss.dfl_loss(bins[candidate].view(-1, criterion.reg_max), sides).squeeze(-1)
    total = (
        gains.cls * (classification - (logits[chosen] * target).sum())
        + gains.box * ((1 - similarity[chosen]) * target).sum()
        + gains.dfl * (distribution * target).sum()
    )
    return LossSum(total.view(1), target.sum().view(1))


def _assign(
    assigner: Any, pairs: Pairs, probability: torch.Tensor, overlap: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of the assigned pairs, and their target scores."""
    alignment = probability.pow(assigner.alpha) * overlap.pow(assigner.beta)
    positive = _best_per_object(pairs, alignment, assigner.topk)
    positive = _one_object_per_anchor(pairs, positive, overlap)
    chosen = positive.nonzero().squeeze(1)
    row, alignment, overlap = pairs.row[chosen], alignment[chosen], overlap[chosen]
    zero = torch.zeros(pairs.objects, device=alignment.device)
    best_alignment = zero.scatter_reduce(0, row, alignment, "amax")
    best_overlap = zero.scatter_reduce(0, row, overlap, "amax")
    return chosen, alignment * best_overlap[row] / (best_alignment[row] + assigner.eps)


def _best_per_object(pairs: Pairs, alignment: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask of the ``count`` best aligned pairs of every object, shape (P,)."""
    table = torch.full((pairs.objects, pairs.largest), -1.0, device=alignment.device)
    table[pairs.row, pairs.slot] = alignment
    best = table.topk(min(count, pairs.largest), dim=1).indices
    marked = torch.zeros(table.shape, dtype=torch.bool, device=table.device).scatter_(1, best, True)
    return marked[pairs.row, pairs.slot]


def _one_object_per_anchor(pairs: Pairs, positive: torch.Tensor, overlap: torch.Tensor) -> torch.Tensor:
    """Return ``positive`` with each anchor of several objects assigned to the one of the largest overlap alone."""
    anchors = len(pairs.anchor)
    claims = torch.zeros(anchors, dtype=torch.long, device=overlap.device)
    claims.index_add_(0, pairs.candidate, positive.long())
    most = torch.zeros(anchors, device=overlap.device).scatter_reduce(0, pairs.candidate, overlap, "amax")
    index = torch.arange(len(overlap), device=overlap.device)
    largest = index[overlap == most[pairs.candidate]]
    first = torch.full((anchors,), len(overlap), device=overlap.device)
    first.scatter_reduce_(0, pairs.candidate[largest], largest, "amin")
    return torch.where(claims[pairs.candidate] > 1, index == first[pairs.candidate], positive)
