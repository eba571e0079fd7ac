"""Settings of a measurement (device, runtime, precision, threads, batch, …), checked, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import torch

from autoprune.benchmark_command import BenchmarkCommand
from autoprune.choices import (
    COMMAND,
    CUDAGRAPH,
    DEVICES,
    ONNXRUNTIME,
    RUNTIMES,
    TORCH,
    Precision,
    Runtime,
    device_name,
    is_board,
    is_device,
)
from autoprune.errors import DeviceError
from autoprune.formats import ExportFormat
from autoprune.io.files import sha256_of
from autoprune.runtimes.hosts import board_at, host_of

_LISTING = Path("/proc/cpuinfo")
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm"})
_X86 = ("x86_64", "amd64", "x86", "i386", "i686")


class PrecisionError(DeviceError):
    """A runtime does not compute in a precision on a device."""


class MemoryFormat(Enum):
    """Order of a tensor's dimensions in memory; AUTO is decided by measuring the dense network once."""

    AUTO = "auto"
    CONTIGUOUS = "contiguous"
    CHANNELS_LAST = "channels_last"

    @property
    def layout(self) -> torch.memory_format:
        """The format as torch names it."""
        return torch.channels_last if self is MemoryFormat.CHANNELS_LAST else torch.contiguous_format


InputSize: TypeAlias = int | tuple[int, ...]
"""Height and width of a square RGB image, in pixels; or channels, height and width of another input."""


def threads_in_words(threads: int) -> str:
    """Return a number of threads with its noun.

    Example:
        >>> threads_in_words(1), threads_in_words(2)
        ('1 thread', '2 threads')
    """
    return "1 thread" if threads == 1 else f"{threads} threads"


def image_size_of(shape: Sequence[int]) -> InputSize:
    """Return the shape of one input, (channels, height, width), as settings and messages have it."""
    channels, height, width = shape
    return height if channels == 3 and height == width else (channels, height, width)


