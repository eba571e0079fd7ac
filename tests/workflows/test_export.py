"""Exported networks: what is written, what it predicts on its runtime, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoprune.choices import Precision
from autoprune.cli.main import main
from autoprune.config import ExportConfig
from autoprune.errors import ConfigError, ModelError
from autoprune.exporting import Parity
from autoprune.formats import TOLERANCES, ExportFormat, Tolerance, formats_where
from autoprune.image_size import ImageSize
from autoprune.io.installed import install_extra
from autoprune.models._base import Difference, ExportSettings
from autoprune.models.detection.comparing import BOXES, Layout, difference
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.models.ultralytics.checkpoint import write_checkpoint
from autoprune.results import Metrics
from autoprune.runtimes import FileRunner, SubprocessBackend, open_file_backend, runtime_settings
from autoprune.runtimes.ncnn import NcnnBackend
from autoprune.runtimes.open_vino import OpenVinoBackend
from autoprune.runtimes.torch_script import TorchScriptBackend
from tests.helpers.detectors import IMAGE_SIZE, NAMES, build, write_data, write_detector
from tests.helpers.packages import need
from tests.helpers.world import one_sentence, stages_of

NOTES = {"autoprune": "0", "budget": ["flops=50%"], "keep": {"model.0": 8, "model.1": 24}}
FILES = {one: one.spec.file for one in ExportFormat if "cpu" in one.runtime.spec.precisions}

# Runs where autoprune cannot be imported: Ultralytics alone predicts with each exported network.
ALONE = """
import json, sys, warnings
sys.modules["autoprune"] = None
warnings.simplefilter("ignore")
from ultralytics import YOLO
for path in sys.argv[2:]:
    (result,) = YOLO(path, task="detect").predict(sys.argv[1], conf=0.00001, verbose=False)
    print(json.dumps({"names": result.names, "boxes": len(result.boxes)}))
"""


def needed(file_format: ExportFormat) -> ExportFormat:
    if file_format is not ExportFormat.TORCHSCRIPT:
        need(file_format.runtime.value)
    return file_format


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with the notes of a run, and its data."""
    folder = tmp_path_factory.mktemp("export")
    write_checkpoint(build(32), folder / "best.pt", train_args={"imgsz": IMAGE_SIZE, "task": "detect"}, notes=NOTES)
    write_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def adapter(world: Path) -> UltralyticsAdapter:
    return UltralyticsAdapter.load(world / "best.pt")


def exporting(world: Path, out: Path, *more: str) -> int:
    return main(["export", "--model", str(world / "best.pt"), "--device", "cpu", "--out", str(out), *more])


def told(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "export.json").read_text()))


def metadata(path: Path) -> dict[str, Any]:
    """Return what Ultralytics reads out of an exported network."""
    from ultralytics.nn.backends.base import BaseBackend

    backend: Any = type("Reader", (BaseBackend,), {"load_model": lambda *_: None, "forward": lambda *_: None})
    reader = backend(path, torch.device("cpu"))
    reader.apply_metadata(BaseBackend.read_metadata(path))
    return {**vars(reader), "names": {int(index): name for index, name in reader.names.items()}}


def refuse_to_convert(source: Path, to: Path) -> None:
    raise AssertionError(f"{source} is what is wanted")


