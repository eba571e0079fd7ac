"""The adapter of Darknet's detectors."""

from __future__ import annotations

import struct
import zlib
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from autoprune.criteria.registry import make_criterion
from autoprune.errors import DataError, ModelError
from autoprune.image_size import ImageSize, SizeLike
from autoprune.models import open_adapter
from autoprune.models.darknet import DarknetAdapter, DarknetNetwork, prune, read
from tests.contracts.adapters import check_adapter
from tests.helpers.darknet_detector import CFG, HEADER, SIZE, load, write_detector
from tests.helpers.detectors import write_data, write_yaml


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> DarknetAdapter:
    return load(tmp_path_factory.mktemp("darknet"))


@pytest.fixture(scope="module")
def pruned(adapter: DarknetAdapter) -> DarknetNetwork:
    return prune(adapter.module, 0.5, order=make_criterion("l1").order)


def test_it_keeps_the_contract(adapter: DarknetAdapter, pruned: DarknetNetwork, tmp_path: Path) -> None:
    check_adapter(adapter, pruned, tmp_path)


def test_what_is_saved_is_a_darknet_network_with_notes(
    adapter: DarknetAdapter, pruned: DarknetNetwork, tmp_path: Path
) -> None:
    path, notes = adapter.checkpoint(tmp_path, "pruned"), {"budget": ["flops=50%"], "keep": {"layers.0": 4}}
    adapter.save(pruned, path, notes=notes)
    network, header = read(path, tmp_path / "pruned.weights")
    assert header == HEADER
    images = adapter.example(1)
    torch.testing.assert_close(network.eval()(images), pruned.eval()(images))
    opened = DarknetAdapter.load(path)
    assert opened.notes == notes
    opened.save(opened.module, path, notes={"again": 1})
    assert DarknetAdapter.load(path).notes == {"again": 1}
    opened.save(opened.module, path)
    assert path.read_text() == network.current_cfg().noted({})
    assert "autoprune" not in path.read_text()
    assert "# two levels" in path.read_text()


@pytest.mark.parametrize("size", [96, (96, 64)])
def test_another_image_size_is_kept(tmp_path: Path, size: SizeLike) -> None:
    opened = DarknetAdapter.load(write_detector(tmp_path), image_size=size)
    assert opened.image_size == ImageSize.of(size)
    assert opened.example(1).shape == (1, 3, *ImageSize.of(size))
    opened.save(opened.module, tmp_path / "larger.cfg")
    assert DarknetAdapter.load(tmp_path / "larger.cfg").image_size == ImageSize.of(size)


def test_predictions_are_boxes_in_pixels_with_scores(adapter: DarknetAdapter) -> None:
    deployed, images = adapter.deployable(adapter.module), adapter.example(2)
    with torch.inference_mode():
        found, expected = deployed(images), adapter.module(images)
    torch.testing.assert_close(found[:, :4].transpose(1, 2), expected[..., :4] * SIZE, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:, 4:].transpose(1, 2), expected[..., 5:], rtol=1e-4, atol=1e-5)


def test_a_network_that_finds_all_labels_is_right_about_everything(adapter: DarknetAdapter) -> None:
    (batch,) = adapter.batches("val", images=4, batch=4, seed=0)

    def perfect(images: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(images), 6, 8)
        for image in range(len(images)):
            mine = batch["batch_idx"] == image
            boxes, kinds = batch["bboxes"][mine] * SIZE, batch["cls"][mine].view(-1).long()
            found[image, :4, : len(boxes)] = boxes.T
            found[image, 4 + kinds, torch.arange(len(boxes))] = 0.9
        return found

    figures = adapter.accuracy(adapter.module, [batch], predict=perfect)
    assert figures.primary > 0.99
    assert figures["mAP50"] > 0.99
    assert all(one["mAP50"] > 0.99 for one in figures.per_class.values())
    assert figures.per_class


