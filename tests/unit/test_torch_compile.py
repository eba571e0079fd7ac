"""Compiled networks: what is compiled when, what stays behind, what is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from autoprune.errors import DeviceError
from autoprune.latency.timing import MeasurementConfig, time_pair
from autoprune.runtimes import Backend, MemoryFormat, Precision, Runtime, open_backend, runtime_settings, torch_compile
from tests.helpers.detectors import build

SHAPE = (1, 3, 32, 32)


class Block(nn.Module):
    """A class of the network's own, as detectors are made of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, width, 3)
        self.runs = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            self.runs += 1
        features: torch.Tensor = self.inner(image).relu()
        return features


class Reading(Block):
    """Decides by what it computed."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.inner(image)
        return features if features.mean() > 0 else -features


def opened(device: str = "cpu") -> Backend:
    settings = runtime_settings(device, image_size=32, runtime=Runtime.TORCH_COMPILE, threads=1)
    return open_backend(replace(settings, memory_format=MemoryFormat.CONTIGUOUS))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """Have networks traced and not compiled, which takes seconds; gives what was traced."""
    graphs: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, _: object) -> object:
        assert torch.get_num_threads() == 1
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch_compile, "COMPILER", compiler)
    yield graphs
    torch.compiler.reset()


def test_a_network_is_compiled_before_it_is_timed(traced: list[torch.fx.GraphModule]) -> None:
    backend, module = opened(), build()
    with backend.session():
        runner = backend.prepare(module, (1, 3, 64, 64))
        assert len(traced) == 1
        assert runner.elapsed() > 0
    assert runner.note is None
    assert len(traced) == 1, "a run is no compilation, though the head remembers its image's shape"
    assert next(module.parameters()).requires_grad, "the network itself is not modified"


def test_hundreds_of_networks_are_compiled_each_for_itself(traced: list[torch.fx.GraphModule]) -> None:
    backend = opened()
    with backend.session():
        dense = backend.prepare(Block(40), SHAPE)
        for width in range(1, 31):  # torch keeps eight variants of one code
            runner = backend.prepare(Block(width), SHAPE)
            assert runner.elapsed() > 0
            assert dense.elapsed() > 0
    assert len(traced) == 31, "neither the dense network nor a candidate was compiled twice"


def test_a_released_network_leaves_nothing_behind(
    traced: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_compile, "COMPILER", "eager")
    weights = []

    def watched(module: nn.Module, image: torch.Tensor) -> object:
        weights.append(weakref.ref(module.get_parameter("inner.weight")))
        return compiled(module, image)

    compiled = torch_compile._compiled
    monkeypatch.setattr(torch_compile, "_compiled", watched)
    backend = opened()
    with backend.session():
        for width in (8, 16):
            backend.prepare(Block(width), SHAPE).elapsed()
    gc.collect()
    assert [weight() for weight in weights] == [None, None]


def test_what_cannot_be_compiled_is_named(traced: list[torch.fx.GraphModule]) -> None:
    backend = opened()
    with (
        pytest.raises(
            DeviceError, match=r"refuses it at `return features if features.mean\(\) > 0 else -features` \(.+\)"
        ),
        backend.session(),
    ):
        backend.prepare(Reading(8), SHAPE)


def test_a_missing_compiler_is_said_before_anything_is_measured() -> None:
    import torch._inductor.config

    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(DeviceError, match=r"needs a C\+\+ compiler on a CPU, and finds none: install g\+\+"),
    ):
        opened()


@pytest.mark.slow
def test_compiled_networks_run_in_turn() -> None:
    backend = opened()
    with backend.session():
        dense, candidate = backend.prepare(Block(64), SHAPE), backend.prepare(Block(8), SHAPE)
        timing = time_pair(candidate, dense, MeasurementConfig(runs=10, max_runs=10))
    assert timing.candidate.runs == 10


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_compiled_networks_run_on_cuda(precision: Precision) -> None:
    settings = runtime_settings("cuda", image_size=64, runtime=Runtime.TORCH_COMPILE, precision=precision)
    backend = open_backend(replace(settings, memory_format=MemoryFormat.CHANNELS_LAST))
    with backend.session():
        dense, candidate = backend.prepare(build(32), (1, 3, 64, 64)), backend.prepare(build(8), (1, 3, 64, 64))
        timing = time_pair(candidate, dense, MeasurementConfig(runs=20, max_runs=20))
    assert dense.note is None
    assert 0 < timing.ratio < 2