# -- the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FILES, ids=lambda one: one.value)
def test_an_exported_network_is_the_network(
    file_format: ExportFormat, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, name, data = tmp_path / "run", FILES[needed(file_format)], str(world / "data" / "data.yaml")
    assert exporting(world, out, "--format", file_format.value, "--data", data, "--threads", "1") == 0
    left = sorted(["config.yaml", "export.json", "inputs.json", "journal.jsonl", "report.html", "run.log", name])
    assert sorted(path.name for path in out.iterdir()) == left
    found = told(out)
    parity = found["parity"]
    by_torch, exported = found["stages"]["torch"], found["stages"][file_format.value]
    assert (found["file"], parity["passed"], parity["images"], parity["on"]) == (name, True, 6, "validation images")
    assert exported["details"]["score_difference"] < 0.001
    assert exported["details"]["box_difference_px"] < 0.1
    assert abs(by_torch["metrics"]["mAP50-95"] - exported["metrics"]["mAP50-95"]) <= 0.001
    latency = exported["latencies"]["latency"]
    assert 0 < latency["p10"] <= latency["median"] <= latency["p90"]
    assert found["settings"]["runtime"] == file_format.runtime.value
    assert found["settings"]["threads"] == 1
    assert stages_of(out) == ["Open the network", "Export, compare and measure"]
    parts = list((out / name).glob("*")) or [out / name]
    assert exported["costs"]["size"] == sum(path.stat().st_size for path in parts)
    said = capsys.readouterr()
    assert said.err == ""
    assert f"{out / name}" in said.out
    assert ("YOLO opens it" in " ".join(said.out.split())) is file_format.spec.stock
    if not file_format.spec.stock:
        return
    read = metadata(out / name)
    assert (read["names"], read["task"], read["stride"]) == (NAMES, "detect", 16)
    assert list(read["imgsz"]) == [IMAGE_SIZE, IMAGE_SIZE]
    assert json.loads(read["autoprune"]) == NOTES


def test_without_data_it_is_compared_on_noise(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exporting(world, tmp_path / "run", "--format", "torchscript", "--imgsz", "96") == 0
    found = told(tmp_path / "run")
    assert found["parity"]["on"] == "noise"
    assert all(one["metrics"] is None for one in found["stages"].values())
    assert found["image_size"] == 96
    assert "with --data" in capsys.readouterr().out


@pytest.mark.parametrize("file_format", [one for one in FILES if one.spec.dynamic], ids=lambda one: one.value)
def test_a_dynamic_network_takes_any_batch_and_size(file_format: ExportFormat, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert exporting(world, out, "--format", needed(file_format).value, "--dynamic") == 0
    assert told(out)["dynamic"]
    assert not file_format.spec.stock or metadata(out / FILES[file_format])["dynamic"]
    settings = runtime_settings("cpu", image_size=96, runtime=file_format.runtime, threads=1)
    backend = open_file_backend(settings, file_format.spec)
    with backend.session():
        runner = backend.open(out / FILES[file_format], (2, 3, 64, 96))
        assert runner.elapsed() > 0
        (output,) = runner.outputs(torch.rand(3, 3, 96, 64))
    assert output.shape[0] == 3


def test_a_network_of_a_batch_and_an_older_opset(world: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    need("onnxruntime")
    out, data = tmp_path / "run", str(world / "data" / "data.yaml")
    assert exporting(world, out, "--batch", "4", "--opset", "15", "--data", data, "--threads", "1") == 0
    found = told(out)
    assert (found["parity"]["images"], found["batch"]) == (6, 4), "the last batch is filled up"
    written = onnx.load(out / "model.onnx")
    assert written.opset_import[0].version == 15
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    assert metadata(out / "model.onnx")["batch"] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"opset": 99}, "`opset` must lie in 13 to 20, got 99"),
        ({"opset": 17, "format": ExportFormat.TORCHSCRIPT}, "`opset` is for formats made of ONNX"),
        ({"batch": 0}, "`batch` must be a whole number of at least 1"),
    ],
)
def test_a_batch_and_an_opset_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ExportConfig(model=Path("best.pt"), **options)
    assert ExportConfig(model=Path("best.pt"), half=True).precision is Precision.FP16