@pytest.mark.slow
def test_the_loss_falls_where_it_trains_on_two_images(adapter: DarknetAdapter) -> None:
    (batch,) = adapter.batches("train", images=2, batch=2, seed=0)
    module = deepcopy(adapter.module).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = adapter.loss(module, batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_an_epoch_has_every_image_once_but_a_last_one_alone(adapter: DarknetAdapter) -> None:
    assert [len(adapter.inputs(batch)) for batch in adapter.epoch(batch=4, seed=0)] == [4, 2]
    assert [len(adapter.inputs(batch)) for batch in adapter.epoch(batch=5, seed=0)] == [5]
    assert [len(adapter.inputs(batch)) for batch in adapter.epoch(batch=1, seed=0)] == [1] * 6
    names = [name for batch in adapter.epoch(batch=4, seed=0) for name in batch["im_file"]]
    assert len(set(names)) == 6
    one, same, other = (next(iter(adapter.epoch(batch=4, seed=seed)))["img"] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_an_image_whose_pixels_cannot_be_decoded_is_skipped_and_named(tmp_path: Path) -> None:
    opened = load(tmp_path)
    spoilt = tmp_path / "data" / "images" / "val" / "2.png"
    head = spoilt.read_bytes()[:33]  # its signature and IHDR
    chunks = [(b"IDAT", b"no stream of zlib"), (b"IEND", b"")]
    rest = [struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in chunks]
    spoilt.write_bytes(head + b"".join(rest))
    for _ in range(2):
        opened.validate(opened.module)
        assert opened.skipped == (f"{spoilt}: its pixels cannot be decoded",)


def test_a_scaled_network_is_narrower_and_has_the_same_heads(adapter: DarknetAdapter) -> None:
    scaled = adapter.scaled(2.0)
    assert isinstance(scaled, DarknetNetwork)
    widths = {index: layer.conv.out_channels for index, layer in scaled.convolutions()}
    assert widths == {0: 16, 1: 32, 3: 32, 4: 48, 5: 7, 10: 7}


def test_the_dense_training_is_that_of_the_cfg(adapter: DarknetAdapter) -> None:
    assert (adapter.sgd.lr, adapter.sgd.momentum, adapter.sgd.weight_decay) == (0.01, 0.9, 0.0005)


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "size", "problem"),
    [
        (
            "anchors=14,14, 22,22",
            "anchors=14,14, 22",
            None,
            r"anchors must be pairs of width and height, got \d+ numbers",
        ),
        ("", "", 72, r"positive multiple of the network's stride 16, got 72; try 80"),
        ("", "", (72, 64), r"positive multiple of the network's stride 16, got 72,64; try 80,64"),
        (
            "filters=7\nsize=1\nactivation=linear\n\n[yolo]\nmask=1\nanchors=14,14, 22,22\nclasses=2",
            "filters=8\nsize=1\nactivation=linear\n\n[yolo]\nmask=1\nanchors=14,14, 22,22\nclasses=3",
            None,
            r"line \d+: all \[yolo\] must have the same classes, 3 as the first one",
        ),
    ],
)
def test_a_cfg_that_does_not_suit(tmp_path: Path, old: str, new: str, size: SizeLike | None, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        open_adapter(write_detector(tmp_path, CFG.replace(old, new, 1)), image_size=size)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    cfg, data = write_detector(tmp_path), write_data(tmp_path / "data")
    other = write_yaml(data.with_name("other.yaml"), {"train": "images/train", "val": "images/val", "names": ["a"]})
    with pytest.raises(DataError, match=r"tiny\.cfg detects 2 classes .*, but .*other\.yaml names 1"):
        open_adapter(cfg, data=other)


def test_without_data_only_the_network_can_be_used(tmp_path: Path) -> None:
    opened = open_adapter(write_detector(tmp_path))
    assert not opened.has_images
    with pytest.raises(DataError, match="give its YAML file with `data`"):
        opened.batches("train", images=1, batch=1, seed=0)
