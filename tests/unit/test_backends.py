"""Settings that are checked, and torch as a runtime on the CPU."""

from __future__ import annotations

import pkgutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from autoprune.choices import RUNTIMES, RuntimeSpec
from autoprune.errors import DeviceError
from autoprune.formats import FORMATS, ExportFormat, FormatSpec
from autoprune.journal import MemoryRecorder
from autoprune.latency import LatencyMeter, MeasurementConfig
from autoprune.runtimes import (
    MemoryFormat,
    Precision,
    Runner,
    Runtime,
    RuntimeSettings,
    _torch,
    fingerprint,
    open_backend,
    runtime_settings,
)
from autoprune.runtimes._base import Backend, FileBackend, memory_guard
from autoprune.runtimes._torch import DTYPES, loss_guard
from autoprune.runtimes.settings import fingerprint_key, lane_width
from tests.helpers.fake_backend import SETTINGS, FakeBackend, Hungry, opener

SHAPE = (1, 3, 64, 64)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.SiLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.SiLU(), nn.Conv2d(32, 8, 1)]
    return nn.Sequential(*layers).eval()


# -- settings ----------------------------------------------------------------------------------------


def test_what_is_left_open_is_filled_in() -> None:
    settings = runtime_settings("cpu", image_size=320)
    assert settings == RuntimeSettings("cpu", Runtime.TORCH, Precision.FP32, torch.get_num_threads(), 1, 320)
    assert settings.shape == (1, 3, 320, 320)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "must be cpu, cuda"),
        ({"device": "mps"}, "The device mps was asked for, but torch sees no Apple GPU here"),
        ({"precision": Precision.INT8}, "torch runs on cpu in fp32, bf16, fp16, got `precision` int8"),
        ({"runtime": Runtime.CUDAGRAPH}, "cudagraph runs on cuda, got `device` cpu; on cpu there are torch, "),
        ({"runtime": Runtime.ONNXRUNTIME, "precision": Precision.BF16}, "onnxruntime runs on cpu in fp32, int8, got"),
        ({"runtime": Runtime.TORCH_COMPILE, "with_nms": True}, "torch-compile takes networks whose shapes are all"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"threads": 5000}, r"`threads` must be at most \d+, the CPU cores of this machine, got 5000"),
        ({"batch": -1}, "batch must be at least 1"),
        ({"image_size": 0}, "image size must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        runtime_settings(**{"device": "cpu", "image_size": 320, **options})  # type: ignore[arg-type]


def test_a_gpu_that_is_not_there_is_refused() -> None:
    name = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"
    with pytest.raises(DeviceError, match="asked for"):
        runtime_settings(name, image_size=320)


def test_the_fingerprint_tells_apart_what_changes_times() -> None:
    settings = runtime_settings("cpu", image_size=320, threads=2)
    keys = {
        fingerprint_key(fingerprint(other))
        for other in (
            settings,
            replace(settings, threads=1),
            replace(settings, batch=2),
            replace(settings, memory_format=MemoryFormat.CHANNELS_LAST),
        )
    }
    assert len(keys) == 4
    values = fingerprint(settings)
    assert values == fingerprint(replace(settings, image_size=640)), "layers carry their own sizes"
    assert {"cpu", "torch", "threads", "precision", "runtime"} <= values.keys()


def test_lanes_divide_a_multiple_of_sixteen() -> None:
    assert 16 % lane_width(runtime_settings("cpu", image_size=320)) == 0
    by_register = {"ncnn": 0.5, "openvino": 1, "litert": 2, "executorch": 2}
    for runtime, registers in by_register.items():
        settings = runtime_settings("cpu", image_size=320, runtime=Runtime(runtime))
        assert lane_width(settings) == registers * lane_width(runtime_settings("cpu", image_size=320))


# -- torch on the CPU --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [MemoryFormat.CONTIGUOUS, MemoryFormat.CHANNELS_LAST])
def test_runs_take_time_and_leave_the_network_alone(layout: MemoryFormat) -> None:
    module = network()
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in module.state_dict().items()}
    backend = open_backend(replace(runtime_settings("cpu", image_size=64), memory_format=layout))
    with backend.session():
        runner = backend.prepare(module, SHAPE)
        assert runner.elapsed() > 0
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]


def test_threads_are_pinned_inside_a_session_and_given_back() -> None:
    torch.set_num_threads(2)
    backend = open_backend(runtime_settings("cpu", image_size=64, threads=1))
    with backend.session():
        assert torch.get_num_threads() == 1
        assert torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == 2
    assert not torch.is_inference_mode_enabled()


