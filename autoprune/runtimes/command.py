"""A program of the user's as a runtime: networks are exported, the program measures them and prints milliseconds."""

from __future__ import annotations

import pkgutil
import shlex
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from torch import nn

from autoprune.benchmark_command import BenchmarkCommand
from autoprune.choices import Runtime
from autoprune.errors import DeviceError
from autoprune.formats import ExportFormat, FormatSpec
from autoprune.image_size import ImageSize
from autoprune.runtimes._base import Backend, Calibration, FileBackend, Runner, memory_guard, waiting_session
from autoprune.runtimes.execution import Execute, execute
from autoprune.runtimes.exported import export_onnx, export_script
from autoprune.runtimes.settings import MemoryFormat, RuntimeSettings


class CommandBackend(Backend):
    """Exports networks to the formats that a command names, and runs the command for every measurement.

    Args:
        settings: how networks run; ``settings.command`` is the command.
        calibration: is not called.
        execute: runs a program.

    Raises:
        DeviceError: there is no command, or a runtime that converts networks for it is not installed.
    """

    def __init__(
        self, settings: RuntimeSettings, calibration: Calibration | None = None, *, execute: Execute = execute
    ) -> None:
        super().__init__(settings, calibration)
        if settings.command is None:
            raise DeviceError("The runtime command runs a program of yours: say which with `runtime_command`")
        self.command, self.execute = settings.command, execute
        self._specs = [ExportFormat(name).spec for name in self.command.formats]
        self._converters = {spec.name: self._converter(spec) for spec in self._specs if spec.write}

    def session(self) -> AbstractContextManager[None]:
        """Limit torch to one thread here: this process only exports networks and waits; see ``Backend``."""
        return waiting_session(self.settings)

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        """Export the network to every format that the command names; see ``Backend``."""
        runner = CommandRunner(self.command, self.execute, self.settings, shape)
        with memory_guard(self.settings):
            for spec in self._specs:
                written = self._written(spec, module, shape, runner.folder)
                runner.files.update({name: _found(written, file) for name, file in spec.placeholders.items()})
        return runner

    def _converter(self, spec: FormatSpec) -> FileBackend:
        settings = replace(
            self.settings,
            device="cpu",
            runtime=Runtime(spec.runtime),
            memory_format=MemoryFormat.CONTIGUOUS,
            command=None,
        )
        backend: FileBackend = pkgutil.resolve_name(spec.backend)(settings)
        return backend

    def _written(self, spec: FormatSpec, module: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
        """Write a network's file or folder of a format."""
        target = folder / spec.file
        traced = target.with_suffix(f".{spec.traced}") if not spec.write else folder / f"traced.{spec.traced}"
        if spec.traced == "onnx":
            export_onnx(module, shape, traced)
        else:
            export_script(module, shape, traced)
        if spec.write:
            pkgutil.resolve_name(spec.write)(traced, target, {}, self._converters[spec.name].convert)
            traced.unlink()
        return target


class CommandRunner(Runner):
    """One network's files, measured by the command; they are removed when it is collected.

    Args:
        command: the command.
        execute: runs it.
        settings: give the placeholders of threads and batch.
        shape: of the network's input.

    Attributes:
        folder: an empty one for the network's files.
        files: the network's files by the command's placeholders.
    """

    def __init__(
        self, command: BenchmarkCommand, execute: Execute, settings: RuntimeSettings, shape: tuple[int, ...]
    ) -> None:
        self._command, self._execute = command, execute
        self.folder = Path(tempfile.mkdtemp(prefix="autoprune-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.files: dict[str, Path] = {}
        size = ImageSize(*shape[-2:])
        self._numbers: Mapping[str, object] = {
            **{"imgsz": size.written, **size._asdict()},
            **{"batch": shape[0], "threads": settings.threads},
        }

    def elapsed(self) -> float:
        """Run the command once and return the milliseconds that it prints; see ``Runner``."""
        argv = self._command.argv({**self._numbers, **self.files})
        try:
            ended = self._execute(argv, self._command.timeout)
        except OSError as error:
            raise DeviceError(
                f"The benchmark command must start, and {argv[0]} does not ({error.strerror}); name a program that is "
                "there, by its whole path if need be, in `runtime_command`"
            ) from error
        said = f"it last said: {_last_line(ended.err) or _last_line(ended.out) or 'nothing'}"
        if ended.code is None:
            raise DeviceError(
                f"The benchmark command must end within {self._command.timeout:g} s and did not, so it was killed "
                f"({said}); give it fewer runs, or more time with `runtime_timeout`"
            )
        if ended.code:
            raise DeviceError(
                f"The benchmark command must succeed, and {shlex.join(argv)} ended with "
                f"{_exit_words(ended.code)} ({said}); correct `runtime_command`"
            )
        found = self._command.milliseconds(ended.out, ended.err)
        if found is None:
            wanted = (
                f"what `runtime_pattern` {self._command.pattern!r} matches" if self._command.pattern else "a number"
            )
            raise DeviceError(
                f"The benchmark command must print {wanted}, milliseconds above 0, and did not ({said}); correct "
                "`runtime_command` or `runtime_pattern`"
            )
        return found


def _found(written: Path, pattern: str) -> Path:
    """Return the file of a format that a placeholder stands for."""
    return next(written.glob(pattern)) if pattern else written


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _exit_words(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code}"
