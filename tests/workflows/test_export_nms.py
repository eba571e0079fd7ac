"""Files with non-maximum suppression inside, against predictions with suppression outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.cli.main import main
from autoprune.formats import FORMATS, ExportFormat
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from tests.helpers.darknet_detector import write_detector as write_darknet
from tests.helpers.detectors import build, write_data, write_detector
from tests.helpers.packages import need
from tests.helpers.task_data import write_task_data
from tests.helpers.training import teach
from tests.helpers.world import one_sentence
from tests.unit.test_tasks import write_network

pytestmark = pytest.mark.filterwarnings("ignore")

SIZE = (64, 96)
FILES = [ExportFormat(spec.name) for spec in FORMATS if spec.nms]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and ``best.pt``, which has learnt the validation images by heart."""
    folder = tmp_path_factory.mktemp("nms")
    data = write_data(folder / "data")
    adapter = UltralyticsAdapter.load(write_detector(folder / "tiny.pt"), data=data, image_size=SIZE)
    adapter.save(teach(adapter), folder / "best.pt")
    return folder


def exporting(model: Path, out: Path, *more: str) -> int:
    words = ["--model", str(model), "--nms", "--device", "cpu", "--threads", "1", "--out", str(out), "--no-report"]
    return main(["export", *words, *more])


def detections(file: Path, images: list[str], **options: Any) -> list[torch.Tensor]:
    """Return what stock ``predict`` finds in images, sorted: x1, y1, x2, y2, score, class per row."""
    with stock.quiet():
        model = stock.YOLO(file, task="detect")
        found = [model.predict(image, verbose=False, save=False, **options)[0].boxes.data for image in images]
    return [rows[rows[:, 0].argsort()] for rows in found]


@pytest.mark.parametrize("file_format", FILES, ids=lambda one: one.value)
def test_stock_finds_the_same_with_suppression_inside_and_outside(
    file_format: ExportFormat, world: Path, tmp_path: Path
) -> None:
    if file_format is not ExportFormat.TORCHSCRIPT:
        need(file_format.runtime.value)
    words = ["--data", str(world / "data" / "data.yaml"), "--format", file_format.value]
    assert exporting(world / "best.pt", tmp_path / "run", *words) == 0
    told = json.loads((tmp_path / "run" / "export.json").read_text())
    by_torch, exported = (told["stages"][name]["metrics"]["mAP50"] for name in ("torch", file_format.value))
    assert (told["nms"], told["parity"]["passed"]) == (True, True)
    assert exported == pytest.approx(by_torch, abs=0.001)
    assert exported > 0.9
    images = sorted(str(file) for file in (world / "data" / "images" / "val").iterdir())
    inside = detections(tmp_path / "run" / told["file"], images)
    with stock.quiet():
        without = stock.YOLO(world / "best.pt").export(format="torchscript", imgsz=list(SIZE), verbose=False)
    outside = detections(Path(without), images)
    assert all(len(rows) >= 2 for rows in outside)
    for rows, expected in zip(inside, outside, strict=True):
        torch.testing.assert_close(rows, expected, atol=0.5 if file_format is ExportFormat.OPENVINO else 1e-3, rtol=0)


def test_rows_with_masks_are_measured_too(tmp_path: Path) -> None:
    data = write_task_data(tmp_path / "data", "segment")
    adapter = UltralyticsAdapter.load(write_network(tmp_path / "segment.pt", "segment"), data=data)
    adapter.save(teach(adapter, steps=60), tmp_path / "best.pt")
    assert exporting(tmp_path / "best.pt", tmp_path / "run", "--data", str(data), "--format", "torchscript") == 0
    told = json.loads((tmp_path / "run" / "export.json").read_text())
    assert told["stages"]["torchscript"]["metrics"]["mask mAP50"] > 0.9
    assert told["parity"]["accuracy"] < 0.001


def test_on_noise_it_is_said_that_nothing_is_detected(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exporting(world / "best.pt", tmp_path / "run", "--format", "torchscript") == 0
    assert "noise, in which nothing is detected" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "ncnn"], "--nms is for --format onnx, openvino or torchscript, got ncnn"),
        (["--dynamic"], "A file with --nms has a fixed batch and image size; leave --dynamic out"),
    ],
)
def test_what_cannot_have_it_is_refused(
    words: list[str], said: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exporting(world / "best.pt", tmp_path / "run", *words) == 2
    assert said in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_network_that_needs_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end_to_end = build(end2end=True)
    end_to_end.model[-1].end2end = True
    for model in (write_detector(tmp_path / "e2e.pt", end_to_end), write_darknet(tmp_path)):
        assert exporting(model, tmp_path / "run") == 2
        said = one_sentence(capsys.readouterr().err)
        assert f"{model.stem} has no such head; leave it out" in said
        assert not (tmp_path / "run").exists()