def test_out_of_memory_is_said_in_one_sentence() -> None:
    backend = open_backend(runtime_settings("cpu", image_size=64, batch=3))
    with pytest.raises(DeviceError, match=r"memory of cpu; at batch 3 and image size 64"), backend.session():
        backend.prepare(Hungry(), SHAPE).elapsed()


def test_other_errors_pass() -> None:
    backend = open_backend(runtime_settings("cpu", image_size=64))
    with pytest.raises(RuntimeError, match="channels"), backend.session():
        backend.prepare(network(), (1, 5, 64, 64)).elapsed()


def test_a_meter_measures_on_the_real_cpu() -> None:
    settings = runtime_settings("cpu", image_size=64)
    meter = LatencyMeter(network(), settings, config=MeasurementConfig(runs=10, max_runs=10))
    timing = meter.measure(network, "again")
    assert timing.candidate.runs == 10
    assert meter.settings.memory_format is not MemoryFormat.AUTO


@pytest.mark.parametrize("runtime", [Runtime.TORCH, Runtime.TORCH_COMPILE])
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_a_cpu_without_instructions_for_a_precision_is_refused(
    runtime: Runtime, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_torch, "computes_in", lambda *_: False)
    settings = runtime_settings("cpu", image_size=64, runtime=runtime, precision=precision)
    with pytest.raises(DeviceError, match=rf"instructions for `precision` {precision.value} \(.+\), and this one \(.+"):
        open_backend(settings)


def test_a_network_computes_in_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch, "computes_in", lambda *_: True)  # torch emulates what the CPU lacks
    found = []

    class Noting(nn.Conv2d):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            found.append(super().forward(image).dtype)
            return image

    for precision in DTYPES:
        settings = runtime_settings("cpu", image_size=64, precision=precision)
        backend = open_backend(replace(settings, memory_format=MemoryFormat.CHANNELS_LAST))
        with backend.session():
            backend.prepare(Noting(3, 8, 3), SHAPE).elapsed()
    assert found == list(DTYPES.values())


def test_a_meter_tells_and_keeps_how_the_dense_network_really_runs() -> None:
    class Falling(FakeBackend):
        def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
            runner = super().prepare(module, shape)
            runner.note = "the network runs eagerly"
            return runner

    kept, untouched = MemoryRecorder(), FakeBackend(SETTINGS)
    meter = LatencyMeter(network(), SETTINGS, recorder=kept, opener=Falling)
    assert meter.note == "the network runs eagerly"
    assert LatencyMeter(network(), SETTINGS, recorder=kept, opener=opener(untouched)).note == meter.note
    assert untouched.prepared == 0
    assert LatencyMeter(network(), SETTINGS, opener=opener(untouched)).note is None


def test_a_device_that_disappears_is_said_in_one_sentence() -> None:
    lost = (
        "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other call"
    )
    with pytest.raises(DeviceError) as caught, loss_guard("device cuda:1"):
        raise RuntimeError(lost)
    assert str(caught.value) == (
        "The device cuda:1 must work until the run is done, and failed (CUDA error: unspecified launch failure); "
        "see that it is there (nvidia-smi), then go on with `resume`"
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), loss_guard("device cuda:1"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory",
        "[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
        "std::bad_alloc",
    ],
)
def test_whatever_says_that_memory_is_full_is_understood(said: str) -> None:
    settings = RuntimeSettings("cuda:0", Runtime.CUDAGRAPH, Precision.FP32, 1, 2, 640)
    with (
        pytest.raises(DeviceError, match="memory of cuda:0; at batch 2 and image size 640"),
        memory_guard(settings),
        loss_guard("device cuda:0"),
    ):
        raise RuntimeError(said)


@pytest.mark.parametrize("spec", RUNTIMES, ids=lambda spec: spec.name)
def test_a_record_leads_to_what_runs_networks(spec: RuntimeSpec) -> None:
    assert issubclass(pkgutil.resolve_name(spec.backend), Backend)
    assert Runtime(spec.name).spec is spec


@pytest.mark.parametrize("spec", FORMATS, ids=lambda spec: spec.name)
def test_a_record_leads_to_what_writes_and_runs_files(spec: FormatSpec) -> None:
    assert issubclass(pkgutil.resolve_name(spec.backend), FileBackend)
    assert callable(pkgutil.resolve_name(spec.write)) if spec.write else spec.suffix == f".{spec.traced}"
    assert ExportFormat(spec.name).spec is spec
    assert ExportFormat(spec.name).runtime.spec.name == spec.runtime
