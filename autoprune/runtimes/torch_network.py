"""What torch's own runtimes share: a network on its device, in its precision, and a process that holds still."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from autoprune.choices import Precision
from autoprune.errors import DeviceError
from autoprune.runtimes._base import Runner, memory_guard
from autoprune.runtimes.settings import MemoryFormat, RuntimeSettings, cpu_model
from autoprune.runtimes.torch_cuda import CudaRunner, cuda_session, with_room

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
    """Check that this very device computes in the precision; without instructions for it torch emulates it, slowly.

    Raises:
        DeviceError: it does not.
    """
    precision, device = settings.precision, torch.device(settings.device)
    if device.type == "cpu":
        needed = _INSTRUCTIONS.get(precision)
        if needed and not _has_any(needed, precision):
            raise DeviceError(
                f"A CPU must have instructions for `precision` {precision.value} ({', '.join(needed)}), and this one "
                f"({cpu_model()}) has none; use fp32"
            )
    elif precision is Precision.BF16:
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
            if settings.device != "cpu":
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
    """Return what times the runs of a network on the settings' device.

    Args:
        load: puts the network onto the device, and returns how to run it and what a reader should know about that.
        settings: how networks run.
    """
    device = torch.device(settings.device)
    if device.type == "cpu":
        return _CpuRunner(*load())
    with torch.cuda.device(device):
        return with_room(lambda: CudaRunner(*load(), device))


class _CpuRunner(Runner):
    """Runs on the CPU, by the wall clock."""

    def __init__(self, run: Run, note: str | None) -> None:
        self._run = run
        self.note = note

    def elapsed(self) -> float:
        start = time.perf_counter()
        self._run()
        return (time.perf_counter() - start) * 1e3


def _has_any(instructions: tuple[str, ...], precision: Precision) -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(bool(capabilities.get(name)) for name in instructions)
    known = f"_is_mkldnn_{precision.value}_supported"  # torch before 2.11 says it nowhere else
    return bool(getattr(torch.ops.mkldnn, known)())
