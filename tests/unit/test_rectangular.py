"""Ultralytics' networks at sizes that are no squares: images, accuracy, training and files."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from autoprune.formats import ExportFormat
from autoprune.image_size import ImageSize
from autoprune.models import open_adapter
from autoprune.models._base import Batch, ExportSettings
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.models.ultralytics.data import StretchedTrainingImages, TrainingImages, random_state_kept, seed_all
from autoprune.models.ultralytics.sizing import fit
from autoprune.training.finetune import finetune
from tests.contracts.adapters import check_adapter
from tests.helpers.detectors import NAMES, build, write_data, write_detector
from tests.helpers.training import teach

SIZE = ImageSize(48, 96)
SEEN: set[tuple[bool, ...]] = set()
"""What `remember` saw: whether the network was in training, and the shape of its images."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector and a data set whose images are 48 pixels high and 64 wide."""
    folder = tmp_path_factory.mktemp("rectangular")
    write_detector(folder / "tiny.pt")
    write_data(folder)
    return folder


@pytest.fixture(scope="module", params=[SIZE, ImageSize(96, 48)], ids=str)
def adapter(folder: Path, request: pytest.FixtureRequest) -> UltralyticsAdapter:
    return UltralyticsAdapter.load(folder / "tiny.pt", data=folder / "data.yaml", image_size=request.param)


def remember(module: Any, given: Any, _: object) -> None:
    SEEN.add((module.training, *given[0].shape[1:]))


def without_pairs(batch: Batch) -> Batch:
    """Return a batch as the slower of the two scoring losses takes it."""
    return {key: value for key, value in batch.items() if key != "pairs"}


def stock_images(adapter: UltralyticsAdapter) -> Any:
    """Return the validation images as stock ``val`` reads them for a file of this size."""
    assert adapter.data is not None
    with stock.quiet():
        return stock.YOLODataset(
            str(adapter.data.splits["val"][0]),
            imgsz=list(adapter.image_size),
            augment=False,
            rect=False,
            pad=0.5,
            data=dict(adapter.data.settings),
        )


def training_images(
    adapter: UltralyticsAdapter, kind: type[TrainingImages] = TrainingImages, **changes: float
) -> Iterator[dict[str, Any]]:
    """Yield augmented training images, moved and scaled by nothing unless said so."""
    still = dict.fromkeys(("translate", "scale", "hsv_h", "hsv_s", "hsv_v", "fliplr", "mosaic", "mixup"), 0.0)
    assert adapter.data is not None
    with stock.quiet(), random_state_kept():
        images = kind(
            img_path=str(adapter.data.splits["train"][0]),
            imgsz=adapter.image_size,
            batch_size=3,
            hyp=stock.get_cfg(overrides={**still, **changes}),
            stride=32,
            data=dict(adapter.data.settings),
        )
        seed_all(0)
        images.begin_epoch()
        yield from (images[index % len(images)] for index in range(30))


def share_of_right_colours(samples: Iterator[dict[str, Any]]) -> float:
    """Return how many of the larger boxes have the colour of their class in the middle."""
    right = []
    for sample in samples:
        height, width = sample["img"].shape[1:]
        for kind, (x, y, across, down) in zip(sample["cls"].view(-1).tolist(), sample["bboxes"].tolist(), strict=True):
            if min(across * width, down * height) > 8:
                blue, green, _ = sample["img"].flip(0)[:, int(y * height), int(x * width)].tolist()
                right.append((green > blue) == (NAMES[kind] == "green"))
    assert len(right) > 20
    return float(np.mean(right))


