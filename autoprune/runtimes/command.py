"""A program of the user's as a runtime: networks are exported, the program measures them and prints milliseconds."""

from __future__ import annotations

import pkgutil
import shlex
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from torch import nn

from autoprune.choices import Runtime
from autoprune.errors import DeviceError
from autoprune.formats import ExportFormat, FormatSpec
from autoprune.image_size import ImageSize
from autoprune.runtimes._base import Backend, Calibration, FileBackend, Runner, memory_guard, waiting_session
from autoprune.runtimes.exported import WRITERS
from autoprune.runtimes.hosts import BoardWatch, Host, host_of
from autoprune.runtimes.settings import MemoryFormat, RuntimeSettings


class CommandBackend(Backend):
    """Exports networks to the formats that a command names, and runs it for every measurement, here or on a board.

    Args:
        settings: how networks run; ``settings.command`` is the command.
        calibration: is not called.
        host: runs the command; None for the settings' device.

    Raises:
        DeviceError: there is no command, or a runtime that converts networks for it is not installed.
    """

    def __init__(
        self, settings: RuntimeSettings, calibration: Calibration | None = None, *, host: Host | None = None
    ) -> None:
        super().__init__(settings, calibration)
        if settings.command is None:
            raise DeviceError("The runtime command runs a program of yours: say which with `runtime_command`")
        self.command, self.host = settings.command, host or host_of(settings.device)
        weakref.finalize(self, self.host.leave).atexit = False
        self._specs = [ExportFormat(name).spec for name in self.command.formats]
        self._converters = {spec.name: self._converter(spec) for spec in self._specs if spec.write}

    def session(self) -> AbstractContextManager[None]:
        """Limit torch to one thread if the command runs here: this process waits for it; see ``Backend``."""
        return waiting_session(self.settings) if self.host.local else memory_guard(self.settings)

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        """Export the network to every format that the command names; see ``Backend``."""
        runner = CommandRunner(self, shape)
        with memory_guard(self.settings):
            for spec in self._specs:
                written = self._written(spec, module, shape, runner.folder)
                runner.files.update({name: (written, file) for name, file in spec.placeholders.items()})
        return runner

    def export(self, module: nn.Module, shape: tuple[int, ...]) -> Callable[[], Runner]:
        """Export the network, which is all there is to do; see ``Backend``."""
        runner = self.prepare(module, shape)
        return lambda: runner

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
        WRITERS[spec.traced](module, shape, traced)
        if spec.write:
            pkgutil.resolve_name(spec.write)(traced, target, {}, self._converters[spec.name].convert)
            traced.unlink()
        return target


class CommandRunner(Runner):
    """One network's files, measured by the command; they are removed when it is collected.

    Args:
        backend: has the command, and the host that runs it.
        shape: of the network's input.

    Attributes:
        folder: an empty one for the network's files.
        files: by the command's placeholders, the file or folder of a format, and the pattern of the file in a folder.
    """

    def __init__(self, backend: CommandBackend, shape: tuple[int, ...]) -> None:
        self._backend = backend  # keeps other searches off a board
        self.folder = Path(tempfile.mkdtemp(prefix="autoprune-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.files: dict[str, tuple[Path, str]] = {}
        size = ImageSize(*shape[-2:])
        self._numbers: Mapping[str, object] = {
            **{"imgsz": size.written, **size._asdict()},
            **{"batch": shape[0], "threads": backend.settings.threads},
        }

    def elapsed(self) -> float:
        """Run the command once and return the milliseconds that it prints; see ``Runner``."""
        command, host = self._backend.command, self._backend.host
        argv = command.argv({**self._numbers, **{name: self._placed(*file) for name, file in self.files.items()}})
        ended = host.run(argv, command.timeout)
        where = "" if host.local else f" on {host.name}"
        said = f"it last said: {_last_line(ended.err) or _last_line(ended.out) or 'nothing'}"
        if ended.code is None:
            raise DeviceError(
                f"The benchmark command must end{where} within {command.timeout:g} s and did not, so it was killed "
                f"({said}); give it fewer runs, or more time with `runtime_timeout`"
            )
        if ended.code:
            raise DeviceError(
                f"The benchmark command must succeed{where}, and {shlex.join(argv)} ended with "
                f"{_exit_words(ended.code)} ({said}); correct `runtime_command`"
            )
        found = command.milliseconds(ended.out, ended.err)
        if found is None:
            wanted = f"what `runtime_pattern` {command.pattern!r} matches" if command.pattern else "a number"
            raise DeviceError(
                f"The benchmark command must print{where} {wanted}, milliseconds above 0, and did not ({said}); "
                "correct `runtime_command` or `runtime_pattern`"
            )
        return found

    def watch(self) -> BoardWatch | None:
        """Return what watches the board from now on; see ``Runner``."""
        return self._backend.host.watch()

    def _placed(self, written: Path, pattern: str) -> str:
        """Return the path, where the command runs, of a file of the network; a folder is sent as a whole."""
        there = self._backend.host.put(written)
        return str(PurePosixPath(there, next(written.glob(pattern)).name)) if pattern else there


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _exit_words(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code}"
