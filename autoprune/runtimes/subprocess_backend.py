"""Backends with a runtime in a subprocess, which runs networks that were exported here, mostly to ONNX."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.choices import Precision
from autoprune.errors import DeviceError, is_out_of_memory
from autoprune.io.files import saying_why
from autoprune.io.installed import install_extra
from autoprune.runtimes import energy_counter
from autoprune.runtimes._base import (
    Backend,
    Calibration,
    FileBackend,
    FileRunner,
    Runner,
    Times,
    memory_guard,
    waiting_session,
)
from autoprune.runtimes.exported import export_onnx
from autoprune.runtimes.hosts import LOCAL, BoardWatch, Host, SshHost, host_of
from autoprune.runtimes.process import WorkerError, WorkerProcess
from autoprune.runtimes.settings import RuntimeSettings, int8_sums_saturate

ENGINES = Path(__file__).parent / "engines"
COUNTER = Path(energy_counter.__file__)

_RANDOM_INPUTS = 4


class BrokenRuntimeError(DeviceError):
    """A runtime is installed and does not start."""


@dataclass(frozen=True)
class EngineSpec:
    """How to start the subprocess of a runtime or a quantizer.

    Attributes:
        name: for messages.
        engine: the file with its class ``Engine``.
        packages: modules that must be importable.
        extra: the extra of autoprune that installs them.
        options: arguments of ``Engine``, plain JSON.
    """

    name: str
    engine: Path
    packages: tuple[str, ...]
    extra: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Check that the packages are there, without importing them.

        Raises:
            DeviceError: one is missing.
        """
        for package in self.packages:
            if not _installed(package):
                raise DeviceError(
                    f"{self.name} needs the package {package}, which is not installed: {install_extra(self.extra)}"
                )

    def start(self, host: Host = LOCAL) -> WorkerProcess:
        """Start the process.

        Raises:
            DeviceError: a board lacks a package.
            BrokenRuntimeError: the engine does not start.
        """
        try:
            return WorkerProcess(self.name, self.engine, self.options, host=host)
        except WorkerError as error:
            missing = re.search(r"No module named '(\w+)", error.text)
            if isinstance(host, SshHost) and missing is not None:
                package = missing[1].replace("_", "-")
                raise DeviceError(
                    f"{self.name} needs the package {package} on {host.name}, which is not installed there: "
                    f"{host.install_hint(package)}"
                ) from error
            where, install = "", f"{install_extra(self.extra)} --force-reinstall"
            if isinstance(host, SshHost):
                where, install = f" on {host.name}", host.install_hint("--force-reinstall", *self.packages)
            raise BrokenRuntimeError(
                f"{self.name} must start{where}, and does not ({_summary(error)}); install its packages anew: {install}"
            ) from error


