"""Shared by torch's runtimes: load a network on its device, pin the process, time by clock or events, CUDA graphs."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import nn

from autoprune.choices import Precision
from autoprune.errors import DeviceError, first_line, is_out_of_memory
from autoprune.runtimes._base import Runner, memory_guard
from autoprune.runtimes.settings import MemoryFormat, RuntimeSettings, cpu_model

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
"""Number formats as torch names them."""

_INSTRUCTIONS: Mapping[Precision, tuple[str, ...]] = {
    Precision.BF16: ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"),
    Precision.FP16: ("avx512_fp16", "amx_fp16", "avx_ne_convert", "fp16_arith"),
}
"""Instruction sets, as torch names them, one of which a CPU needs to compute in a precision; the last are Arm's."""

Run = Callable[[], Any]
"""Runs a network once on an input that stays the same."""


def check_precision(settings: RuntimeSettings) -> None:
    """Check that the device has instructions for the precision; without them torch emulates it, slowly.

    Raises:
        DeviceError: it has none.
    """
    precision, device = settings.precision, torch.device(settings.device)
    if device.type == "cpu":
        if not computes_in(precision):
            needed = ", ".join(_INSTRUCTIONS[precision])
            raise DeviceError(
                f"A CPU must have instructions for `precision` {precision.value} ({needed}), and this one "
                f"({cpu_model()}) has none; use fp32"
            )
    elif device.type == "cuda" and precision is Precision.BF16:
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                raise DeviceError(
                    f"A GPU must have instructions for `precision` bf16, and {torch.cuda.get_device_name(device)} has "
                    "none; use fp16"
                )


@contextmanager
def torch_session(settings: RuntimeSettings) -> Iterator[None]:
    """Pin torch's threads, its CUDA device too, and run without gradients; see ``Backend.session``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with ExitStack() as stack:
            stack.enter_context(memory_guard(settings))
            if settings.device.startswith("cuda"):
                stack.enter_context(cuda_session(torch.device(settings.device)))
            stack.enter_context(torch.inference_mode())
            yield
    finally:
        torch.set_num_threads(threads)


def loaded(module: nn.Module, shape: tuple[int, ...], settings: RuntimeSettings) -> tuple[nn.Module, torch.Tensor]:
    """Return a copy of a network on the device, in the settings' precision and memory format, and an input for it."""
    device, dtype = torch.device(settings.device), DTYPES[settings.precision]
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    copied = copy.deepcopy(module).to(device, dtype).eval()
    if settings.memory_format is MemoryFormat.CHANNELS_LAST and len(shape) == 4:
        copied = copied.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
    return copied, image


def make_runner(load: Callable[[], tuple[Run, str | None]], settings: RuntimeSettings) -> Runner:
    """Return a runner that times a network on the settings' device.

    Args:
        load: moves the network to the device, and returns a function that runs it and a note (see ``Runner``).
        settings: how networks run.
    """
    device = torch.device(settings.device)
    if device.type != "cuda":
        wait = torch.mps.synchronize if device.type == "mps" else _no_wait
        return _ClockRunner(*load(), wait=wait, in_thread=device.type == "cpu" and settings.threads == 1)
    with torch.cuda.device(device):
        return with_room(lambda: CudaRunner(*load(), device))


class _ClockRunner(Runner):
    """Runs by the wall clock, on the CPU or an Apple GPU.

    Args:
        run: runs the network once.
        note: see ``Runner``.
        wait: returns once the device is idle.
        in_thread: see ``Runner``.
    """

    def __init__(self, run: Run, note: str | None, *, wait: Callable[[], None], in_thread: bool) -> None:
        self._run, self._wait = run, wait
        self.note, self.in_thread = note, in_thread

    def elapsed(self) -> float:
        self._wait()
        start = time.perf_counter()
        self._run()
        self._wait()
        return (time.perf_counter() - start) * 1e3


def _no_wait() -> None:
    """Return at once: a CPU is idle when its operations return."""


def computes_in(precision: Precision) -> bool:
    """Return whether this CPU has instructions for a number format; without them torch emulates it, slowly."""
    instructions = _INSTRUCTIONS.get(precision)
    if instructions is None:
        return True
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(bool(capabilities.get(name)) for name in instructions)
    known = f"_is_mkldnn_{precision.value}_supported"  # torch before 2.11 says it nowhere else
    return bool(getattr(torch.ops.mkldnn, known)())


_CAPTURE_WARM_UP = 3
"""Runs before a capture: libraries choose kernels and initialise, which must not happen within one."""

_LOST = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS_")
"""Texts in errors of a device that no longer works; those of full memory are recognised before."""

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
    """Make a device the current one, and free the cached memory of released networks at the end.

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
        if not any(sign in text for sign in _LOST) or is_out_of_memory(error):
            raise
        raise DeviceError(
            f"The {named} must work until the run is done, and failed ({first_line(error)}); "
            "see that it is there (nvidia-smi), then go on with `resume`"
        ) from error


def with_room(load: Callable[[], T]) -> T:
    """Load onto the current device; if memory runs out, free released networks and try once more.

    Fused networks are reference cycles, so only the garbage collector frees them.
    """
    try:
        return load()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()
    torch.cuda.empty_cache()
    return load()


class Graphs:
    """Captures networks as CUDA graphs on the current device.

    All graphs share one private memory pool: they are replayed one after the other and their outputs are not read, so
    they may overwrite each other. Separate pools would hold 2 to 20 MiB for each of hundreds of layers.

    Source:
        https://docs.pytorch.org/docs/stable/notes/cuda.html (CUDA graphs: graph memory management).
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # a shared pool needs a shared stream
        self._pool = torch.cuda.graph_pool_handle()
        self._first: torch.cuda.CUDAGraph | None = None  # keeps the pool alive: a pool without graphs cannot be reused
        self._refused: str | None = None

    def capture(self, module: nn.Module, image: torch.Tensor) -> tuple[Callable[[], Any], str | None]:
        """Return a function that replays the network, or one that runs it eagerly and a note on why.

        After one network that cannot be captured no other is captured: compared networks should run alike.
        """
        if self._refused is None:
            self._warm_up(module, image)
            try:
                return self._captured(module, image), None
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                # Data-dependent shapes, a call that synchronises: such a network is deployed eagerly.
                self._refused = first_line(error)
                self._clean_up()
        note = f"the network cannot be captured as a CUDA graph ({self._refused}) and runs eagerly"
        return lambda: module(image), note

    def _warm_up(self, module: nn.Module, image: torch.Tensor) -> None:
        """Run on the stream that captures, as the documentation asks."""
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
        """End a failed capture in the allocator, which torch before 2.12 leaves open."""
        with suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
        torch.cuda.synchronize()
