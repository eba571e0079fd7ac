"""Quantised networks: which layers stay in float, what a run leaves, how it goes on, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoprune.choices import Runtime
from autoprune.cli import main
from autoprune.config import QuantizeConfig
from autoprune.errors import ConfigError, ExportError
from autoprune.models._base import Accuracy, Batch, Predict
from autoprune.models.detection.comparing import Layout, disagreement
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.quantize import Group, choose, group_operations
from autoprune.runtimes import settings
from autoprune.runtimes.settings import has_int8_instructions
from tests.detectors import IMAGE_SIZE, NAMES, build, write_data, write_detector
from tests.packages import need
from tests.world import arguments, cut, one_sentence, records


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

    def accuracy(_: object, module: nn.Module, batches: Sequence[Batch], *, predict: Predict) -> Accuracy:
        predictions.append(predict(batches[0]["img"]))
        value = left.pop(0) if len(left) > 1 else left[0]
        return Accuracy(value, value)

    patch.setattr(UltralyticsAdapter, "accuracy", accuracy)
    return predictions


def words(world: Path, out: Path, *more: str) -> list[str]:
    named = ["--model", str(world / "best.pt"), "--data", str(world / "data" / "data.yaml"), "--out", str(out)]
    return ["quantize", *named, "--threads", "1", *more]


def told(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "quantize.json").read_text()))


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network loses more in int8 than it may."""
    out = tmp_path_factory.mktemp("quantize") / "run"
    with pytest.MonkeyPatch.context() as patch:
        script(patch, 0.9, 0.5, 0.6, 0.895)
        assert main(words(world, out)) == 0
    return out


# -- the command -------------------------------------------------------------------------------------


def test_the_network_is_quantised_but_for_what_loses_too_much(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "config.yaml", "journal.jsonl", "model.int8.onnx", "quantize.json",
    ]  # fmt: skip
    found = told(finished)
    choice = found["networks"]["model"]
    errors, steps = choice["errors"], choice["steps"]
    assert (found["calibration_images"], found["held_out_images"]) == (8, 9), "there are 17 images for both"
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert [step["in_float"] for step in steps] == [list(errors)[:count] for count in range(len(steps))]
    assert [step["accuracy"] for step in steps] == [0.5, 0.6, 0.895]
    assert choice["in_float"] == steps[-1]["in_float"]
    whole, quantized = found["variants"]
    assert (whole["precision"], quantized["precision"]) == ("fp32", "int8")
    assert quantized["size_bytes"] == (finished / "model.int8.onnx").stat().st_size < whole["size_bytes"]
    assert quantized["latency_ms"]["runs"] == whole["latency_ms"]["runs"] > 10


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
        wanted["variants"][1]["size_bytes"],
    )
    known = records(finished, "quantize")[:-4]
    assert records(copy, "quantize")[: len(known)] == known, "what was measured is not measured again"
    assert "This CPU has no instructions for int8" in capsys.readouterr().err
    assert found["int8_instructions"] is False


def test_the_dense_network_is_put_beside_it(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned = write_detector(tmp_path / "pruned.pt", build(16))
    out = tmp_path / "run"
    assert main(words(world, out, "--dense", str(world / "best.pt"), "--model", str(pruned))) == 0
    found = told(out)
    variants = [(one["network"], one["precision"]) for one in found["variants"]]
    assert variants == [("dense", "fp32"), ("pruned", "fp32"), ("dense", "int8"), ("pruned", "int8")]
    assert found["networks"]["dense"]["errors"] == {}, "nothing has to be found where all of int8 is good enough"
    sizes = [one["size_bytes"] for one in found["variants"]]
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
    found = told(out)["variants"][1]
    assert found["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())


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
    variants = [(one["network"], one["precision"]) for one in found["variants"]]
    assert variants == [("model", "fp32"), ("qat", "fp32"), ("model", "int8"), ("qat", "int8")]
    before, after = found["networks"]["model"], found["networks"]["qat"]
    assert before["steps"] == [{"in_float": [], "accuracy": 0.5, "drop": pytest.approx(0.4)}]
    assert after["accuracy"] == 0.9, "the tuned network must come close to the float one that was given"
    assert after["in_float"] == []
    assert found["variants"][3]["size_bytes"] == (out / "model.int8.onnx").stat().st_size
    given, tuned = (UltralyticsAdapter.load(path).module for path in (world / "best.pt", out / "qat.pt"))
    assert not torch.equal(given.get_parameter("model.1.conv.weight"), tuned.get_parameter("model.1.conv.weight"))
    assert "--qat-epochs" not in capsys.readouterr().out, "nobody is told to do what was done"


# -- what is refused, and what is told ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"runtime": Runtime.TORCH}, "int8 files are written for --runtime onnxruntime or openvino, got torch"),
        ({"max_drop": -0.1}, r"--max-drop must lie in \[0, 1\), got -0.1"),
        ({"max_drop": float("nan")}, r"--max-drop must lie in \[0, 1\), got nan"),
        ({"calibration_images": 7}, "--calibration-images must be a whole number of at least 8, got 7"),
        ({"images": 7}, "--images must be a whole number of at least 8, got 7"),
        ({"imgsz": 50}, "--imgsz must be a multiple of 32"),
        ({"threads": 0}, "--threads must be"),
        ({"batch": 0}, "--batch must be"),
        ({"qat_epochs": -1}, "--qat-epochs must be a whole number of at least 0, got -1"),
        ({"qat_lr_scale": 0.0}, r"--qat-lr-scale must lie in \(0, 1\], got 0.0"),
        ({"device": "tpu"}, "--device must be"),
        ({"seed": -1}, "--seed must be"),
    ],
)
def test_a_value_out_of_range_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        QuantizeConfig(model=Path("best.pt"), data=Path("data.yaml"), **options)


