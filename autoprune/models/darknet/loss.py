"""Darknet's training loss of ``[yolo]`` layers (``src/yolo_layer.c``: ``forward_yolo_layer``).

Redmon and Farhadi, "YOLOv3: An incremental improvement", 2018, sections 2.1 and 2.2; for the losses by overlap
Bochkovskiy, Wang and Liao, "YOLOv4: Optimal speed and accuracy of object detection", 2020, section 3.4.

Darknet computes gradients only; this is the function with these gradients, shifted to be 0 at the ground truth. The
exception are the IoU losses: Darknet approximates their gradient, here it is exact. Boxes are ignored by their overlap
alone, as in section 2.1; AlexeyAB's Darknet also requires a class score above 0.25. Options that only bound or reshape
gradients (``max_delta``, ``focal_loss``, ``label_smooth_eps``, …) have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from torchvision import ops

from autoprune.image_size import ImageSize
from autoprune.models.darknet.cfg import Section

_OVERLAP_LOSSES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "iou": lambda boxes, truths: 1 - ops.box_iou(boxes, truths).diagonal(),
    "giou": ops.generalized_box_iou_loss,
    "diou": ops.distance_box_iou_loss,
    "ciou": ops.complete_box_iou_loss,
}
"""By the names of ``iou_loss``: corners of boxes and of their targets, shape (N, 4) each → losses, shape (N)."""


@dataclass(frozen=True)
class Head:
    """The options of a ``[yolo]`` section that the loss needs; sizes are in pixels of the network's input.

    Attributes:
        anchors: width and height of the anchors of all heads, shape (anchors, 2).
        mask: indices of this head's anchors.
        classes: number of classes.
        scale_x_y: see ``Yolo``.
        ignore_thresh: an unassigned box has no objectness loss above this IoU with a label.
        truth_thresh: a box is assigned to a label above this IoU; 1 for never.
        iou_thresh: an anchor is assigned, in addition to the best one, above this IoU with a label; 1 for never.
        iou_loss: ``mse`` or one of ``_OVERLAP_LOSSES``.
        box_gain: weight of the box loss, ``iou_normalizer``.
        object_gain: weight of the objectness loss, ``obj_normalizer``.
        class_gain: weight of the class loss, ``cls_normalizer``.
    """

    anchors: torch.Tensor
    mask: tuple[int, ...]
    classes: int
    scale_x_y: float
    ignore_thresh: float
    truth_thresh: float
    iou_thresh: float
    iou_loss: str
    box_gain: float
    object_gain: float
    class_gain: float

    @classmethod
    def of(cls, section: Section) -> Head:
        """Read a ``[yolo]`` section; defaults are those of AlexeyAB's Darknet.

        Raises:
            ModelError: an option is malformed or unknown; the message has its line.
        """
        total = section.integer("num", 1, least=1)
        iou_loss = section.text("iou_loss", "mse")
        if iou_loss != "mse" and iou_loss not in _OVERLAP_LOSSES:
            known = ", ".join(("mse", *_OVERLAP_LOSSES))
            raise section.error(f"iou_loss must be one of {known}, got {iou_loss}", "iou_loss")
        return cls(
            anchors=torch.tensor(section.numbers("anchors")[: 2 * total]).view(-1, 2),
            mask=section.integers("mask") or tuple(range(total)),
            classes=section.integer("classes", 20, least=1),
            scale_x_y=section.number("scale_x_y", 1.0),
            ignore_thresh=section.number("ignore_thresh", 0.5),
            truth_thresh=section.number("truth_thresh", 1.0),
            iou_thresh=section.number("iou_thresh", 1.0),
            iou_loss=iou_loss,
            box_gain=section.number("iou_normalizer", 0.75),
            object_gain=section.number("obj_normalizer", 1.0),
            class_gain=section.number("cls_normalizer", 1.0),
        )


@dataclass(frozen=True)
class Truths:
    """The labels of a batch.

    Attributes:
        image: index of each label's image, shape (T).
        class_id: its class, shape (T).
        boxes: centre x, y, width, height as shares of the input's, shape (T, 4).
    """

    image: torch.Tensor
    class_id: torch.Tensor
    boxes: torch.Tensor

    def chosen(self, which: torch.Tensor) -> Truths:
        """Return the labels that a mask or indices select."""
        return Truths(self.image[which], self.class_id[which], self.boxes[which])


@dataclass(frozen=True)
class _Assigned:
    """Assigned places of a map, one row each (image, anchor of the head, row, column), with their labels."""

    place: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    truths: Truths

    def joined(self, other: _Assigned) -> _Assigned:
        place = tuple(torch.cat(pair) for pair in zip(self.place, other.place, strict=True))
        names = ("image", "class_id", "boxes")
        truths = Truths(*(torch.cat([getattr(one, name) for one in (self.truths, other.truths)]) for name in names))
        return _Assigned(place, truths)  # type: ignore[arg-type]


def yolo_loss(heads: Sequence[Head], maps: Sequence[torch.Tensor], truths: Truths, size: ImageSize) -> torch.Tensor:
    """Return the loss of a batch per image, a scalar.

    Args:
        heads: of the network, in order.
        maps: output of each head in train mode, shape (B, anchors · (5 + classes), H, W).
        truths: the batch's labels.
        size: of the network's input.
    """
    total = torch.stack([_head_loss(head, raw, truths, size) for head, raw in zip(heads, maps, strict=True)]).sum()
    return total / len(maps[0])


def _head_loss(head: Head, raw: torch.Tensor, truths: Truths, size: ImageSize) -> torch.Tensor:
    batch, _, height, width = raw.shape
    raw = raw.view(batch, len(head.mask), 5 + head.classes, height, width).permute(0, 1, 3, 4, 2)
    with torch.no_grad():
        overlap, nearest = _overlaps(_boxes(head, raw, size), truths)
        assigned = _assign(head, truths, (height, width), size)
        if head.truth_thresh < 1:
            place = torch.nonzero(overlap > head.truth_thresh, as_tuple=True)
            found = _Assigned(place, truths.chosen(nearest[place]))  # type: ignore[arg-type]
            assigned = assigned.joined(found)
        wanted = torch.zeros_like(raw[..., 4])
        wanted[assigned.place] = 1
        counted = ((overlap <= head.ignore_thresh) | (wanted > 0)).to(raw.dtype)
    objects = functional.binary_cross_entropy_with_logits(raw[..., 4], wanted, weight=counted, reduction="sum")
    return (
        head.object_gain * objects
        + head.class_gain * _class_loss(raw, assigned)
        + head.box_gain * _box_loss(head, raw, assigned, size)
    )


def _boxes(head: Head, raw: torch.Tensor, size: ImageSize) -> torch.Tensor:
    """Return the boxes of a map, shape (B, anchors, H, W, 4), as ``Yolo.decode`` does."""
    height, width = raw.shape[2:4]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=raw.device), torch.arange(width, device=raw.device), indexing="ij"
    )
    scale = head.scale_x_y
    centre = raw[..., :2].sigmoid() * scale - (scale - 1) / 2 + torch.stack([columns, rows], -1)
    anchors = head.anchors.to(raw)[list(head.mask)][:, None, None]
    extent = raw[..., 2:4].exp() * anchors / raw.new_tensor([size.width, size.height])
    return torch.cat([centre / raw.new_tensor([width, height]), extent], -1)


def _overlaps(boxes: torch.Tensor, truths: Truths) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest IoU of every box with a label of its image, and that label's index."""
    best = boxes.new_zeros(boxes.shape[:-1])
    nearest = torch.zeros_like(best, dtype=torch.long)
    corners = ops.box_convert(truths.boxes, "cxcywh", "xyxy")
    for image, found in enumerate(boxes):
        (numbers,) = torch.nonzero(truths.image == image, as_tuple=True)
        if len(numbers):
            here = ops.box_iou(ops.box_convert(found.reshape(-1, 4), "cxcywh", "xyxy"), corners[numbers])
            value, index = here.max(1)
            best[image], nearest[image] = value.view(best[image].shape), numbers[index].view(best[image].shape)
    return best, nearest