@dataclass(frozen=True)
class RuntimeSettings:
    """How a network runs while it is measured; made by ``runtime_settings``, which checks every value.

    Attributes:
        device: ``cpu``, ``cuda:<n>``, ``mps``, or the address of a board.
        runtime: what runs the network.
        precision: number format.
        threads: CPU threads inside an operation.
        batch: images per run.
        image_size: of the input.
        memory_format: order of dimensions in memory.
        with_nms: whether non-maximum suppression belongs to the network that is measured.
        command: what measures, if a program of the user's does.
    """

    device: str
    runtime: Runtime
    precision: Precision
    threads: int
    batch: int
    image_size: InputSize
    memory_format: MemoryFormat = MemoryFormat.AUTO
    with_nms: bool = False
    command: BenchmarkCommand | None = None

    @property
    def on_board(self) -> bool:
        """Whether the device is a board over SSH."""
        return is_board(self.device)

    @property
    def on_cpu(self) -> bool:
        """Whether a CPU runs the network, here or on a board."""
        return self.device == "cpu" or self.on_board

    @property
    def computing(self) -> torch.device:
        """Device of this machine that exports the network: the device itself, or the CPU for a board."""
        return torch.device("cpu" if self.on_board else self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the network's input."""
        size = self.image_size
        return (self.batch, *((3, size, size) if isinstance(size, int) else size))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {key: value.value if isinstance(value, Enum) else value for key, value in asdict(self).items()}
        if self.command is None:  # as settings were before there were commands: caches stay valid
            del values["command"]
        return values


def runtime_settings(
    device: str,
    *,
    image_size: InputSize,
    runtime: Runtime | BenchmarkCommand | None = None,
    precision: Precision = Precision.FP32,
    threads: int | None = None,
    batch: int = 1,
    with_nms: bool = False,
) -> RuntimeSettings:
    """Check the user's options, fill in defaults and return the settings.

    Args:
        device: ``cpu``, ``mps``, ``cuda``, ``cuda:<n>``, ``<n>`` for ``cuda:<n>``, or the address of a board.
        image_size: of the input.
        runtime: what runs the network, or a command that does; None takes ``cudagraph`` on CUDA, ``onnxruntime`` on a
            board, else ``torch``.
        precision: number format; the runtime's record says which there are.
        threads: CPU threads, at most as many as there are cores; None takes as many as torch uses now, or as a board
            has cores.
        batch: images per run.
        with_nms: whether non-maximum suppression is measured too.

    Raises:
        DeviceError: this machine has no such device, or the runtime does not run on it or in that precision; a number
            is out of its range; or a board cannot be reached.
    """
    board = is_board(name := device_name(device))
    resolved = resolve_device("cpu" if board else device)
    device, kind = name if board else str(resolved), resolved.type
    command = runtime if isinstance(runtime, BenchmarkCommand) else None
    asked = COMMAND if isinstance(runtime, BenchmarkCommand) else runtime
    chosen = asked or (ONNXRUNTIME if board else CUDAGRAPH if kind == "cuda" else TORCH)
    kinds = chosen.spec.precisions
    if board and not chosen.spec.on_boards:
        others = ", ".join(spec.name for spec in RUNTIMES if spec.on_boards)
        raise DeviceError(f"The runtime {chosen.value} does not run on a board ({device}), where there are {others}")
    if kind not in kinds:
        others = ", ".join(spec.name for spec in RUNTIMES if kind in spec.precisions)
        raise DeviceError(
            f"The runtime {chosen.value} runs on {' and '.join(kinds)}, got `device` {device}; "
            f"on {kind} there are {others}"
        )
    if precision not in kinds[kind]:
        raise PrecisionError(
            f"The runtime {chosen.value} runs on {kind} in {', '.join(one.value for one in kinds[kind])}, got "
            f"`precision` {precision.value}"
        )
    if with_nms and not chosen.spec.with_nms:
        raise DeviceError(
            f"The runtime {chosen.value} takes networks whose shapes are all fixed, and those of `with_nms` are not; "
            "measure without it, or with `runtime` torch"
        )
    for what, value in (("threads", threads), ("batch", batch), ("image size", image_size)):
        if isinstance(value, int) and value < 1:
            raise DeviceError(f"The number of {what} must be at least 1, got {value}")
    cores = int(board_at(device).description["cores"]) if board else os.cpu_count() or 1
    if threads is not None and threads > cores:
        owner = device if board else "this machine"
        raise DeviceError(f"`threads` must be at most {cores}, the CPU cores of {owner}, got {threads}")
    return RuntimeSettings(
        device,
        chosen,
        precision,
        threads or (cores if board else torch.get_num_threads()),
        batch,
        image_size,
        memory_format=MemoryFormat.AUTO if chosen.spec.layout else MemoryFormat.CONTIGUOUS,
        with_nms=with_nms,
        command=command,
    )


def measuring_device(runtime: Runtime | BenchmarkCommand | None, device: str) -> str:
    """Return where a runtime is measured if all else is computed on a device: on the CPU, if it knows no other."""
    only_cpu = isinstance(runtime, Runtime) and runtime.spec.only_cpu
    return "cpu" if only_cpu and not is_board(device) else device


def lane_width(settings: RuntimeSettings) -> int:
    """Return how many channels the device computes at once: a width costs as much as the next multiple of it.

    Measured on AVX-512: a 3×3 convolution to 24, 40 or 56 channels takes as long as one to 32, 48 or 64, or longer.
    """
    if not settings.on_cpu:
        return 8 if settings.precision is Precision.FP32 else 16
    here = "AVX512" in torch.backends.cpu.get_cpu_capability()
    register = 16 if (board_at(settings.device).description["wide"] if settings.on_board else here) else 8
    return int(register * settings.runtime.spec.registers) if settings.precision is Precision.FP32 else register


def fingerprint(settings: RuntimeSettings) -> dict[str, Any]:
    """Return the conditions of a layer's time; times with different fingerprints are not comparable."""
    values: dict[str, Any] = settings.to_json()
    del values["image_size"]  # part of each layer's shape
    if settings.command is not None:
        del values["command"]["timeout"]  # changes no time
    values["torch"] = torch.__version__
    here = _versions(settings)
    if settings.on_board:  # wherever it is reached
        del values["device"]
        return {**values, "here": here, **host_of(settings.device).fingerprint(settings.runtime.spec.packages)}
    if settings.command is not None and settings.command.files:
        values["command"]["files"] = {str(file): sha256_of(file) for file in settings.command.files}
    values |= {"cpu": cpu_model(), "system": platform.machine()} | here
    if settings.device.startswith("cuda"):
        index = torch.device(settings.device).index
        values |= {
            "gpu": torch.cuda.get_device_name(index),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_conv": torch.backends.cudnn.allow_tf32,
        }
    return values


def _versions(settings: RuntimeSettings) -> dict[str, str]:
    """Return the versions of this machine's packages that write, quantise or run the files that are measured."""
    runtimes = [settings.runtime]
    if settings.command is not None:
        runtimes = [ExportFormat(name).runtime for name in settings.command.formats]
    found = {}
    for package in (package for runtime in runtimes for package in runtime.spec.packages):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def fingerprint_key(values: Mapping[str, Any]) -> str:
    """Return a hash of a fingerprint for file names and keys, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def cpu_model() -> str:
    """Return the processor's name and the number of its logical cores."""
    fields = _cpu_fields()
    wanted = ("model name", "Hardware", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    known = [f"{name} {fields[name]}" for name in wanted if name in fields]
    return f"{', '.join(known) or platform.processor()} × {os.cpu_count()}"


def has_int8_instructions() -> bool | None:
    """Return whether the processor has int8 dot-product instructions; None if the system does not say.

    Source:
        Linux, arch/x86/include/asm/cpufeatures.h and arch/arm64/include/uapi/asm/hwcap.h (names of the flags).
    """
    fields = _cpu_fields()
    flags = fields.get("flags") or fields.get("Features")
    return None if flags is None else bool(_INT8_FLAGS & set(flags.split()))


def int8_sums_saturate() -> bool:
    """Return whether sums of two int8 products may overflow 16 bits on this processor.

    They do on x86 without the instructions. If the system does not say whether they are there, they count as missing.
    """
    there = has_int8_instructions()
    return platform.machine().lower() in _X86 if there is None else not there


def _cpu_fields() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; empty on other systems than Linux."""
    fields: dict[str, str] = {}
    if _LISTING.is_file():
        for line in _LISTING.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields


def compute_device(device: str | torch.device) -> torch.device:
    """Return where candidates are scored: the device of this name, or the CPU for an Apple GPU, which has no float64.

    Raises:
        DeviceError: as `resolve_device`.
    """
    resolved = resolve_device(device)
    return torch.device("cpu") if resolved.type == "mps" else resolved


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of this name, checked to exist on this machine.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or a bare CUDA index as Ultralytics takes it (``0``).

    Raises:
        DeviceError: the name is unknown, or this machine (or this build of torch) has no such device.
    """
    name = device_name(str(device))
    if not is_device(name):
        raise DeviceError(f"`device` must be {DEVICES}, got {str(device)!r}")
    resolved = torch.device(name)
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise DeviceError(
                f"The device {name} was asked for, but torch {torch.__version__} sees no CUDA device here"
            )
        if resolved.index is not None and resolved.index >= count:
            raise DeviceError(
                f"The device {name} was asked for, but there are {count} CUDA devices (cuda:0 is the first)"
            )
        return resolved if resolved.index is not None else torch.device("cuda", torch.cuda.current_device())
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("The device mps was asked for, but torch sees no Apple GPU here")
    return resolved
