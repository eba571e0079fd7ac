"""Detectors that were trained with ``single_cls=True``: one class, whatever the labels of the data set say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoprune.cli.main import main
from autoprune.errors import DataError
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.training import PrunedTrainer
from tests.helpers.detectors import IMAGE_SIZE, build, write_data, write_detector
from tests.helpers.stock_val import stock_val
from tests.helpers.training import teach
from tests.helpers.world import arguments, summary

TRAINED = {"imgsz": IMAGE_SIZE, "task": "detect", "single_cls": True}


def single(width: int = 32) -> object:
    network = build(width, nc=1)
    network.names = {0: "item"}  # as Ultralytics' training calls it
    return network


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold ``best.pt``, which finds the boxes of both classes as one, and ``data`` with the two."""
    folder = tmp_path_factory.mktemp("single")
    data = write_data(folder / "data")
    adapter = UltralyticsAdapter.load(write_detector(folder / "best.pt", single(), train_args=TRAINED), data=data)
    adapter.save(teach(adapter), folder / "best.pt")
    return folder


@pytest.fixture
def adapter(world: Path) -> UltralyticsAdapter:
    return UltralyticsAdapter.load(world / "best.pt", data=world / "data" / "data.yaml")


def test_every_label_is_of_the_one_class(adapter: UltralyticsAdapter) -> None:
    for split in ("train", "val"):
        (batch,) = adapter.batches(split, images=6, batch=6, seed=0)
        assert len(batch["cls"]) == 12
        assert not batch["cls"].any()
    assert torch.isfinite(adapter.loss(adapter.module, batch))


def test_validates_as_stock_val_does_on_the_original_data(world: Path, adapter: UltralyticsAdapter) -> None:
    found = adapter.validate(adapter.module)
    assert found.primary > 0.2
    expected = stock_val(world / "best.pt", world / "data" / "data.yaml")
    assert tuple(found.values()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_a_search_with_its_finetune_reports_what_stock_val_does(world: Path, tmp_path: Path, quick: None) -> None:
    options = ("--budget", "flops=85%", "--episodes", "2", "--finetune-epochs", "1")
    assert main(arguments("search", world, tmp_path / "run", *options)) == 0
    for stage, file in (("pruned", "pruned.pt"), ("finetuned", "model.pt")):
        reported = summary(tmp_path / "run")["stages"][stage]["metrics"]["mAP50-95"]
        expected, _ = stock_val(tmp_path / "run" / file, world / "data" / "data.yaml")
        assert expected > 0.01
        assert reported == pytest.approx(expected, abs=0.03)  # the file's weights have half precision
    tuned = UltralyticsAdapter.load(tmp_path / "run" / "model.pt", data=world / "data" / "data.yaml")
    assert tuned.module.names == {0: "item"}
    assert tuned.train_args["single_cls"] is True


@pytest.mark.slow
def test_stock_training_goes_on(world: Path, tmp_path: Path) -> None:
    options = {"imgsz": IMAGE_SIZE, "epochs": 1, "device": "cpu", "plots": False, "workers": 0, "batch": 4}
    with stock.quiet():
        network = stock.YOLO(world / "best.pt")
        network.train(
            trainer=PrunedTrainer, data=str(world / "data" / "data.yaml"), project=str(tmp_path), name="run", **options
        )
    assert (tmp_path / "run" / "weights" / "last.pt").is_file()


def test_without_that_training_the_classes_must_be_the_same(world: Path, tmp_path: Path) -> None:
    write_detector(tmp_path / "best.pt", single(16))
    with pytest.raises(DataError, match=r"tells 1 classes apart, but .* names 2"):
        UltralyticsAdapter.load(tmp_path / "best.pt", data=world / "data" / "data.yaml")