def test_a_network_that_differs_is_kept_under_a_name_that_says_so(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = TorchScriptBackend.open

    def off(self: TorchScriptBackend, path: Path, shape: tuple[int, ...]) -> FileRunner:
        runner = opened(self, path, shape)
        true = runner.outputs
        monkeypatch.setattr(runner, "outputs", lambda image: [output + 0.01 for output in true(image)])
        return runner

    monkeypatch.setattr(TorchScriptBackend, "open", off)
    out = tmp_path / "run"
    assert exporting(world, out, "--format", "torchscript") == 3
    said = one_sentence(capsys.readouterr().err)
    assert "must predict what torch does, and scores differ by 0.01, allowed are 0.001" in said
    assert f"kept as {out / 'differs.torchscript'}" in said
    assert (out / "differs.torchscript").is_file()
    assert not (out / "model.torchscript").exists()
    assert told(out)["file"] == "differs.torchscript"
    assert not told(out)["parity"]["passed"]


@pytest.mark.slow
def test_ultralytics_alone_predicts_with_it(world: Path, tmp_path: Path) -> None:
    paths = []
    stock_files = {one: name for one, name in FILES.items() if one.spec.stock}
    for file_format, name in stock_files.items():
        assert exporting(world, tmp_path / file_format.value, "--format", needed(file_format).value) == 0
        paths.append(str(tmp_path / file_format.value / name))
    image = next((world / "data" / "images" / "val").iterdir())
    command = [sys.executable, "-c", ALONE, str(image), *paths]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["names"] for one in found] == [{str(index): name for index, name in NAMES.items()}] * len(stock_files)
    assert all(one["boxes"] > 0 for one in found)


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": Precision.INT8}, "written in fp32 or fp16, got `precision` int8"),
        (
            {"format": ExportFormat.TORCHSCRIPT, "dynamic": True},
            f"`dynamic` is for `format` {formats_where('dynamic')}, got torch",
        ),
        (
            {"format": ExportFormat.TENSORRT, "dynamic": True},
            f"`dynamic` is for `format` {formats_where('dynamic')}, got tensorrt",
        ),
        ({"imgsz": ImageSize(50, 50)}, "`imgsz` must be a multiple of 32"),
        ({"format": ExportFormat.LITERT, "half": True}, "for `format` litert is written in fp32, got `half`; leave it"),
        ({"threads": 0}, "`threads` must be"),
        ({"device": "tpu"}, "`device` must be"),
    ],
)
def test_a_value_out_of_range_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ExportConfig(model=Path("best.pt"), **options)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "tensorrt"], "The runtime tensorrt runs on cuda, got --device cpu"),
        (
            ["--format", "onnx", "--precision", "fp16"],
            "runs on cpu in fp32, int8, got --precision fp16; use --device cuda, or use --precision fp32",
        ),
        (
            ["--format", "onnx", "--half"],
            "runs on cpu in fp32, int8, got --precision fp16; use --device cuda, or leave --half out",
        ),
        (
            ["--format", "torchscript", "--half"],
            "is traced in fp16 on a GPU, got --device cpu with --format torchscript; use --device cuda, or leave",
        ),
        (["--format", "coreml"], f"--format must be one of {', '.join(one.value for one in ExportFormat)}, got"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    words: list[str], said: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exporting(world, tmp_path / "run", *words) == 2
    assert said in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("backend", "computed"), [(OpenVinoBackend, "FP32"), (NcnnBackend, "fp32")])
