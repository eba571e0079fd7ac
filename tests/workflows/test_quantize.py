"""``autoprune quantize``: which layers stay in float, what a run leaves, how it goes on."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.cli.main import main
from autoprune.models._base import Batch, Predict
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.report.detections import SHOWN, read_detections
from autoprune.results import Metrics
from autoprune.runtimes import settings
from tests.helpers.detectors import IMAGE_SIZE, NAMES, build, write_data, write_detector
from tests.helpers.packages import need
from tests.helpers.world import arguments, cut, one_sentence, records, stages_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with random weights, and its data."""
    need("onnxruntime")
    folder = tmp_path_factory.mktemp("world")
    write_detector(folder / "best.pt", build(32))
    write_data(folder / "data", images=17)
    return folder


def script(patch: pytest.MonkeyPatch, *values: float) -> list[torch.Tensor]:
    """Let accuracies on held-out images be these, one after the other, then the last one; return what was predicted.

    Random weights detect nothing, so that the true accuracies are all 0.
    """
    left, predictions = list(values), []

    def accuracy(_: object, module: nn.Module, batches: Sequence[Batch], *, predict: Predict) -> Metrics:
        predictions.append(predict(batches[0]["img"]))
        value = left.pop(0) if len(left) > 1 else left[0]
        return Metrics({"mAP50-95": value, "mAP50": value})

    patch.setattr(UltralyticsAdapter, "accuracy", accuracy)
    return predictions


def words(world: Path, out: Path, *more: str) -> list[str]:
    named = ["--model", str(world / "best.pt"), "--data", str(world / "data" / "data.yaml"), "--out", str(out)]
    return ["quantize", *named, "--threads", "1", *more]


def told(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "quantize.json").read_text()))


