"""Runtimes in processes of their own: one contract for each that is installed, and what happens when a process dies."""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from autoprune.errors import DeviceError
from autoprune.latency import LatencyMeter, MeasurementConfig
from autoprune.models import open_adapter
from autoprune.runtimes import MemoryFormat, Precision, Runtime, fingerprint, open_backend, runtime_settings
from autoprune.runtimes import settings as settings_module
from autoprune.runtimes.exported import export_onnx
from autoprune.runtimes.process import WorkerError, WorkerProcess
from autoprune.runtimes.subprocess_backend import ENGINES, EngineSpec, SubprocessBackend, SubprocessRunner
from tests.helpers.packages import need

SHAPE = (1, 3, 32, 32)
ON_CPU = (Runtime.ONNXRUNTIME, Runtime.OPENVINO, Runtime.NCNN, Runtime.LITERT, Runtime.EXECUTORCH)

ENGINE = """
import json, os, sys, time
import numpy as np

class Network:
    made = 0
    def __init__(self, held):
        self.held, self.number = held, Network.made
        Network.made += 1
        held.append(self.number)
    def free(self):
        self.held.remove(self.number)

class Engine:
    def __init__(self, **options):
        self.held, self.images = [], None
    def load(self, path, shape):
        if os.stat(path).st_size > 50000:
            raise MemoryError("std::bad_alloc")
        return Network(self.held)
    def list(self):
        return self.held
    def quantize(self, source, images, to, keep=()):
        self.images = list(np.load(images).shape)
        return source
    def calibrated(self):
        return self.images
    def sleep(self, seconds):
        time.sleep(seconds)
    def fail(self, text):
        raise ValueError(text)
    def leave(self):
        print("goodbye", file=sys.stderr)
        print("this is no answer")
        sys.exit(7)
"""


def network(width: int = 16, layers: int = 1) -> nn.Module:
    torch.manual_seed(0)
    inner = [module for _ in range(layers) for module in (nn.Conv2d(width, width, 3, 1, 1), nn.SiLU())]
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.SiLU(), *inner, nn.Conv2d(width, 4, 1)).eval()


def image() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


def needed(runtime: Runtime, *more: str) -> Runtime:
    need(runtime.value, *more)
    return runtime


@pytest.fixture(scope="module", params=ON_CPU, ids=lambda runtime: runtime.value)
def backend(request: pytest.FixtureRequest) -> SubprocessBackend:
    settings = runtime_settings("cpu", image_size=32, runtime=needed(request.param), threads=1)
    opened = open_backend(settings)
    assert isinstance(opened, SubprocessBackend)
    return opened


def prepared(backend: SubprocessBackend, module: nn.Module) -> SubprocessRunner:
    runner = backend.prepare(module, SHAPE)
    assert isinstance(runner, SubprocessRunner)
    return runner


# -- the contract ------------------------------------------------------------------------------------


def test_what_runs_is_the_network_and_it_is_left_alone(
    backend: SubprocessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = ("onnxruntime", "openvino", "executorch")
    for name in outside:  # which tests before may have imported
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with backend.session():
        runner, wider = prepared(backend, module), prepared(backend, network(32))
        assert runner.elapsed() > 0
        for loaded, of in ((runner, module), (wider, network(32))):
            (output,) = loaded.outputs(image())
            torch.testing.assert_close(output, of(image()), rtol=1e-4, atol=1e-4)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert set(outside).isdisjoint(sys.modules), "the runtimes stay out of this process"


def test_outputs_of_any_structure_are_exported_even_from_inference_mode(backend: SubprocessBackend) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.kept = network(), torch.empty(0)

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, dict[str, object]]:
            self.kept = self.inner(image)
            return self.kept.sigmoid(), {"raw": self.kept, "levels": [self.kept.mean(), 3]}

    module = Head().eval()
    with backend.session(), torch.inference_mode():
        found = prepared(backend, module).outputs(image())
        wanted, rest = module(image())
        assert len(found) == 3
        torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[1], rest["raw"], rtol=1e-4, atol=1e-4)