def test_a_cpu_that_does_not_compute_in_half_is_told_with_a_way_out(
    backend: type[SubprocessBackend],
    computed: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check = backend.check
    monkeypatch.setattr(backend, "check", lambda self, _: check(self, [computed]))
    file_format = ExportFormat.NCNN if backend is NcnnBackend else ExportFormat.OPENVINO
    assert exporting(world, tmp_path / "run", "--format", needed(file_format).value, "--half") == 2
    said = one_sentence(capsys.readouterr().err)
    assert said.endswith("on this CPU computes in fp32, got --precision fp16; leave --half out")


@pytest.mark.parametrize(("file_format", "missing"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_runtime_is_named_with_its_extra(
    file_format: str,
    missing: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == missing else there(name, *more)
    )
    assert exporting(world, tmp_path / "run", "--format", file_format) == 2
    assert f"needs the package {missing}, which is not installed: {install_extra(missing)}" in one_sentence(
        capsys.readouterr().err
    )


def test_a_run_folder_that_is_there_is_left_alone(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exporting(world, tmp_path, "--format", "torchscript") == 2
    assert one_sentence(capsys.readouterr().err).endswith("exists already; choose another --out")
    assert not list(tmp_path.iterdir())


def test_a_fused_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = build()
    with stock.quiet():
        network.fuse(verbose=False)
    write_detector(tmp_path / "best.pt", network)
    for trust in ([], ["--trust-checkpoint"]):
        assert exporting(tmp_path, tmp_path / "run", "--format", "torchscript", *trust) == 2
        assert "was fused already" in one_sentence(capsys.readouterr().err)


def test_an_operation_that_onnx_lacks_is_named(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(image)

    network: Any = build(32)
    network.model[0].act = Odd()
    with pytest.raises(
        ModelError, match=r"onnx, and is not \(it has no operation for aten::special_bessel_j0\); use an"
    ):
        adapter.export(network, tmp_path, ExportSettings(ExportFormat.ONNX.spec), convert=refuse_to_convert)


# -- the exporter ------------------------------------------------------------------------------------


def test_exporting_leaves_the_network_and_the_process_alone(
    adapter: UltralyticsAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installs: list[bool] = []
    monkeypatch.setattr(stock.checks, "AUTOINSTALL", True)
    monkeypatch.setattr(
        stock.checks, "check_version", lambda *_, **__: installs.append(stock.checks.AUTOINSTALL) or True
    )
    before = {name: tensor.clone() for name, tensor in adapter.module.state_dict().items()}
    environment, settings = dict(os.environ), dict(stock.SETTINGS)
    file = Path(stock.SETTINGS.file_path)
    written, threads = file.read_bytes(), torch.get_num_threads()
    adapter.export(adapter.module, tmp_path, ExportSettings(ExportFormat.ONNX.spec), convert=refuse_to_convert)
    assert installs
    assert not any(installs), "nothing may be installed meanwhile"
    assert stock.checks.AUTOINSTALL
    assert (dict(os.environ), dict(stock.SETTINGS), file.read_bytes()) == (environment, settings, written)
    assert torch.get_num_threads() == threads
    for name, tensor in adapter.module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not hasattr(adapter.module, "pt_path")
    assert not adapter.module.is_fused()


def test_an_engine_has_the_header_that_ultralytics_reads(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    def convert(source: Path, to: Path) -> None:
        assert source.suffix == ".onnx"
        to.write_bytes(b"engine")

    path = adapter.export(adapter.module, tmp_path, ExportSettings(ExportFormat.TENSORRT.spec), convert=convert)
    assert [one.name for one in tmp_path.iterdir()] == ["model.engine"]
    assert metadata(path)["names"] == NAMES
    assert path.read_bytes().endswith(b"}engine")


@pytest.mark.parametrize("file_format", [ExportFormat.ONNX, ExportFormat.TORCHSCRIPT], ids=lambda one: one.value)
def test_a_head_without_suppression_is_exported_as_it_is(file_format: ExportFormat, tmp_path: Path) -> None:
    network = build(32, end2end=True)
    network.end2end = True
    write_detector(tmp_path / "best.pt", network)
    out = tmp_path / "run"
    assert exporting(tmp_path, out, "--format", needed(file_format).value) == 0
    assert metadata(out / FILES[file_format])["end2end"]


def test_a_network_that_the_exporter_finds_too_small_is_exported(tmp_path: Path) -> None:
    write_detector(tmp_path / "best.pt", build(8, reg_max=1))
    assert exporting(tmp_path, tmp_path / "run", "--format", needed(ExportFormat.ONNX).value) == 0
    assert (tmp_path / "run" / "model.onnx").stat().st_size < 100_000, "0.1 MB is the least that it lets pass"


# -- comparing ---------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), box=st.floats(0, 20), score=st.floats(0, 0.5))
def test_the_largest_difference_is_found(seed: int, box: float, score: float) -> None:
    random = torch.Generator().manual_seed(seed)
    expected = torch.rand(2, 6, 15, generator=random) * 10
    found = expected.clone()
    row = int(torch.randint(15, (1,), generator=random))
    found[1, 2, row] += box
    found[0, 5, row] -= score
    apart = difference(expected, found, layout=BOXES)
    assert (apart.boxes, apart.scores) == pytest.approx((box, score), abs=1e-4)


@given(seed=st.integers(0, 10_000), box=st.floats(0, 1), score=st.floats(0, 0.05))
def test_rows_without_suppression_may_come_in_any_order(seed: int, box: float, score: float) -> None:
    random = torch.Generator().manual_seed(seed)
    corners = torch.arange(12.0)[:, None] * 10 + torch.rand(12, 4, generator=random)
    kinds = torch.randint(3, (12, 1), generator=random).float()
    expected = torch.cat([corners, torch.rand(12, 1, generator=random) / 2 + 0.06, kinds], 1)
    found = expected[torch.randperm(12, generator=random)]
    found = found + torch.tensor([box, 0, 0, 0, score, 0])
    apart = difference(expected[None], found[None], layout=Layout(rows=True))
    assert (apart.boxes, apart.scores) == pytest.approx((box, score), abs=1e-4)


@pytest.mark.parametrize("end2end", [False, True], ids=["plain", "end2end"])
@pytest.mark.parametrize("found", [torch.ones(1, 5, 6), torch.full((1, 6, 6), torch.nan)], ids=["shape", "nan"])
def test_what_cannot_be_compared_is_infinitely_different(found: torch.Tensor, end2end: bool) -> None:
    assert difference(torch.ones(1, 6, 6), found, layout=Layout(rows=end2end)) == Difference(math.inf, math.inf)


def test_a_class_that_is_not_found_is_infinitely_different() -> None:
    row = torch.tensor([[[0.0, 0, 9, 9, 0.9, 1]]])
    assert difference(row, row - torch.tensor([0, 0, 0, 0, 0, 1.0]), layout=Layout(rows=True)).boxes == math.inf


def test_a_tolerance_names_all_that_is_beyond_it() -> None:
    parity = Parity(8, True, Difference(boxes=0.5, scores=0.0), *(Metrics({"mAP50-95": one}) for one in (0.8, 0.79)))
    assert parity.beyond(TOLERANCES[Precision.FP32], "mAP50-95") == (
        "boxes differ by 0.5 px, allowed are 0.1",
        "mAP50-95 differs by 0.01, allowed are 0.001",
    )
    assert parity.beyond(Tolerance(scores=0, boxes=1, accuracy=0.02), "mAP50-95") == ()
    nothing = Parity(8, False, Difference(boxes=math.nan, scores=math.inf), None, None)
    assert len(nothing.beyond(TOLERANCES[Precision.FP32], "mAP50-95")) == 2


# -- on real detectors, and on CUDA ------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bccd-yolov5nu-320.pt", "bccd-yolov8n-320.pt"])
@pytest.mark.parametrize("file_format", FILES, ids=lambda one: one.value)
def test_a_real_detector_keeps_its_accuracy(file_format: ExportFormat, name: str, shared: Path, tmp_path: Path) -> None:
    words = ["--model", str(shared / "models" / name), "--data", str(shared / "data" / "bccd" / "bccd.yaml")]
    out = tmp_path / "run"
    options = ["--imgsz", "320", "--format", needed(file_format).value, "--device", "cpu", "--out", str(out)]
    assert main(["export", *words, *options]) == 0
    found = told(out)
    by_torch, exported = (one["metrics"]["mAP50-95"] for one in found["stages"].values())
    assert exported == pytest.approx(by_torch, abs=0.001)
    assert exported > 0.4
    assert found["stages"][file_format.value]["latencies"]["latency"]["median"] > 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("file_format", ["onnx", "torchscript", "tensorrt"])
def test_an_exported_network_is_the_network_on_cuda(
    file_format: str, precision: str, world: Path, tmp_path: Path
) -> None:
    needed(ExportFormat(file_format))
    words = ["--format", file_format, "--precision", precision, "--data", str(world / "data" / "data.yaml")]
    assert exporting(world, tmp_path / "run", "--device", "cuda", *words) == 0
