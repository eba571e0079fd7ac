"""Darknet's loss against its own loops, and what must always hold of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.errors import ModelError
from autoprune.image_size import ImageSize
from autoprune.models.darknet import parse_cfg
from autoprune.models.darknet.loss import Head, Truths, yolo_loss
from tests.helpers.darknet_loss_reference import Truth, box_at, complete_overlap, deltas, places

SIZE, BATCH = ImageSize(64, 96), 2
PLAIN = Head(
    anchors=torch.tensor([[10.0, 14.0], [30.0, 20.0], [50.0, 60.0]]),
    mask=(1, 2),
    classes=3,
    scale_x_y=1.0,
    ignore_thresh=0.4,
    truth_thresh=1.0,
    iou_thresh=1.0,
    iou_loss="mse",
    box_gain=0.75,
    object_gain=1.0,
    class_gain=1.0,
)
HEADS = {
    "v3": PLAIN,
    "scaled": replace(PLAIN, scale_x_y=1.2, box_gain=0.5, object_gain=0.4, class_gain=0.7),
    "several anchors": replace(PLAIN, iou_thresh=0.2),
}
ROWS, COLUMNS = 2, 3


def example(seed: int, count: int = 4) -> tuple[torch.Tensor, list[Truth]]:
    """Random numbers of a map, shape (B, anchors, H, W, 5 + classes), and labels of any size."""
    random = np.random.default_rng(seed)
    raw = torch.from_numpy(random.normal(0, 0.7, (BATCH, 2, ROWS, COLUMNS, 8)))
    truths = [
        (int(random.integers(BATCH)), int(random.integers(3)), tuple(random.uniform(0.1, 0.9, 4).tolist()))
        for _ in range(count)
    ]
    return raw, truths


def as_tensors(truths: list[Truth]) -> Truths:
    image, kind, boxes = zip(*truths, strict=True)
    return Truths(torch.tensor(image), torch.tensor(kind), torch.tensor(boxes, dtype=torch.float64))


def loss_of(head: Head, raw: torch.Tensor, truths: Truths) -> torch.Tensor:
    given = raw.permute(0, 1, 4, 2, 3).reshape(BATCH, -1, ROWS, COLUMNS)
    return yolo_loss([head], [given], truths, SIZE)


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_its_gradients_are_those_that_darknet_writes_down(name: str, seed: int) -> None:
    raw, truths = example(seed)
    loss_of(HEADS[name], raw.requires_grad_(), as_tensors(truths)).backward()
    assert raw.grad is not None
    expected = deltas(HEADS[name], raw.detach().numpy(), truths, SIZE)
    np.testing.assert_allclose(-raw.grad.numpy() * BATCH, expected, atol=1e-6)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_complete_overlap_counts_as_its_formula_says(seed: int) -> None:
    head = replace(PLAIN, iou_loss="ciou", box_gain=0.07, object_gain=0.0, class_gain=0.0, scale_x_y=1.1)
    raw, truths = example(seed)
    expected = 0.0
    for truth in truths:
        for anchor, row, column in places(head, truth, (ROWS, COLUMNS), SIZE):
            cell = raw[truth[0], anchor, row, column].numpy()
            box = box_at(head, cell, anchor=anchor, row=row, column=column, shape=(ROWS, COLUMNS), size=SIZE)
            expected += 0.07 * (1 - complete_overlap(box, truth[2]))
    assert float(loss_of(head, raw, as_tensors(truths))) == pytest.approx(expected / BATCH, abs=1e-6)


@pytest.mark.parametrize("iou_loss", ["mse", "iou", "giou", "diou", "ciou"])
def test_a_box_at_the_truth_loses_nothing(iou_loss: str) -> None:
    head = replace(PLAIN, iou_loss=iou_loss, object_gain=0.0, class_gain=0.0)
    raw = torch.zeros(BATCH, 2, ROWS, COLUMNS, 8, dtype=torch.float64)
    raw[0, 0, 1, 2, :4] = torch.tensor([0.3, -0.4, 0.2, 0.1])
    box = box_at(head, raw[0, 0, 1, 2].numpy(), anchor=0, row=1, column=2, shape=(ROWS, COLUMNS), size=SIZE)
    loss = loss_of(head, raw.requires_grad_(), as_tensors([(0, 1, box)]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert raw.grad is not None
    if iou_loss == "mse":  # overlaps have a kink there
        assert float(raw.grad.abs().max()) == pytest.approx(0, abs=1e-6)
    moved = raw.detach().clone()
    moved[0, 0, 1, 2, 2] += 0.3
    assert float(loss_of(head, moved, as_tensors([(0, 1, box)]))) > 1e-3


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_the_order_of_labels_does_not_matter(seed: int) -> None:
    raw, truths = example(seed)
    one, two = (float(loss_of(HEADS["scaled"], raw, as_tensors(some))) for some in (truths, truths[::-1]))
    assert one == pytest.approx(two)


def test_images_without_labels_want_no_objects() -> None:
    raw, _ = example(0)
    nothing = Truths(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0, 4).double())
    expected = torch.nn.functional.softplus(raw[..., 4]).sum() / BATCH
    assert float(loss_of(PLAIN, raw, nothing)) == pytest.approx(float(expected))


def test_boxes_that_overlap_enough_are_to_find_the_object_too() -> None:
    """A truth of another head's anchor that a box of this head has found: ``truth_thresh`` says what that is."""
    head = replace(PLAIN, mask=(1,))
    raw = torch.zeros(BATCH, 1, ROWS, COLUMNS, 8, dtype=torch.float64)
    raw[0, 0, 0, 0, 2:4] = torch.log(torch.tensor([50 / 30, 60 / 20]))
    box = box_at(head, raw[0, 0, 0, 0].numpy(), anchor=0, row=0, column=0, shape=(ROWS, COLUMNS), size=SIZE)
    assert not places(head, (0, 1, box), (ROWS, COLUMNS), SIZE)
    never, found = (
        float(loss_of(replace(head, truth_thresh=limit), raw, as_tensors([(0, 1, box)]))) for limit in (1.0, 0.9)
    )
    assert found - never == pytest.approx((1 + head.classes) * math.log(2) / BATCH)


def test_a_section_is_read_and_an_unknown_loss_is_refused_with_its_line() -> None:
    text = (
        "[net]\nwidth=32\nheight=32\nchannels=3\n[convolutional]\nfilters=16\n"
        "[yolo]\nmask=0,1\nanchors=10,14, 30,20, 50,60\nnum=3\nclasses=3\niou_loss={}\niou_normalizer=0.07\n"
    )
    head = Head.of(parse_cfg(text.format("ciou")).layers[1])
    assert (head.mask, head.iou_loss, head.box_gain, head.anchors.tolist()[2]) == ((0, 1), "ciou", 0.07, [50, 60])
    assert (head.ignore_thresh, head.truth_thresh, head.object_gain, head.class_gain) == (0.5, 1, 1, 1)
    with pytest.raises(ModelError, match=r"line 12: iou_loss must be one of mse, iou, giou, diou, ciou, got best"):
        Head.of(parse_cfg(text.format("best")).layers[1])