class SubprocessBackend(Backend, FileBackend):
    """Exports networks, mostly to ONNX, which a subprocess loads and runs, here or on a board.

    The subprocess ends when the backend and all its runners are garbage collected; a collected runner frees its network
    there. A second subprocess quantises int8 networks. Without calibration images, or for inputs that are no images,
    it calibrates on random numbers, which suffices for timing but not for predictions.
    """

    def __init__(self, settings: RuntimeSettings, calibration: Calibration | None = None) -> None:
        super().__init__(settings, calibration)
        self.host = host_of(settings.device)
        if self.host.local:  # a board says what it lacks when the engine starts
            self.runtime.check()
        if settings.precision is Precision.INT8:
            self.quantizer.check()
        self._process = self.runtime.start(self.host)
        self.check(self._process.call("capabilities"))

    @property
    @abstractmethod
    def runtime(self) -> EngineSpec:
        """The engine that runs networks."""

    @property
    def quantizer(self) -> EngineSpec:
        """The engine that quantises networks for the runtime: ONNX Runtime's, in the form that the runtime reads."""
        packages, name = ("onnx", "onnxruntime"), self.settings.runtime.value
        options = {"runtime": name, "saturates": self.host.local and int8_sums_saturate()}
        return EngineSpec(f"Quantisation for {name}", ENGINES / "quantize_onnx.py", packages, name, options)

    def check(self, capabilities: Sequence[str]) -> None:
        """Check the capabilities that the engine reports; by default it computes in all its formats on every device.

        Raises:
            DeviceError: the device lacks the precision.
        """

    def session(self) -> AbstractContextManager[None]:
        """Limit torch to one thread here: this process only traces networks and waits; see ``Backend``."""
        return waiting_session(self.settings) if self.host.local else memory_guard(self.settings)

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        """Export the network, quantise it for int8, and have the process load it; see ``Backend``."""
        return self.export(module, shape)()

    def export(self, module: nn.Module, shape: tuple[int, ...]) -> Callable[[], Runner]:
        """Write the network as the process loads it; see ``Backend``."""
        settings, exported = self.settings, _Exported(self, shape)
        with memory_guard(settings):
            path = self.trace(module, shape, exported.path)
            exported.path = (
                self._quantized(path, shape) if settings.precision is Precision.INT8 else self.translated(path)
            )
        return exported

    def trace(self, module: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
        """Write a network into a folder as what is quantised or translated, and return the file: ONNX.

        Raises:
            DeviceError: ONNX has no such operation.
        """
        settings, path = self.settings, folder / "network.onnx"
        half = settings.precision is Precision.FP16 and not settings.on_cpu  # on a CPU the engine does it
        dtype = torch.float16 if half else torch.float32
        export_onnx(module, shape, path, dtype=dtype, device=str(settings.computing))
        return path

    def open(self, path: Path, shape: tuple[int, ...]) -> FileRunner:
        """Have the process load a file; see ``FileBackend``."""
        with memory_guard(self.settings):
            return SubprocessRunner(self, self.ask("load", path=path, shape=list(shape)))

    def convert(self, source: Path, to: Path) -> None:
        """Have the process write a file of its own; see ``FileBackend``. ONNX Runtime has none, it reads ONNX."""
        with memory_guard(self.settings):
            self.ask("convert", source=str(source), to=str(to))

    def translated(self, path: Path) -> Path:
        """Return what the engine loads for a traced file: the file itself, unless the runtime needs it in its format.

        Raises:
            DeviceError: the runtime has no such operation.
        """
        return path

    def operations(self, source: Path) -> list[tuple[str, bool]]:
        """Return the operations of an ONNX file in order, under the quantizer's names.

        Each comes with whether it has weights to quantise: a convolution or a matrix product.
        """
        return [
            (str(name), bool(heavy)) for name, heavy in self.call(self._quantizing, "operations", source=str(source))
        ]

    def quantize(self, source: Path, images: Path, *, to: Path, keep: Sequence[str] = ()) -> Path:
        """Quantise an ONNX file for the runtime: static, int8, ranges found on images.

        Args:
            source: the file.
            images: a ``.npy`` file of inputs, shape (inputs, *input shape).
            to: where to, without suffix.
            keep: operations that stay in floating point, as ``operations`` names them.

        Returns:
            The new file.

        Raises:
            DeviceError: the quantizer refuses the network.
        """
        arguments = {"source": str(source), "images": str(images), "to": str(to), "keep": list(keep)}
        return Path(self.call(self._quantizing, "quantize", **arguments))

    def ask(self, name: str, **arguments: Any) -> Any:
        """Call the runtime's engine; see ``call``."""
        return self.call(self._process, name, **arguments)

    def call(self, process: WorkerProcess, name: str, **arguments: Any) -> Any:
        """Call an engine and turn its errors into ours.

        Raises:
            MemoryError: memory ran out; a session turns it into a ``DeviceError``.
            DeviceError: any other error of the engine.
        """
        try:
            return process.call(name, **arguments)
        except WorkerError as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise DeviceError(
                f"{process.name} must be able to run the network, and refuses it ({_summary(error)}); "
                "use another runtime (`runtime`, of an export `format`)"
            ) from error

    def release(self, number: int) -> None:
        """Have a network dropped before the next call."""
        self._process.release(number)

    @cached_property
    def _quantizing(self) -> WorkerProcess:
        return self.quantizer.start()

    def _quantized(self, source: Path, shape: tuple[int, ...]) -> Path:
        """Quantise an ONNX file, next to itself, and return the new file."""
        images = source.with_name("images.npy")
        with saying_why(images):
            np.save(images, self._inputs(shape))
        return self.quantize(source, images, to=source.with_name("quantized"))

    def _inputs(self, shape: tuple[int, ...]) -> Any:
        """Return calibration inputs, shape (inputs, *shape): the images, or random ones."""
        images = self._images
        if images is None or images.shape[1:] != shape[1:]:
            return np.random.default_rng(0).random((_RANDOM_INPUTS, *shape), dtype=np.float32)
        whole = -(-len(images) // shape[0]) * shape[0]  # the last batch is filled up from the start
        return images[np.arange(whole) % len(images)].reshape(-1, *shape)

    @cached_property
    def _images(self) -> Any:
        """Calibration images, shape (images, channels, height, width), or None."""
        if self.calibration is None:
            return None
        return np.concatenate([batch.detach().cpu().float().numpy() for batch in self.calibration()])


class _Exported:
    """A network's file, in a folder that is removed when this is collected; a call loads it."""

    def __init__(self, backend: SubprocessBackend, shape: tuple[int, ...]) -> None:
        self._backend, self._shape = backend, shape
        self.path = Path(tempfile.mkdtemp(prefix="autoprune-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def __call__(self) -> Runner:
        return self._backend.open(self.path, self._shape)


class SubprocessRunner(FileRunner):
    """One network in the backend's process."""

    def __init__(self, backend: SubprocessBackend, number: int) -> None:
        self._backend = backend  # holds the process alive
        self._number = number
        weakref.finalize(self, backend.release, number)

    def elapsed(self) -> float:
        """Run once in the subprocess, which takes the time; see ``Runner``."""
        return float(self._backend.ask("run", number=self._number))

    def rounds(self, runners: Sequence[Runner], rounds: int) -> Times | None:
        """Have the subprocess run the rounds, if all networks are there; see ``Runner``."""
        numbers = [
            one._number for one in runners if isinstance(one, SubprocessRunner) and one._backend is self._backend
        ]
        if len(numbers) < len(runners):
            return None
        return np.array(self._backend.ask("rounds", numbers=numbers, rounds=rounds)).reshape(rounds, len(runners))

    def joules(self, runs: int) -> float:
        """Have the subprocess run, and count there; see ``Runner``."""
        return float(self._backend.ask("joules", number=self._number, runs=runs, counter=COUNTER))

    def watch(self) -> BoardWatch | None:
        """Return what watches the board from now on; see ``Runner``."""
        return self._backend.host.watch()

    def outputs(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Run in the subprocess on an input; see ``FileRunner``."""
        with tempfile.TemporaryDirectory() as folder:
            source, to = Path(folder) / "image.npy", Path(folder) / "outputs.npz"
            with saying_why(source):
                np.save(source, image.cpu().numpy())
            count = self._backend.ask("outputs", number=self._number, image=str(source), to=str(to))
            with np.load(to) as arrays:
                return [torch.from_numpy(arrays[f"arr_{index}"]) for index in range(count)]


def _installed(package: str) -> bool:
    """Return whether a module can be imported, without importing it (only its parent packages)."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _summary(error: WorkerError) -> str:
    """Return the first and the last line of an engine's error: between them are its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) < 2 else f"{lines[0]} … {lines[-1]}"