def _assign(head: Head, truths: Truths, shape: tuple[int, int], size: ImageSize) -> _Assigned:
    """Assign every label to the cell of its centre and the best-fitting anchor, if that belongs to this head."""
    sides = truths.boxes[:, 2:] * truths.boxes.new_tensor([size.width, size.height])
    anchors = head.anchors.to(sides)
    common = torch.minimum(sides[:, None], anchors).prod(2)
    overlap = common / (sides.prod(1)[:, None] + anchors.prod(1) - common)
    fits = (overlap > head.iou_thresh) | functional.one_hot(overlap.argmax(1), len(anchors)).bool()
    number, anchor = torch.nonzero(fits[:, list(head.mask)], as_tuple=True)
    chosen = truths.chosen(number)
    column, row = (
        (chosen.boxes[:, axis] * cells).long().clamp(0, cells - 1) for axis, cells in ((0, shape[1]), (1, shape[0]))
    )
    return _Assigned((chosen.image, anchor, row, column), chosen)


def _class_loss(raw: torch.Tensor, assigned: _Assigned) -> torch.Tensor:
    """Return the logistic loss of the classes; a place with several labels has all their classes as targets."""
    wanted = torch.zeros_like(raw[..., 5:])
    wanted[(*assigned.place, assigned.truths.class_id)] = 1
    here = wanted.amax(-1) > 0
    return functional.binary_cross_entropy_with_logits(raw[..., 5:][here], wanted[here], reduction="sum")


def _box_loss(head: Head, raw: torch.Tensor, assigned: _Assigned, size: ImageSize) -> torch.Tensor:
    truths = assigned.truths.boxes
    if head.iou_loss != "mse":
        boxes = _boxes(head, raw, size)[assigned.place]
        corners = (ops.box_convert(one, "cxcywh", "xyxy") for one in (boxes, truths))
        return _OVERLAP_LOSSES[head.iou_loss](*corners).sum()
    _, anchor, row, column = assigned.place
    found, (height, width) = raw[assigned.place], raw.shape[2:4]
    inside = truths[:, :2] * truths.new_tensor([width, height]) - torch.stack([column, row], 1)
    share = ((inside + (head.scale_x_y - 1) / 2) / head.scale_x_y).clamp(0, 1)
    centre = head.scale_x_y * _relative_entropy(found[:, :2], share)
    sides = truths[:, 2:] * truths.new_tensor([size.width, size.height])
    extent = torch.log(sides / head.anchors.to(truths)[list(head.mask)][anchor])
    weight = 2 - truths[:, 2:].prod(1)  # small boxes count more
    return (weight[:, None] * (centre + (found[:, 2:4] - extent) ** 2 / 2)).sum()


def _relative_entropy(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the logistic loss minus its value at the target; its gradient is σ(logit) − wanted, as Darknet's."""
    least = -torch.xlogy(wanted, wanted) - torch.xlogy(1 - wanted, 1 - wanted)
    return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none") - least