def test_too_few_training_images_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_detector(tmp_path / "best.pt")
    write_data(tmp_path / "data", images=15)
    assert main(words(tmp_path, tmp_path / "run")) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "needs at least 16 training images" in said
    assert "holds 15; give it more images" in said


@pytest.mark.parametrize(
    ("runtime", "missing", "extra"),
    [("onnxruntime", "onnxruntime", "onnxruntime"), ("openvino", "nncf", "openvino-int8")],
)
def test_a_missing_package_is_named_with_its_extra(
    runtime: str, missing: str, extra: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == missing else there("os"))
    assert main(words(world, tmp_path / "run", "--runtime", runtime)) == 2
    wanted = f"needs the package {missing}, which is not installed: pip install 'autoprune[{extra}]'"
    assert wanted in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("listing", "there"),
    [
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("flags\t\t: fpu avx512_vnni\nflags\t: fpu\n", True),
        ("flags\t\t: avx2 avx_vnni", True),
        ("Features\t: fp asimd asimddp", True),
        ("Features\t: fp asimd", False),
        ("", None),
    ],
)
def test_the_processors_flags_are_read(
    listing: str, there: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(listing)
    monkeypatch.setattr(settings, "_LISTING", tmp_path / "cpuinfo")
    assert has_int8_instructions() is there


# -- choosing ----------------------------------------------------------------------------------------


@dataclass
class Scripted:
    """A network whose groups lose a known accuracy each, and whose errors rank them in a known order."""

    losses: dict[str, float]
    errors: dict[str, float]
    name: str = "model"
    figure: str = "mAP50-95"
    asked: list[str] = field(default_factory=list)

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(Group(name, ()) for name in self.losses)

    def error(self, group: str) -> float:
        self.asked.append(group)
        return self.errors[group]

    def held_out(self, in_float: tuple[str, ...] | None) -> float:
        return 0.75 - sum(loss for name, loss in self.losses.items() if in_float is not None and name not in in_float)


def ignore(done: int, detail: str) -> None:
    assert done >= 1
    assert detail


@given(
    losses=st.lists(st.integers(0, 50).map(lambda value: value / 1024), min_size=2, max_size=12),
    errors=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    max_drop=st.integers(0, 200).map(lambda value: value / 1024),
)
def test_the_fewest_of_the_worst_groups_stay_in_float(
    losses: list[float], errors: list[float], max_drop: float
) -> None:
    names = [f"model.{index}" for index in range(len(losses))]
    network: Any = Scripted(dict(zip(names, losses, strict=True)), dict(zip(names, errors, strict=False)))
    least = min(names, key=lambda name: (network.errors[name], -names.index(name)))
    if sum(losses) > max_drop and network.losses[least] > max_drop:
        with pytest.raises(ExportError, match=f"even where only {least} is quantised"):
            choose(network, whole=0.75, max_drop=max_drop, advance=ignore)
        return
    choice = choose(network, whole=0.75, max_drop=max_drop, advance=ignore)
    *before, last = choice.steps
    assert last.drop <= max_drop < min((step.drop for step in before), default=1.0)
    kept = [network.errors[name] for name in choice.in_float]
    assert all(
        worst >= error for worst in kept for name, error in network.errors.items() if name not in choice.in_float
    )
    assert network.asked == (names if before else []), "nothing is ranked where all of int8 is good enough"


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["conv/Conv", "cv1/conv/Conv", "Concat"])), max_size=40))
def test_every_operation_is_in_one_group_with_weights(made: list[tuple[int, str]]) -> None:
    operations = [(f"/model.{stage}/{rest}-{index}", "Conv" in rest) for index, (stage, rest) in enumerate(made)]
    groups = group_operations([*operations, ("Constant_3", False)], {f"model.{stage}" for stage in range(6)})
    weights = {name for name, has_weights in operations if has_weights}
    members = [name for group in groups for name in group.operations]
    assert sorted(members) == (sorted(name for name, _ in operations) if weights else [])
    assert all(weights & set(group.operations) for group in groups)
    assert len({group.name for group in groups}) == len(groups)