def test_the_asked_number_of_threads_computes(backend: SubprocessBackend) -> None:
    process = psutil.Process(backend._process.pid)
    torch.set_num_threads(2)
    with backend.session():
        assert torch.get_num_threads() == 1, "this process only traces and waits"
        runner = prepared(backend, network(64, 8))
        runner.elapsed()
        before, start = process.cpu_times(), time.perf_counter()
        milliseconds = sum(runner.elapsed() for _ in range(20))
        passed, after = time.perf_counter() - start, process.cpu_times()
    assert milliseconds <= passed * 1e3
    assert after.user + after.system - before.user - before.system <= passed * 1.1 + 0.02
    assert torch.get_num_threads() == 2


def test_an_operation_that_cannot_be_exported_is_named(backend: SubprocessBackend) -> None:
    class Odd(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(image)

    message = r"ONNX has no operation for aten::special_bessel_j0; use `runtime` torch"
    if backend.settings.runtime is Runtime.EXECUTORCH:  # for which nothing becomes ONNX
        message = r"ExecuTorch has no kernel for aten::special_bessel_j0.out \(layer 1\)\); use another"
    with pytest.raises(DeviceError, match=message):
        backend.prepare(nn.Sequential(nn.ReLU(), Odd()), SHAPE)


def test_an_operation_that_the_runtime_lacks_is_named() -> None:
    class Double(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(image.double(), torch.ones(4, 3, 3, 3, dtype=torch.float64))

    backend = open_backend(runtime_settings("cpu", image_size=32, runtime=needed(Runtime.ONNXRUNTIME)))
    with pytest.raises(DeviceError, match=r"onnxruntime must be able .* implementation for Conv.*; use another"):
        backend.prepare(Double(), SHAPE)


def test_a_meter_measures_and_asks_for_no_memory_format(backend: SubprocessBackend) -> None:
    settings = replace(backend.settings, threads=2)
    meter = LatencyMeter(network(), settings, config=MeasurementConfig(runs=10, max_runs=10), opener=lambda *_: backend)
    timing = meter.measure(network, "again")
    assert meter.settings.memory_format is MemoryFormat.CONTIGUOUS
    assert timing.candidate.runs == 10


def test_the_fingerprint_names_the_runtimes_version(backend: SubprocessBackend) -> None:
    package = backend.settings.runtime.spec.packages[0]
    assert fingerprint(backend.settings)[package] == importlib.metadata.version(package)
    assert package not in fingerprint(runtime_settings("cpu", image_size=32))


@pytest.mark.parametrize(
    ("runtime", "precision", "missing", "extra"),
    [
        (Runtime.ONNXRUNTIME, Precision.FP32, "onnxruntime", "onnxruntime"),
        (Runtime.OPENVINO, Precision.FP32, "onnx", "openvino"),
        (Runtime.OPENVINO, Precision.INT8, "nncf", "openvino-int8"),
        (Runtime.EXECUTORCH, Precision.FP32, "executorch", "executorch"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    runtime: Runtime, precision: Precision, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> object | None:
        return None if name == missing else object()

    monkeypatch.setattr(importlib.util, "find_spec", find)
    settings = runtime_settings("cpu", image_size=32, runtime=runtime, precision=precision)
    with pytest.raises(DeviceError, match=rf"{runtime.value} needs the package {missing}, .*\[{extra}\]'"):
        open_backend(settings)


def test_a_precision_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerProcess, "call", lambda *_: ["FP32", "INT8", "BIN"])
    settings = runtime_settings("cpu", image_size=32, runtime=needed(Runtime.OPENVINO), precision=Precision.BF16)
    with pytest.raises(DeviceError, match=r"computes in fp32, int8, got `precision` bf16"):
        open_backend(settings)
    open_backend(replace(settings, precision=Precision.FP32))


# -- int8 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "runtime",
    # NNCF takes seconds to import
    [Runtime.ONNXRUNTIME, Runtime.LITERT, pytest.param(Runtime.OPENVINO, marks=pytest.mark.slow)],
    ids=lambda runtime: runtime.value,
)
def test_int8_finds_its_ranges_on_the_calibration_images(runtime: Runtime) -> None:
    if needed(runtime) is Runtime.OPENVINO:
        needed(runtime, "nncf")
    calls = []

    def calibration() -> Sequence[torch.Tensor]:
        calls.append(1)
        return [image(), image() * 0.5]

    settings = runtime_settings("cpu", image_size=32, runtime=runtime, precision=Precision.INT8, threads=1)
    backend = open_backend(settings, calibration)
    assert isinstance(backend, SubprocessBackend)
    module = network(32)
    with backend.session(), torch.no_grad():
        wanted = module(image())
        (output,) = prepared(backend, module).outputs(image())
        (beyond,) = prepared(backend, module).outputs(image() * 100)
    assert calls == [1]
    scale = wanted.abs().max()
    assert 1e-5 * scale < (output - wanted).abs().max() < 0.1 * scale, "quantised, and still the network"
    assert beyond.abs().max() < 3 * scale, "what is outside the images' range is cut off"


class Joined(nn.Module):
    """Joins what a ReLU gave with numbers of either sign: in LiteRT's file the two have one scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.clamped = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.other, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.silu(self.first(image))
        return self.last(torch.cat([self.clamped(hidden), self.other(hidden)], 1))  # type: ignore[no-any-return]


def linear(clamp: nn.Module) -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16))
    return nn.Sequential(*layers, clamp, nn.Linear(16, 4))


@pytest.mark.parametrize(
    "make",
    [
        Joined,
        lambda: linear(nn.ReLU()),
        lambda: linear(nn.ReLU6()),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 4, 1)),
    ],
    ids=["joined", "linear", "linear relu6", "pooled"],
)
def test_int8_of_litert_keeps_clamps(make: Callable[[], nn.Module]) -> None:
    needed(Runtime.LITERT, "onnxruntime")
    torch.manual_seed(1)
    module = make().eval()
    settings = runtime_settings("cpu", image_size=32, runtime=Runtime.LITERT, precision=Precision.INT8, threads=1)
    backend = open_backend(settings, lambda: [image()])
    assert isinstance(backend, SubprocessBackend)
    with backend.session(), torch.no_grad():
        wanted = module(image())
        (found,) = prepared(backend, module).outputs(image())
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_grouped_transposed_convolutions_stay_in_float() -> None:
    needed(Runtime.ONNXRUNTIME)
    torch.manual_seed(1)
    enlarged = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=4)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), enlarged, nn.SiLU(), nn.Conv2d(8, 4, 1)).eval()
    settings = runtime_settings("cpu", image_size=32, runtime=Runtime.ONNXRUNTIME, precision=Precision.INT8, threads=1)
    backend = open_backend(settings, lambda: [image()])
    assert isinstance(backend, SubprocessBackend)
    with backend.session(), torch.no_grad():
        wanted = module(image())
        (found,) = prepared(backend, module).outputs(image())
    assert 1e-5 * wanted.abs().max() < (found - wanted).abs().max() < 0.03 * wanted.abs().max()


@pytest.mark.parametrize(
    ("runtime", "saturates", "most"), [("onnxruntime", True, 64), ("onnxruntime", False, 127), ("litert", True, 127)]
)
def test_weights_have_seven_bits_where_onnx_runtime_saturates(
    tmp_path: Path, runtime: str, saturates: bool, most: int
) -> None:
    needed(Runtime.ONNXRUNTIME, "onnx")
    source, images = tmp_path / "network.onnx", tmp_path / "images.npy"
    export_onnx(network(), SHAPE, source)
    np.save(images, image()[None].numpy() - 0.5)
    worker = WorkerProcess("test", ENGINES / "quantize_onnx.py", {"runtime": runtime, "saturates": saturates})
    path = worker.call("quantize", source=str(source), images=str(images), to=str(tmp_path / "quantized"))
    onnx = importlib.import_module("onnx")
    tensors = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    weights = [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim == 4]
    assert weights
    assert max(int(np.abs(tensor.astype(int)).max()) for tensor in weights) in (most, most - 1)


@pytest.mark.parametrize(
    ("listing", "machine", "saturates"),
    [
        ("flags: avx2", "x86_64", True),
        ("flags: avx2 avx_vnni", "x86_64", False),
        ("", "AMD64", True),  # Windows
        ("", "x86_64", True),  # macOS
        ("", "arm64", False),
    ],
)
def test_x86_saturates_unless_its_instructions_are_known(
    listing: str, machine: str, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(listing)
    backend = open_backend(runtime_settings("cpu", image_size=32, runtime=needed(Runtime.ONNXRUNTIME)))
    monkeypatch.setattr(settings_module, "_LISTING", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert isinstance(backend, SubprocessBackend)
    assert backend.quantizer.options["saturates"] is saturates


def test_what_tensorrt_is_given_has_no_zero_point_and_no_integer_bias(tmp_path: Path) -> None:
    needed(Runtime.ONNXRUNTIME, "onnx")
    source, images = tmp_path / "network.onnx", tmp_path / "images.npy"
    export_onnx(network(), SHAPE, source)
    np.save(images, image()[None].numpy() - 0.5)
    worker = WorkerProcess("test", ENGINES / "quantize_onnx.py", {"runtime": "tensorrt"})
    path = worker.call("quantize", source=str(source), images=str(images), to=str(tmp_path / "quantized"))
    onnx = importlib.import_module("onnx")
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantizing = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizing) > 3, "weights go through a pair of operations too"
    assert not any(constants[node.input[2]].any() for node in quantizing)
    assert {constants[node.input[2]].dtype for node in quantizing} == {np.dtype(np.int8)}
    assert not any(array.dtype == np.int32 for array in constants.values())


# -- the process -------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "engine.py"
    path.write_text(ENGINE)
    return path


@pytest.fixture
def worker(engine: Path) -> Iterator[WorkerProcess]:
    process = WorkerProcess("test", engine, {}, timeout=20)
    yield process
    process.close()


class Fake(SubprocessBackend):
    """Exports to an engine that runs nothing."""

    engine = Path()

    @property
    def runtime(self) -> EngineSpec:
        return EngineSpec("The fake", self.engine, (), "fake")

    @property
    def quantizer(self) -> EngineSpec:
        return EngineSpec("The fake quantizer", self.engine, (), "fake")

    def check(self, capabilities: Sequence[str]) -> None:
        pass


def opened_fake(engine: Path) -> Fake:
    settings = runtime_settings("cpu", image_size=32, runtime=Runtime.ONNXRUNTIME, batch=3, precision=Precision.INT8)
    backend = type("Found", (Fake,), {"engine": engine})(
        settings, lambda: [torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)]
    )
    assert isinstance(backend, Fake)
    return backend


@pytest.fixture
def fake(engine: Path) -> Fake:
    return opened_fake(engine)


def test_what_an_engine_raises_arrives_with_its_words(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerError, match="ValueError: no\nreason"):
        worker.call("fail", text="no\nreason")
    assert worker.call("list") == [], "it goes on"


def test_a_released_network_is_dropped_before_the_next_call(fake: Fake) -> None:
    runners = [fake.prepare(network(), SHAPE) for _ in range(3)]
    assert fake.ask("list") == [0, 1, 2]
    del runners[1]
    assert fake.ask("list") == [0, 2]


def test_images_are_put_together_to_the_batch_and_other_inputs_are_random(fake: Fake) -> None:
    fake.prepare(network(), (3, 3, 32, 32))
    assert fake.call(fake._quantizing, "calibrated") == [2, 3, 3, 32, 32]
    fake.prepare(nn.Conv2d(8, 8, 3), (3, 8, 16, 16))
    assert fake.call(fake._quantizing, "calibrated")[1:] == [3, 8, 16, 16]


def test_full_memory_is_said_in_one_sentence(fake: Fake) -> None:
    with pytest.raises(DeviceError, match="memory of cpu; at batch 3 and image size 32"), fake.session():
        fake.prepare(network(64), SHAPE)


def test_a_killed_process_is_said_in_one_sentence(worker: WorkerProcess) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"process of test ended during the run \(signal SIGKILL; .*smaller `b"):
            worker.call("list")


def test_the_last_words_of_a_process_are_told(worker: WorkerProcess) -> None:
    with pytest.raises(DeviceError, match=r"exit code 7; it last said: this is no answer"):
        worker.call("leave")


def test_a_process_that_hangs_is_ended(engine: Path) -> None:
    worker = WorkerProcess("test", engine, {}, timeout=5)
    worker._timeout = 0.1
    with pytest.raises(DeviceError, match=r"test must answer within 0.1 s and did not"):
        worker.call("sleep", seconds=60)
    assert not psutil.pid_exists(worker.pid)


def test_an_engine_that_does_not_start_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise ImportError('libgone.so: cannot open')")
    spec = EngineSpec("The runtime broken", tmp_path / "broken.py", (), "fake")
    with pytest.raises(DeviceError, match=r"runtime broken must start, and does not \(ImportError: libgone.so"):
        spec.start()


def test_a_process_ends_with_its_backend(engine: Path) -> None:
    backend = opened_fake(engine)
    runner = backend.prepare(network(), SHAPE)
    pids = [backend._process.pid, backend._quantizing.pid]
    del backend
    assert all(psutil.pid_exists(pid) for pid in pids), "a runner needs it"
    del runner
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_process_ends_with_its_parent(root: Path, engine: Path) -> None:
    source = root / "autoprune" / "runtimes" / "process.py"
    script = f"""
import importlib.util, os, signal
spec = importlib.util.spec_from_file_location("process", {str(source)!r})
process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(process)
worker = process.WorkerProcess("test", process.Path({str(engine)!r}), {{}})
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, deadline = int(done.stdout), time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupt_is_the_parents_to_handle(worker: WorkerProcess) -> None:
    os.kill(worker.pid, signal.SIGINT)
    assert worker.call("list") == []


# -- on real detectors -------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("with_nms", [False, True], ids=["plain", "nms"])
@pytest.mark.parametrize("name", ["bccd-yolov5nu-320.pt", "bccd-yolov8n-320.pt"])
def test_a_real_detector_runs_as_it_does_in_torch(
    name: str, with_nms: bool, shared: Path, backend: SubprocessBackend
) -> None:
    adapter = open_adapter(
        shared / "models" / name, data=shared / "data/bccd/bccd.yaml", image_size=320, device="cpu", trust=False
    )
    module = adapter.deployable(adapter.module, with_nms=with_nms)
    (photo,) = adapter.calibration(images=1, batch=1, seed=0)
    with backend.session(), torch.no_grad():
        runner = backend.prepare(module, tuple(photo.shape))
        assert isinstance(runner, SubprocessRunner)
        assert runner.elapsed() > 0
        (output,) = runner.outputs(photo)
        torch.testing.assert_close(output, module(photo), rtol=1e-3, atol=1e-3)


# -- on CUDA -----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        (Runtime.ONNXRUNTIME, Precision.FP32),
        (Runtime.ONNXRUNTIME, Precision.FP16),
        (Runtime.TENSORRT, Precision.FP32),
        (Runtime.TENSORRT, Precision.FP16),
        (Runtime.TENSORRT, Precision.INT8),
    ],
    ids=lambda value: value.value,
)
def test_what_runs_on_cuda_is_the_network(runtime: Runtime, precision: Precision) -> None:
    settings = runtime_settings("cuda", image_size=32, runtime=needed(runtime), precision=precision)
    backend = open_backend(settings, lambda: [image()])
    assert isinstance(backend, SubprocessBackend)
    module = network(32)
    wanted = module(image())
    given = image().half() if precision is Precision.FP16 else image()
    with backend.session():
        runner = prepared(backend, module)
        assert runner.elapsed() > 0
        (output,) = runner.outputs(given)
    assert (output.float() - wanted).abs().max() < (0.1 if precision is Precision.INT8 else 0.01) * wanted.abs().max()
