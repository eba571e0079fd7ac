"""Settings that are checked, and torch as a runtime on the CPU and on CUDA."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from autoprune.cost import Effort, LatencyMeter
from autoprune.cost.timing import time_pair
from autoprune.errors import DeviceError
from autoprune.runtimes import (
    MemoryFormat,
    Precision,
    Runtime,
    RuntimeSettings,
    fingerprint,
    open_backend,
    runtime_settings,
)
from autoprune.runtimes.settings import fingerprint_key, lane_width

SHAPE = (1, 3, 64, 64)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.SiLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.SiLU(), nn.Conv2d(32, 8, 1)]
    return nn.Sequential(*layers).eval()


class Hungry(nn.Module):
    """Asks for more memory than there is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.zeros((1 << 40, 4), device=image.device)


# -- settings ----------------------------------------------------------------------------------------


def test_what_is_left_open_is_filled_in() -> None:
    settings = runtime_settings("cpu", image_size=320)
    assert settings == RuntimeSettings("cpu", Runtime.TORCH, Precision.FP32, torch.get_num_threads(), 1, 320)
    assert settings.shape == (1, 3, 320, 320)
    assert RuntimeSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "must be cpu, cuda"),
        ({"device": "mps"}, "must be cpu, cuda"),
        ({"precision": Precision.INT8}, "torch runs on cpu in fp32, bf16, fp16, got --precision int8"),
        ({"runtime": Runtime.CUDAGRAPH}, "cudagraph runs on cuda, got --device cpu; on cpu there are torch, "),
        ({"runtime": Runtime.ONNXRUNTIME, "precision": Precision.BF16}, "onnxruntime runs on cpu in fp32, int8, got"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
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
    backend = open_backend(runtime_settings("cpu", image_size=64, threads=1))
    assert torch.get_num_threads() == 2
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
    meter = LatencyMeter(network(), settings, effort=Effort(runs=10, max_runs=10))
    timing = meter.measure(network, "again")
    assert timing.candidate.runs == 10
    assert 0.2 < timing.ratio < 5
    assert meter.settings.memory_format is not MemoryFormat.AUTO


# -- torch on CUDA -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
@pytest.mark.parametrize("runtime", [Runtime.TORCH, Runtime.CUDAGRAPH])
@pytest.mark.parametrize("layout", [MemoryFormat.CONTIGUOUS, MemoryFormat.CHANNELS_LAST])
def test_cuda_runs_are_timed_by_events(precision: Precision, runtime: Runtime, layout: MemoryFormat) -> None:
    settings = replace(
        runtime_settings("cuda", image_size=64, precision=precision, runtime=runtime), memory_format=layout
    )
    backend = open_backend(settings)
    with backend.session():
        runner = backend.prepare(network(), SHAPE)
        assert runner.mode == ("graph replay" if runtime is Runtime.CUDAGRAPH else "eager")  # type: ignore[attr-defined]
        timing = time_pair(runner, backend.prepare(network(), SHAPE), Effort())
    assert timing.candidate.median > 0
    assert 0.5 < timing.ratio < 2


@pytest.mark.gpu
def test_a_graph_is_the_default_and_beats_eager_on_a_small_network() -> None:
    settings = runtime_settings("cuda", image_size=64)
    assert settings.runtime is Runtime.CUDAGRAPH
    graph, eager = open_backend(settings), open_backend(replace(settings, runtime=Runtime.TORCH))
    with graph.session():
        timing = time_pair(graph.prepare(network(), SHAPE), eager.prepare(network(), SHAPE), Effort())
    assert timing.ratio < 1


@pytest.mark.gpu
def test_a_network_that_cannot_be_captured_runs_eagerly() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 8, 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            features = self.inner(image)
            return features * float(features.mean())  # waits for the device

    backend = open_backend(runtime_settings("cuda", image_size=64))
    with backend.session():
        runner = backend.prepare(Reading(), SHAPE)
        assert runner.mode == "eager"  # type: ignore[attr-defined]
        assert runner.elapsed() > 0


@pytest.mark.gpu
def test_a_full_gpu_is_said_in_one_sentence() -> None:
    backend = open_backend(runtime_settings("cuda", image_size=64))
    with pytest.raises(DeviceError, match="memory of cuda:0"), backend.session():
        backend.prepare(Hungry(), SHAPE).elapsed()


@pytest.mark.gpu
def test_the_fingerprint_of_a_gpu_names_it_and_its_tf32_state() -> None:
    values = fingerprint(runtime_settings("cuda", image_size=64))
    assert values["gpu"] == torch.cuda.get_device_name(0)
    assert {"tf32_matmul", "tf32_conv", "cudnn", "cuda"} <= values.keys()
