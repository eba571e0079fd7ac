"""Torch on CUDA: events, captured graphs, memory, and a whole search; most of it needs a GPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.cli.main import main
from autoprune.errors import DeviceError
from autoprune.latency.timing import MeasurementConfig, time_pair
from autoprune.runtimes import MemoryFormat, Precision, Runtime, fingerprint, open_backend, runtime_settings
from autoprune.runtimes._torch import Graphs, with_room
from tests.helpers.detectors import build, write_data, write_detector
from tests.helpers.fake_backend import Hungry
from tests.helpers.world import arguments, summary

SHAPE = (1, 3, 64, 64)


def network(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, 2, 1), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 8, 1)).eval()


class Reading(nn.Module):
    """Waits for the device, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.inner(image)
        return features * float(features.mean())


class Writing(nn.Module):
    """Leaves what it computed where it can be read after a replay."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("left", torch.zeros(1, 8, 64, 64))

    def forward(self, image: torch.Tensor) -> None:
        self.get_buffer("left").copy_(self.inner(image))


def test_full_memory_is_tried_again_without_what_was_released() -> None:
    class Ring:
        """Holds itself, as a fused network does."""

        def __init__(self) -> None:
            self.ring = self

        def __del__(self) -> None:
            released.append(True)

    released: list[bool] = []
    Ring()

    def load() -> str:
        if not released:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return "there is room"

    assert with_room(load) == "there is room"
    released.clear()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        with_room(load)


class Stream:
    """Stands in for a stream where there is no GPU."""

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)


@contextmanager
def spoilt(graph: object, **options: object) -> Iterator[None]:
    """Stand in for a capture that fails when it ends."""
    assert options["capture_error_mode"] == "thread_local"
    yield
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nSearch for it")


def test_where_no_graph_can_be_captured_all_networks_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback's own logic, on a CPU; the tests below have the real thing."""
    stand_ins = {
        "Stream": Stream,
        "CUDAGraph": object,
        "graph": spoilt,
        "stream": nullcontext,
        "current_stream": Stream,
        "current_device": lambda: 0,
        "graph_pool_handle": lambda: (0, 1),
        "synchronize": lambda: None,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    graphs, runs = Graphs(), []

    class Counting(nn.Module):
        def forward(self, _: torch.Tensor) -> None:
            runs.append(self)

    first, second = Counting(), Counting()
    run, note = graphs.capture(first, torch.zeros(1))
    assert note == (
        "the network cannot be captured as a CUDA graph (CUDA error: operation not permitted when stream is capturing) "
        "and runs eagerly"
    )
    assert len(runs) == 4, "three to warm up, one to capture"
    run()
    other, same = graphs.capture(second, torch.zeros(1))
    assert same == note
    other()
    assert runs[4:] == [first, second], "what is compared runs alike"


def test_a_gpu_that_fails_anywhere_in_a_run_ends_it_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> int:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronous")

    monkeypatch.setattr("autoprune.workflows.search.run", run)
    write_detector(tmp_path / "best.pt")
    write_data(tmp_path / "data")
    assert main(arguments("search", tmp_path, tmp_path / "run", "--budget", "latency=60%")) == DeviceError.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        "autoprune: The GPU must work until the run is done, and failed (CUDA error: uncorrectable ECC error "
        "encountered); see that it is there (nvidia-smi), then go on with --resume"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("runtime", [Runtime.TORCH, Runtime.CUDAGRAPH])
@pytest.mark.parametrize("layout", [MemoryFormat.CONTIGUOUS, MemoryFormat.CHANNELS_LAST])
def test_runs_are_timed_by_events(precision: Precision, runtime: Runtime, layout: MemoryFormat) -> None:
    settings = runtime_settings("cuda", image_size=64, precision=precision, runtime=runtime)
    backend = open_backend(replace(settings, memory_format=layout))
    with backend.session():
        dense, candidate = backend.prepare(network(), SHAPE), backend.prepare(network(), SHAPE)
        timing = time_pair(candidate, dense, MeasurementConfig())
    assert dense.note is candidate.note is timing.note is None
    assert timing.candidate.median > 0
    assert 0.5 < timing.ratio < 2


@pytest.mark.gpu
def test_a_graph_is_the_default_and_beats_eager_on_a_small_network() -> None:
    settings = runtime_settings("cuda", image_size=64)
    assert settings.runtime is Runtime.CUDAGRAPH
    graph, eager = open_backend(settings), open_backend(replace(settings, runtime=Runtime.TORCH))
    with graph.session():
        timing = time_pair(graph.prepare(network(), SHAPE), eager.prepare(network(), SHAPE), MeasurementConfig())
    assert timing.ratio < 1


@pytest.mark.gpu
def test_a_replay_computes_what_the_network_does() -> None:
    module, image = Writing().cuda(), torch.rand(SHAPE, device="cuda")
    with torch.inference_mode():
        run, note = Graphs().capture(module, image)
        expected = module.inner(image)
        module.get_buffer("left").zero_()
        image.mul_(1.0)  # in place: the graph reads this very memory
        run()
        torch.cuda.synchronize()
    assert note is None
    torch.testing.assert_close(module.get_buffer("left"), expected)


@pytest.mark.gpu
def test_a_network_that_cannot_be_captured_runs_eagerly_and_says_so() -> None:
    backend = open_backend(runtime_settings("cuda", image_size=64))
    with backend.session():
        stream = torch.cuda.current_stream()
        dense = backend.prepare(Reading(), SHAPE)
        assert torch.cuda.current_stream() == stream
        assert dense.note is not None
        assert dense.note.startswith("the network cannot be captured as a CUDA graph (")
        candidate = backend.prepare(network(), SHAPE)
        assert candidate.note == dense.note, "what is compared runs alike"
        timing = time_pair(candidate, dense, MeasurementConfig())
        assert timing.note is not None
        assert dense.note in timing.note
    torch.cuda.empty_cache()
    other = open_backend(runtime_settings("cuda", image_size=64))
    with other.session():
        assert other.prepare(network(), SHAPE).note is None, "the failed capture is forgotten"


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", [Runtime.TORCH, Runtime.CUDAGRAPH])
def test_a_full_gpu_is_said_in_one_sentence_and_others_still_run(runtime: Runtime) -> None:
    backend = open_backend(runtime_settings("cuda", image_size=64, runtime=runtime))
    with pytest.raises(DeviceError, match=r"memory of cuda:\d+; at batch 1 and image size 64"), backend.session():
        backend.prepare(Hungry(), SHAPE)
    with backend.session():
        assert backend.prepare(network(), SHAPE).elapsed() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", [Runtime.TORCH, Runtime.CUDAGRAPH])
def test_released_networks_give_their_memory_back(runtime: Runtime) -> None:
    backend = open_backend(runtime_settings("cuda", image_size=64, runtime=runtime))

    def measured(width: int) -> int:
        with backend.session():
            backend.prepare(network(width), SHAPE).elapsed()
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    first = measured(512)
    assert max(measured(512) for _ in range(5)) <= first + (8 << 20)


@pytest.mark.gpu
def test_many_graphs_share_their_memory() -> None:
    backend = open_backend(runtime_settings("cuda", image_size=64))
    with backend.session():
        runners = [backend.prepare(network(), SHAPE)]
        before = torch.cuda.memory_reserved()
        runners += [backend.prepare(network(), SHAPE) for _ in range(50)]
        assert torch.cuda.memory_reserved() < before + (50 << 20)
        assert all(runner.elapsed() > 0 for runner in runners)


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", [Runtime.TORCH, Runtime.CUDAGRAPH])
def test_the_device_that_was_asked_for_is_used(runtime: Runtime) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    first = open_backend(runtime_settings("cuda:0", image_size=64, runtime=runtime))
    second = open_backend(runtime_settings("cuda:1", image_size=64, runtime=runtime))
    with first.session():
        first.prepare(network(), SHAPE).elapsed()
    before = torch.cuda.memory_allocated(0)
    with second.session():
        assert torch.cuda.current_device() == 1
        runner = second.prepare(network(), SHAPE)
        assert torch.cuda.memory_allocated(0) == before
    assert torch.cuda.current_device() == 0
    assert runner.elapsed() > 0
    assert runner.note is None


@pytest.mark.gpu
def test_the_fingerprint_of_a_gpu_names_it_and_its_tf32_state(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = runtime_settings("cuda", image_size=64)
    values = fingerprint(settings)
    assert values["gpu"] == torch.cuda.get_device_name(0)
    assert {"tf32_matmul", "tf32_conv", "cudnn", "cuda"} <= values.keys()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
    assert fingerprint(settings)["tf32_conv"] is not values["tf32_conv"]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", [[], ["--precision", "fp16"], ["--runtime", "torch"]], ids=["graph", "fp16", "eager"])
def test_a_search_on_the_gpu_holds_its_latency(tmp_path: Path, more: list[str]) -> None:
    """Wide and with a batch, so that the channels take the time and not the launches."""
    write_detector(tmp_path / "best.pt", build(256))
    write_data(tmp_path / "data")
    words = arguments(
        "search",
        tmp_path,
        tmp_path / "run",
        "--budget",
        "latency=60%",
        "--device",
        "cuda",
        "--imgsz",
        "320",
        "--runtime-batch",
        "16",
        "--episodes",
        "4",
        "--finalists",
        "2",
        *more,
    )
    assert main(words) == 0
    found = summary(tmp_path / "run")
    latency = found.stages["pruned"].latencies["latency"]
    assert latency["device"] == "cuda:0"
    assert latency["runtime"] == ("torch" if "torch" in more else "cudagraph")
    assert latency["median"] <= 0.62 * found.stages["dense"].cost("latency")
    assert found["budget"][0]["satisfied"]
