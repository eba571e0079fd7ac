"""Torch in eager mode on a CPU; on CUDA eager, or replaying a captured graph."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autoprune.choices import Precision, Runtime
from autoprune.runtimes._base import Backend, Runner, memory_guard
from autoprune.runtimes.settings import MemoryFormat

_CAPTURE_WARM_UP = 3

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
"""Number formats as torch names them."""


class TorchBackend(Backend):
    """Torch in eager mode, and on CUDA replaying a captured graph: what is left is the kernels' time."""

    @contextmanager
    def session(self) -> Iterator[None]:
        """Pin torch's threads and run without gradients; see ``Backend``."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.settings.threads)
        try:
            with memory_guard(self.settings), torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads)

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        """Copy the network to the device, in the settings' precision and memory format; see ``Backend``."""
        settings = self.settings
        device, dtype = torch.device(settings.device), DTYPES[settings.precision]
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(shape, generator=generator).to(device, dtype)
        copied = copy.deepcopy(module).to(device, dtype).eval()
        if settings.memory_format is MemoryFormat.CHANNELS_LAST and len(shape) == 4:
            copied = copied.to(memory_format=torch.channels_last)
            image = image.contiguous(memory_format=torch.channels_last)
        if device.type == "cpu":
            return _CpuRunner(copied, image)
        with torch.cuda.device(device):
            if settings.runtime is Runtime.CUDAGRAPH:
                return _CudaRunner(*_captured(copied, image))
            return _CudaRunner(lambda: copied(image), "eager")


class _CpuRunner(Runner):
    """Eager runs on the CPU, by the wall clock."""

    def __init__(self, module: nn.Module, image: torch.Tensor) -> None:
        self._module = module
        self._image = image

    def elapsed(self) -> float:
        start = time.perf_counter()
        self._module(self._image)
        return (time.perf_counter() - start) * 1e3


class _CudaRunner(Runner):
    """Runs on the current CUDA stream, by CUDA events.

    Attributes:
        mode: ``graph replay`` or ``eager``, what the network really runs as.
    """

    def __init__(self, run: Callable[[], Any], mode: str) -> None:
        self._run = run
        self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.mode = mode

    def elapsed(self) -> float:
        torch.cuda.synchronize()
        self._start.record()
        self._run()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end))


def _captured(module: nn.Module, image: torch.Tensor) -> tuple[Callable[[], Any], str]:
    """Return the replay of a captured CUDA graph, or eager runs where the network cannot be captured."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_CAPTURE_WARM_UP):
            module(image)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = module(image)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError:  # data-dependent shapes, a synchronising call: such a network is deployed eagerly
        torch.cuda.synchronize()
        return lambda: module(image), "eager"

    def replay() -> Any:
        graph.replay()
        return kept  # holds the graph's output, input and weights alive

    return replay, "graph replay"
