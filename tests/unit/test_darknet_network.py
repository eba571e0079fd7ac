"""A network made of a cfg computes what Darknet does."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.models.darknet import DarknetNetwork, parse_cfg, prune
from autoprune.models.darknet.layers import MaxPool, Route, Yolo
from tests.helpers.darknet_families import FAMILIES, NUMBERS
from tests.helpers.darknet_networks import build, images, last_channels, write_files
from tests.helpers.darknet_reference import FIXTURE, KEPT, ROWS


@pytest.mark.parametrize("name", ["dense", "pruned"])
@pytest.mark.parametrize(
    ("epsilon", "boxes", "scores"), [(1e-6, 1e-5, 3e-6), (1e-5, 2e-4, 3e-5)], ids=["as opencv", "as darknet"]
)
def test_opencv_computes_the_same(name: str, epsilon: float, boxes: float, scores: float) -> None:
    """See ``darknet_reference.py``; OpenCV's epsilon is not Darknet's, and it has no scores below 0.2."""
    network = build()
    if name == "pruned":
        network = prune(network, KEPT, order=last_channels)
    for child in network.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eps = epsilon
    expected = torch.from_numpy(np.load(FIXTURE)[name])
    with torch.no_grad():
        found = network(images(1))[0, ROWS]
    torch.testing.assert_close(found[:, :4], expected[:, :4], rtol=boxes, atol=boxes)
    torch.testing.assert_close(found[:, 4], expected[:, 4], rtol=0, atol=scores)
    told = expected[:, 5:] > 0
    assert told.float().mean() > 0.5
    assert found[:, 5:][~told].max() < 0.2
    torch.testing.assert_close(found[:, 5:][told], expected[:, 5:][told], rtol=0, atol=scores)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_have_as_many_numbers_as_the_published_files(name: str) -> None:
    with torch.device("meta"):
        network = DarknetNetwork(parse_cfg(FAMILIES[name](1, 416), name))
    assert sum(tensor.numel() for _, layer in network.convolutions() for tensor in layer.tensors()) == NUMBERS[name]


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(2, 2, 1), (2, 1, 1), (5, 1, 4), (3, 2, 2), (2, 2, 0), (3, 1, 1)]
)
@pytest.mark.parametrize("side", [5, 6])
def test_maxpool_is_darknets_loop(size: int, stride: int, padding: int, side: int) -> None:
    image = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(side))
    found = MaxPool(size, stride, padding)(image)[0, 0]
    count, offset = (side + padding - size) // stride + 1, -(padding // 2)
    assert found.shape == (count, count)
    for row in range(count):
        for column in range(count):
            top, left = offset + row * stride, offset + column * stride
            window = image[0, 0, max(top, 0) : top + size, max(left, 0) : left + size]
            assert found[row, column] == window.max()


def test_a_route_with_groups_takes_its_part_of_every_layer() -> None:
    one, other = torch.arange(4.0).view(1, 4, 1, 1), torch.arange(10.0, 12.0).view(1, 2, 1, 1)
    assert Route(2, 1)(one, other).flatten().tolist() == [2, 3, 11]
    assert Route(1, 0)(one, other).flatten().tolist() == [0, 1, 2, 3, 10, 11]


def test_boxes_follow_the_formula() -> None:
    head = Yolo([(8.0, 10.0), (12.0, 20.0)], classes=1, scale_x_y=1.2)
    raw = torch.zeros(1, 12, 2, 3)
    raw[0, 6:, 1, 2] = torch.tensor([0.5, -0.5, 0.3, -0.3, 1.0, 2.0])  # second anchor, row 1, column 2

    def logistic(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    found = head.decode(raw, (64, 96))[0, (1 * 3 + 2) * 2 + 1].tolist()
    assert found == pytest.approx(
        [
            (2 + 1.2 * logistic(0.5) - 0.1) / 3,
            (1 + 1.2 * logistic(-0.5) - 0.1) / 2,
            math.exp(0.3) * 12 / 96,
            math.exp(-0.3) * 20 / 64,
            logistic(1.0),
            logistic(1.0) * logistic(2.0),
        ]
    )


def test_train_mode_gives_raw_maps_and_eval_mode_boxes_at_any_size() -> None:
    network = build()
    maps = network.train()(images())
    assert [tuple(raw.shape) for raw in maps] == [(2, 21, 8, 12), (2, 14, 16, 24)]
    assert all(raw.requires_grad for raw in maps)
    boxes = network.eval()(torch.zeros(1, 3, 32, 32))
    assert boxes.shape == (1, 4 * 4 * 3 + 8 * 8 * 2, 7)


def test_the_fixture_is_of_the_files_that_are_written_today(tmp_path: Path) -> None:
    """Guards against a network that changes under its reference: the pruned cfg has the widths of ``KEPT``."""
    cfg, _ = write_files(prune(build(), KEPT, order=last_channels), tmp_path)
    written = parse_cfg(cfg.read_text())
    assert [written.layers[int(name.split(".")[1])].integer("filters") for name in KEPT] == [
        2 * count if name == "layers.1" else count for name, count in KEPT.items()
    ]