def test_a_stage_is_a_group_and_so_is_each_branch_of_the_head() -> None:
    operations = ["/model.0/conv/Conv", "/model.1/Concat", "/model.2/cv1/Conv", "/model.2/cv2/Conv", "/model.3/Split"]
    head = ["/model.4/cv2.0/cv2.0.0/Conv", "/model.4/cv3.0/Conv", "/model.4/Sigmoid"]
    stages = [f"model.{index}" for index in range(4)]
    groups = group_operations([(name, name.endswith("Conv")) for name in [*operations, *head]], stages)
    assert [(group.name, len(group.operations)) for group in groups] == [
        ("model.0", 1), ("model.2", 3), ("model.4/cv2.0", 2), ("model.4/cv3.0", 2),
    ]  # fmt: skip


# -- how far predictions are apart -------------------------------------------------------------------

HEADS = {False: (2, 6, 15), True: (2, 15, 6)}
"""Shape of the predictions by whether the head is end-to-end."""


def predictions(end2end: bool, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    found = torch.rand(HEADS[end2end], generator=random)
    if end2end:
        found[..., :4] *= 100
        found[..., 5] = torch.randint(3, found.shape[:2], generator=random)
    else:
        found[:, :4] *= 100
    return found


@given(seed=st.integers(0, 10_000), other=st.integers(0, 10_000), end2end=st.booleans())
def test_a_disagreement_is_a_share_and_symmetric(seed: int, other: int, end2end: bool) -> None:
    one, two = predictions(end2end, seed), predictions(end2end, other)
    apart = disagreement(one, two, layout=Layout(rows=end2end))
    assert 0 <= apart <= 1
    assert apart == pytest.approx(disagreement(two, one, layout=Layout(rows=end2end)), abs=1e-5)
    assert disagreement(one, one, layout=Layout(rows=end2end)) == pytest.approx(0, abs=1e-4)
    assert disagreement(one, torch.full_like(one, torch.nan), layout=Layout(rows=end2end)) == 1
    if end2end:
        assert disagreement(one, one[:, torch.randperm(15)], layout=Layout(rows=end2end)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("end2end", [False, True], ids=["plain", "end2end"])
def test_sure_predictions_count_most(end2end: bool) -> None:
    one = predictions(end2end, 0)
    scores = one[..., 4] if end2end else one[:, 4:].amax(1)
    sure, unsure = one.clone(), one.clone()
    for moved, index in ((sure, int(scores[0].argmax())), (unsure, int(scores[0].argmin()))):
        if end2end:
            moved[0, index, :4] += 5
        else:
            moved[0, :4, index] += 5
    assert (
        disagreement(one, sure, layout=Layout(rows=end2end))
        > disagreement(one, unsure, layout=Layout(rows=end2end))
        > 0
    )


# -- on a real detector ------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bccd-yolov5nu-320.pt", "bccd-yolov8n-320.pt"])
def test_a_real_detector_keeps_its_accuracy_in_int8(name: str, shared: Path, tmp_path: Path) -> None:
    words = ["--model", str(shared / "models" / name), "--data", str(shared / "data" / "bccd" / "bccd.yaml")]
    assert main(["quantize", *words, "--imgsz", "320", "--out", str(tmp_path / "run")]) == 0
    whole, quantized = told(tmp_path / "run")["variants"]
    assert whole["accuracy"]["main"] > 0.4
    assert quantized["accuracy"]["main"] > whole["accuracy"]["main"] - 0.03
    assert quantized["size_bytes"] < 0.4 * whole["size_bytes"]