def test_keeps_the_contract_of_adapters(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    check_adapter(adapter, build(8), tmp_path)


def test_images_are_those_of_stock_val_of_a_file(adapter: UltralyticsAdapter) -> None:
    (batch,) = adapter.batches("val", images=6, batch=6, seed=0)
    expected = {sample["im_file"]: sample for sample in stock_images(adapter)}
    assert len(expected) == 6
    for index, file in enumerate(batch["im_file"]):
        sample = expected[file]
        torch.testing.assert_close(batch["img"][index], sample["img"].float() / 255)
        torch.testing.assert_close(batch["bboxes"][batch["batch_idx"] == index], sample["bboxes"])
        assert batch["ratio_pad"][index] == sample["ratio_pad"]


@pytest.fixture(scope="module")
def wide(folder: Path) -> UltralyticsAdapter:
    return UltralyticsAdapter.load(folder / "tiny.pt", data=folder / "data.yaml", image_size=SIZE)


@pytest.fixture(scope="module")
def taught(wide: UltralyticsAdapter) -> Any:
    return teach(wide)


def test_the_loss_is_ultralytics_own(wide: UltralyticsAdapter, taught: Any) -> None:
    (batch,) = wide.batches("train", images=6, batch=6, seed=0)
    network = deepcopy(taught).train()
    with torch.no_grad():
        found = float(wide.loss(network, batch))
        expected = float(stock.v8DetectionLoss(network)(network(batch["img"]), batch)[0].sum() / 6)
        fast, whole = (wide.loss_sum(network, one).mean() for one in (batch, without_pairs(batch)))
    assert found == pytest.approx(expected, rel=1e-4)
    assert fast == pytest.approx(whole, rel=1e-4)


def test_stock_opens_what_is_exported_and_finds_the_same_accuracy(
    wide: UltralyticsAdapter, taught: Any, folder: Path, tmp_path: Path
) -> None:
    settings = ExportSettings(ExportFormat("torchscript").spec)
    file = wide.export(taught, tmp_path, settings, convert=lambda *_: None)
    with stock.quiet():
        opened = stock.YOLO(file, task="detect")
        found = opened.val(data=str(folder / "data.yaml"), device="cpu", plots=False, verbose=False, project=tmp_path)
        (result,) = opened.predict(np.zeros((300, 200, 3), np.uint8), verbose=False, save=False)
    ours = wide.validate(taught)
    assert found.box.map50 > 0.5
    assert ours["mAP50-95"] == pytest.approx(found.box.map, abs=1e-6)
    assert wide.validate_deployed(wide.deployable(taught)) == ours
    assert result.orig_shape == (300, 200)


def test_a_checkpoint_keeps_its_size(adapter: UltralyticsAdapter, folder: Path, tmp_path: Path) -> None:
    adapter.save(adapter.module, tmp_path / "model.pt")
    assert open_adapter(tmp_path / "model.pt").image_size == adapter.image_size
    assert open_adapter(tmp_path / "model.pt", image_size=64).image_size == (64, 64)
    with stock.quiet():
        opened = stock.YOLO(tmp_path / "model.pt")
        assert opened.predict(np.zeros((300, 200, 3), np.uint8), verbose=False, save=False)
        found = opened.val(data=str(folder / "data.yaml"), device="cpu", plots=False, verbose=False, project=tmp_path)
    assert found.box.map >= 0


# -- training ----------------------------------------------------------------------------------------


def test_a_fine_tune_trains_and_validates_at_the_size(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    pruned, accuracies = build(8), []
    pruned.model[0].register_forward_hook(remember)
    SEEN.clear()
    finetune(adapter, pruned, epochs=1, out=tmp_path / "out", batch=2, workers=0, on_epoch=accuracies.append)
    assert {shape[1:] for shape in SEEN} == {adapter.input_shape}
    assert {training for training, *_ in SEEN} == {True, False}
    assert accuracies[0].accuracy is not None
    assert stock.YAML.load(tmp_path / "out" / "args.yaml")["imgsz"] == list(adapter.image_size)


@pytest.mark.slow  # starts a process
def test_a_process_of_its_own_trains_at_the_size_too(wide: UltralyticsAdapter, tmp_path: Path) -> None:
    here, there = (
        finetune(wide, build(8), epochs=1, out=tmp_path / name, batch=2, workers=0, devices=devices)
        for name, devices in (("here", ()), ("there", ("cpu",)))
    )
    assert there.losses == pytest.approx(here.losses, rel=0.01), "the process gets the weights in half precision"


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_labels_follow_the_augmentations(adapter: UltralyticsAdapter, mosaic: float) -> None:
    changes = {"mosaic": mosaic, "translate": 0.1, "scale": 0.3, "fliplr": 0.5, "mixup": 0.0}
    samples = list(training_images(adapter, **changes))
    assert {tuple(sample["img"].shape) for sample in samples} == {adapter.input_shape}
    assert share_of_right_colours(iter(samples)) > 0.85, "boxes may hide each other"


def test_objects_are_as_large_in_training_as_letterboxed(adapter: UltralyticsAdapter) -> None:
    (batch,) = adapter.batches("train", images=6, batch=6, seed=0)
    expected = {file: batch["bboxes"][batch["batch_idx"] == index] for index, file in enumerate(batch["im_file"])}
    for sample in training_images(adapter):
        torch.testing.assert_close(sample["bboxes"], expected[sample["im_file"]], atol=0.02, rtol=0)


def test_the_four_images_of_a_mosaic_meet_within_it(folder: Path, tmp_path: Path) -> None:
    """Images of the size's own aspect ratio leave no grey; with a square mosaic's centre many have a grey strip."""
    data = write_data(tmp_path / "data")
    for file in (tmp_path / "data" / "images" / "train").iterdir():
        cv2.imwrite(str(file), np.full((*SIZE, 3), 200, np.uint8))
    plain = UltralyticsAdapter.load(folder / "tiny.pt", data=data, image_size=SIZE)
    for sample in training_images(plain, mosaic=1.0):
        assert (sample["img"] == 200).all()


def test_a_square_is_augmented_as_by_ultralytics(folder: Path) -> None:
    square = UltralyticsAdapter.load(folder / "tiny.pt", data=folder / "data.yaml")
    changes = {"mosaic": 0.5, "translate": 0.1, "scale": 0.5, "fliplr": 0.5}

    class Stock(TrainingImages):
        load_image = stock.YOLODataset.load_image
        build_transforms = stock.YOLODataset.build_transforms

        def __init__(self, imgsz: ImageSize, **settings: Any) -> None:
            super().__init__(imgsz=imgsz.longest, **settings)

    found, expected = (list(training_images(square, kind, **changes)) for kind in (TrainingImages, Stock))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["img"], other["img"])
        assert torch.equal(one["bboxes"], other["bboxes"])


def test_an_rt_detr_is_trained_on_images_stretched_to_the_size(adapter: UltralyticsAdapter) -> None:
    samples = list(training_images(adapter, StretchedTrainingImages))
    assert {tuple(sample["img"].shape) for sample in samples} == {adapter.input_shape}
    assert not any((sample["img"] == 114).all(0).any() for sample in samples), "nothing is padded"


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_an_image_is_only_ever_scaled_down(channels: int) -> None:
    image = np.zeros((100, 400, channels), np.uint8)
    assert fit(image, SIZE).shape == (24, 96, channels)
    assert fit(image, ImageSize(100, 500)) is image
