"""Backends whose runtime lives in a process of its own, and runs networks that were exported to ONNX."""

from __future__ import annotations

import importlib.util
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.choices import Precision
from autoprune.errors import DeviceError
from autoprune.runtimes._base import Backend, Calibration, Runner, memory_guard
from autoprune.runtimes.exported import export_onnx
from autoprune.runtimes.process import WorkerError, WorkerProcess
from autoprune.runtimes.settings import RuntimeSettings

ENGINES = Path(__file__).parent / "engines"

_FULL = ("MemoryError", "bad_alloc", "bad allocation", "allocate memory", "out of memory", "OutOfMemory")


@dataclass(frozen=True)
class Kit:
    """What a runtime needs.

    Attributes:
        packages: what must be importable, by module name.
        extra: the extra of autoprune that brings it.
        engine: the file of its engine.
    """

    packages: tuple[str, ...]
    extra: str
    engine: Path


class SeparateBackend(Backend):
    """Exports networks to ONNX and has another process load and run them.

    The process starts when the first network is prepared and ends when the backend is collected. A network is dropped
    there when its runner is collected here.
    """

    def __init__(self, settings: RuntimeSettings, calibration: Calibration | None = None) -> None:
        super().__init__(settings, calibration)
        missing = [name for name in self.kit.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise DeviceError(
                f"The runtime {settings.runtime.value} needs the package {missing[0]}, which is not installed: "
                f"pip install 'autoprune[{self.kit.extra}]'"
            )

    @property
    @abstractmethod
    def kit(self) -> Kit:
        """What the runtime needs."""

    @abstractmethod
    def options(self) -> Mapping[str, Any]:
        """Return what the engine is made with, plain JSON."""

    @abstractmethod
    def check(self, capabilities: list[str]) -> None:
        """Check what the engine says that it can do.

        Raises:
            DeviceError: the device lacks the precision.
        """

    @abstractmethod
    def export(self, module: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
        """Write a network for the engine into a folder of its own and return the file that the engine loads."""

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold this process still: it only traces networks and waits; see ``Backend``."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # threads that wait for work would take the runtime's cores
        try:
            with memory_guard(self.settings):
                yield
        finally:
            torch.set_num_threads(threads)

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        """Export the network and have the process load it; see ``Backend``."""
        with memory_guard(self.settings), tempfile.TemporaryDirectory() as folder:
            path = self.export(module, shape, Path(folder))
            number = self.ask("load", path=str(path))
        return SeparateRunner(self, number)

    def ask(self, name: str, **arguments: Any) -> Any:
        """Call the engine, and say in one sentence what it refuses.

        Raises:
            MemoryError: memory ran out.
            DeviceError: anything else.
        """
        try:
            return self._process.call(name, **arguments)
        except WorkerError as error:
            raise self._refusal(error) from error

    def release(self, number: int) -> None:
        """Have a network dropped before the next call."""
        self._process.release(number)

    @cached_property
    def _process(self) -> WorkerProcess:
        name = self.settings.runtime.value
        try:
            process = WorkerProcess(name, self.kit.engine, self.options())
        except WorkerError as error:
            raise DeviceError(
                f"The runtime {name} must be importable, and is not ({_first_line(error)}); install it anew: "
                f"pip install --force-reinstall 'autoprune[{self.kit.extra}]'"
            ) from error
        self.check(process.call("capabilities"))
        return process

    def _refusal(self, error: WorkerError) -> Exception:
        if any(sign in str(error) for sign in _FULL):
            return MemoryError(error.text)
        return DeviceError(
            f"The runtime {self.settings.runtime.value} must be able to run the network, and refuses it "
            f"({_first_line(error)}); use another --runtime"
        )


class SeparateRunner(Runner):
    """One network in the backend's process."""

    def __init__(self, backend: SeparateBackend, number: int) -> None:
        self._backend = backend  # holds the process alive
        self._number = number
        weakref.finalize(self, backend.release, number)

    def elapsed(self) -> float:
        """Run once there, where the time is taken; see ``Runner``."""
        return float(self._backend.ask("run", number=self._number))

    def outputs(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Run on an input of the network's shape and type, and return its outputs."""
        with tempfile.TemporaryDirectory() as folder:
            source, to = Path(folder) / "image.npy", Path(folder) / "outputs.npz"
            np.save(source, image.numpy())
            count = self._backend.ask("outputs", number=self._number, image=str(source), to=str(to))
            with np.load(to) as arrays:
                return [torch.from_numpy(arrays[f"arr_{index}"]) for index in range(count)]


def export_as(module: nn.Module, shape: tuple[int, ...], folder: Path, settings: RuntimeSettings) -> Path:
    """Write a network as ONNX into a folder, in the settings' precision where it is one of ONNX' own types."""
    path = folder / "network.onnx"
    dtype = torch.float16 if settings.precision is Precision.FP16 else torch.float32
    export_onnx(module, shape, path, dtype=dtype, device=settings.device)
    return path


def _first_line(error: WorkerError) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), error.kind)