@pytest.fixture(scope="module")
def finished(quick: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network loses more in int8 than it may."""
    out = tmp_path_factory.mktemp("quantize") / "run"
    with pytest.MonkeyPatch.context() as patch:
        script(patch, 0.9, 0.5, 0.6, 0.895)
        assert main(words(world, out)) == 0
    return out


# -- the command -------------------------------------------------------------------------------------


def test_the_network_is_quantised_but_for_what_loses_too_much(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "config.yaml",
        "detections.json",
        "inputs.json",
        "journal.jsonl",
        "model.int8.onnx",
        "quantize.json",
        "report.html",
        "run.log",
    ]
    found = told(finished)
    choice = found["networks"]["model"]
    errors, steps = choice["errors"], choice["steps"]
    assert (found["calibration_images"], found["held_out_images"]) == (8, 9), "there are 17 images for both"
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert [step["in_float"] for step in steps] == [list(errors)[:count] for count in range(len(steps))]
    assert [step["accuracy"] for step in steps] == [0.5, 0.6, 0.895]
    assert choice["in_float"] == steps[-1]["in_float"]
    assert list(found["stages"]) == ["model fp32", "model int8"]
    whole, quantized = found["stages"].values()
    assert quantized["costs"]["size"] == (finished / "model.int8.onnx").stat().st_size < whole["costs"]["size"]
    assert quantized["latencies"]["latency"]["runs"] == whole["latencies"]["latency"]["runs"] > 10
    assert quantized["speed_up"]["size"] == whole["costs"]["size"] / quantized["costs"]["size"]


def test_its_page_shows_what_both_precisions_detect_and_its_log_the_stages(finished: Path) -> None:
    images = read_detections(finished)
    assert len(images) == SHOWN < 17
    assert all(list(image.found) == ["model fp32", "model int8"] and image.truth for image in images)
    assert "<h2>Detections</h2>" in (finished / "report.html").read_text()
    assert stages_of(finished) == ["Open the network", "Choose what stays in float", "Measure the result"]


def test_exactly_what_stays_in_float_has_float_weights(finished: Path) -> None:
    import onnx

    groups = told(finished)["networks"]["model"]["in_float"]
    graph = onnx.load(finished / "model.int8.onnx").graph
    plain = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            in_float = any(node.name.startswith(f"/{group}/") for group in groups)
            assert (node.input[1] in plain) == in_float, node.name


def test_ultralytics_predicts_with_it(finished: Path, world: Path) -> None:
    from ultralytics import YOLO

    image, network = next((world / "data" / "images" / "val").iterdir()), finished / "model.int8.onnx"
    (result,) = YOLO(network, task="detect").predict(image, imgsz=IMAGE_SIZE, conf=0.00001, verbose=False)
    assert len(result.boxes) > 0
    assert result.names == NAMES


def test_a_killed_run_goes_on_to_the_same_result_even_on_another_processor(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cpuinfo").write_text("flags : avx2")
    monkeypatch.setattr(settings, "_LISTING", tmp_path / "cpuinfo")
    written = len((finished / "journal.jsonl").read_text().splitlines())
    script(monkeypatch, 0.6, 0.895)
    copy = cut(finished, tmp_path / "run", keep=written - 5)
    assert main(["quantize", "--resume", str(copy)]) == 0
    found, wanted = told(copy), told(finished)
    assert found["networks"] == wanted["networks"]
    assert (found["file"], (copy / found["file"]).stat().st_size) == (
        "model.int8.onnx",
        wanted["stages"]["model int8"]["costs"]["size"],
    )
    known = records(finished, "quantize")[:-4]
    assert records(copy, "quantize")[: len(known)] == known, "what was measured is not measured again"
    assert "This CPU has no instructions for int8" in capsys.readouterr().err
    assert found["int8_instructions"] is False


@pytest.mark.slow
def test_the_dense_network_is_put_beside_it(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned = write_detector(tmp_path / "pruned.pt", build(16))
    out = tmp_path / "run"
    assert main(words(world, out, "--dense", str(world / "best.pt"), "--model", str(pruned))) == 0
    found = told(out)
    assert list(found["stages"]) == ["dense fp32", "pruned fp32", "dense int8", "pruned int8"]
    assert found["networks"]["dense"]["errors"] == {}, "nothing has to be found where all of int8 is good enough"
    sizes = [one["costs"]["size"] for one in found["stages"].values()]
    assert (out / "model.int8.onnx").stat().st_size == sizes[3] == min(sizes)
    assert "pruned int8" in capsys.readouterr().out


def openvino_weights(file: Path) -> dict[str, str]:
    """Return the number format in which an OpenVINO network holds each convolution's weights."""
    network = ElementTree.parse(file).getroot()
    layers = {layer.get("id"): layer for layer in network.iter("layer")}
    sources = {(edge.get("to-layer"), edge.get("to-port")): edge.get("from-layer") for edge in network.iter("edge")}

    def held(number: str | None) -> str:
        layer = layers[number]
        if layer.get("type") != "Const":  # what makes floats of integers: convert, subtract, multiply
            return held(sources[number, "0"])
        data = layer.find("data")
        assert data is not None
        return str(data.get("element_type"))

    return {
        str(layer.get("name")): held(sources[number, "1"])
        for number, layer in layers.items()
        if layer.get("type") == "Convolution"
    }


def test_litert_gets_a_file_that_ultralytics_knows(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("litert")
    predictions = script(monkeypatch, 0.9)
    out = tmp_path / "run"
    assert main(words(world, out, "--runtime", "litert")) == 0
    whole, quantized = predictions
    assert 0 < (whole - quantized).abs().max() < 0.2 * whole.abs().max(), "boxes are in pixels"
    with zipfile.ZipFile(out / "model.int8.tflite") as archive:
        assert json.loads(archive.read("metadata.json"))["names"] == {str(key): one for key, one in NAMES.items()}


@pytest.mark.slow
def test_openvino_gets_a_folder_that_ultralytics_knows(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openvino", "nncf")
    predictions = script(monkeypatch, 0.9)
    out = tmp_path / "run"
    assert main(words(world, out, "--runtime", "openvino")) == 0
    folder = out / "model_int8_openvino_model"
    assert sorted(path.name for path in folder.iterdir()) == ["metadata.yaml", "model.bin", "model.xml"]
    assert set(openvino_weights(folder / "model.xml").values()) == {"i8"}
    whole, quantized = predictions
    assert 0 < (whole - quantized).abs().max() < 0.2 * whole.abs().max()
    found = told(out)["stages"]["model int8"]
    assert found["costs"]["size"] == sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.slow
def test_exactly_what_stays_in_float_has_float_weights_on_openvino(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openvino", "nncf")
    script(monkeypatch, 0.9, 0.5, 0.6, 0.895)
    out = tmp_path / "run"
    assert main(words(world, out, "--runtime", "openvino")) == 0
    groups = told(out)["networks"]["model"]["in_float"]
    assert len(groups) == 2
    for name, held in openvino_weights(out / "model_int8_openvino_model" / "model.xml").items():
        in_float = any(name.startswith(f"/{group}/") for group in groups)
        assert held == ("f32" if in_float else "i8"), name


@pytest.mark.slow
def test_a_loss_that_cannot_be_held_is_told(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, 0.9, 0.5)
    assert main(words(world, tmp_path / "run", "--max-drop", "0.1")) == 3
    said = one_sentence(capsys.readouterr().err)
    assert "must lose at most --max-drop 0.1 of mAP50-95 on training images, and loses 0.4000" in said
    assert "is quantised; allow more, tune the weights for int8 with --qat-epochs, or keep the float" in said
    assert not list((tmp_path / "run").glob("*.onnx"))


@pytest.mark.slow
def test_a_search_in_int8_tells_of_a_processor_without_instructions(
    tiny: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cpuinfo").write_text("flags : avx2")
    monkeypatch.setattr(settings, "_LISTING", tmp_path / "cpuinfo")
    more = ("--budget", "latency=80%", "--runtime", "onnxruntime", "--precision", "int8", "--strategy", "uniform")
    assert main(arguments("search", tiny, tmp_path / "run", *more)) in (0, 3)
    assert "This CPU has no instructions for int8" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_is_tuned_for_int8_and_compared_with_what_it_was(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, 0.9, 0.5, 0.895)
    out = tmp_path / "run"
    tuning = ("--qat-epochs", "1", "--batch", "8", "--device", "cpu")
    assert main(words(world, out, *tuning)) == 0
    found = told(out)
    assert list(found["stages"]) == ["model fp32", "qat fp32", "model int8", "qat int8"]
    before, after = found["networks"]["model"], found["networks"]["qat"]
    assert before["steps"] == [{"in_float": [], "accuracy": 0.5, "drop": pytest.approx(0.4)}]
    assert after["accuracy"] == 0.9, "the tuned network must come close to the float one that was given"
    assert after["in_float"] == []
    assert found["stages"]["qat int8"]["costs"]["size"] == (out / "model.int8.onnx").stat().st_size
    given, tuned = (UltralyticsAdapter.load(path).module for path in (world / "best.pt", out / "qat.pt"))
    assert not torch.equal(given.get_parameter("model.1.conv.weight"), tuned.get_parameter("model.1.conv.weight"))
    assert "--qat-epochs" not in capsys.readouterr().out, "nobody is told to do what was done"


# -- on a real detector ------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bccd-yolov5nu-320.pt", "bccd-yolov8n-320.pt"])
def test_a_real_detector_keeps_its_accuracy_in_int8(name: str, shared: Path, tmp_path: Path) -> None:
    words = ["--model", str(shared / "models" / name), "--data", str(shared / "data" / "bccd" / "bccd.yaml")]
    assert main(["quantize", *words, "--imgsz", "320", "--out", str(tmp_path / "run")]) == 0
    whole, quantized = told(tmp_path / "run")["stages"].values()
    assert whole["metrics"]["mAP50-95"] > 0.4
    assert quantized["metrics"]["mAP50-95"] > whole["metrics"]["mAP50-95"] - 0.03
    assert quantized["speed_up"]["size"] > 2.5
