"""Torch on CUDA: runs timed by events, captured graphs, and errors of the device in one sentence."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import nn

from autoprune.errors import DeviceError
from autoprune.runtimes._base import FULL, Runner

_CAPTURE_WARM_UP = 3
"""Runs before a capture: libraries choose kernels and set up what must not happen within one."""

_LOST = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS_")
"""What the errors of a device say that no longer works; those of full memory are recognised before."""

T = TypeVar("T")


class CudaRunner(Runner):
    """Runs on the device's current stream, by CUDA events.

    Args:
        run: runs the network once.
        note: see ``Runner``.
        device: where the network lies.
    """

    def __init__(self, run: Callable[[], Any], note: str | None, device: torch.device) -> None:
        self._run = run
        self._device = device
        self.note = note
        with torch.cuda.device(device):
            self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            run()  # memory that runs out does so here
            torch.cuda.synchronize()

    def elapsed(self) -> float:
        """Run once with the device idle before and after; see ``Runner``."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            self._start.record()
            self._run()
            self._end.record()
            self._end.synchronize()
        return float(self._start.elapsed_time(self._end))


@contextmanager
def cuda_session(device: torch.device) -> Iterator[None]:
    """Make a device the current one, and give back what released networks held when the session ends well.

    Raises:
        DeviceError: the device stopped working.
    """
    with loss_guard(f"device {device}"), torch.cuda.device(device):
        yield
        with suppress(RuntimeError):  # of a torch before 2.12 that once failed to capture a network
            torch.cuda.empty_cache()


@contextmanager
def loss_guard(named: str) -> Iterator[None]:
    """Turn an error of a CUDA device inside, other than full memory, into a ``DeviceError``.

    Args:
        named: the device as the message names it, e.g. ``device cuda:1``.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(sign in text for sign in _LOST) or any(sign in text for sign in FULL):
            raise
        raise DeviceError(
            f"The {named} must work until the run is done, and failed ({text.splitlines()[0]}); "
            "see that it is there (nvidia-smi), then go on with `resume`"
        ) from error


def with_room(load: Callable[[], T]) -> T:
    """Load something onto the current device, where memory runs out once more after released networks are gone.

    Fused networks hold themselves in reference cycles, so that only the garbage collector lets go of them.
    """
    with suppress(torch.cuda.OutOfMemoryError):
        return load()
    gc.collect()
    torch.cuda.empty_cache()
    return load()


class Graphs:
    """Captures networks as CUDA graphs on the current device.

    All graphs share one private memory pool: they are replayed one after the other, and nobody reads their outputs, so
    each may overwrite what another left. Pools of their own would hold 2 to 20 MiB for each of hundreds of layers.

    Source:
        https://docs.pytorch.org/docs/stable/notes/cuda.html (CUDA graphs: graph memory management).
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # a shared pool needs a shared stream
        self._pool = torch.cuda.graph_pool_handle()
        self._first: torch.cuda.CUDAGraph | None = None  # keeps the pool alive: a pool without graphs cannot be reused
        self._refused: str | None = None

    def capture(self, module: nn.Module, image: torch.Tensor) -> tuple[Callable[[], Any], str | None]:
        """Return the replay of a network, or eager runs and why where the network cannot be captured.

        After a network that cannot be captured no other is tried: networks that are compared should run alike.
        """
        if self._refused is None:
            self._warm_up(module, image)
            try:
                return self._captured(module, image), None
            except torch.cuda.OutOfMemoryError:
                raise
            except (
                RuntimeError
            ) as error:  # data-dependent shapes, a call that waits: such a network is deployed eagerly
                self._refused = str(error).splitlines()[0]
                self._clean_up()
        note = f"the network cannot be captured as a CUDA graph ({self._refused}) and runs eagerly"
        return lambda: module(image), note

    def _warm_up(self, module: nn.Module, image: torch.Tensor) -> None:
        """Run on the side stream that captures, which the documentation asks for."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_CAPTURE_WARM_UP):
                module(image)
        current.wait_stream(self._stream)

    def _captured(self, module: nn.Module, image: torch.Tensor) -> Callable[[], Any]:
        graph = torch.cuda.CUDAGraph()
        # The outer context restores the stream: older versions of torch leave that of a failed capture current. A
        # capture is "thread_local" so that CUDA calls of other threads (TensorBoard, data loading) do not spoil it.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            module(image)
        self._first = self._first or graph
        alive = (module, image)  # a graph holds addresses, not tensors

        def replay() -> Any:
            graph.replay()
            return alive

        return replay

    def _clean_up(self) -> None:
        """Have the allocator forget a failed capture, which a torch before 2.12 leaves underway."""
        with suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
        torch.cuda.synchronize()
