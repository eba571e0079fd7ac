"""The machine that networks are measured on: this one, or a board over SSH."""

from __future__ import annotations

import os
import select
import sys
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import DeviceError
from autoprune.runtimes.hosts.children import Child, run_command_apart
from autoprune.runtimes.load import LoadWatch

FALL = 0.9
"""A board throttles if its clock fell below this share of what it was when a measurement began."""


class BoardLostError(DeviceError):
    """What was loaded on a board is gone: the connection, the board or the process there ended; measure again."""


@dataclass(frozen=True)
class Answer:
    """What a process answered to a line.

    Attributes:
        line: the answer; empty if the process ended instead.
        code: its exit code then.
        words: the last line that it printed as an error.
        late: whether it was killed because it did not answer in time.
    """

    line: str = ""
    code: int = 0
    words: str = ""
    late: bool = False


@dataclass(frozen=True)
class Output:
    """What a command printed.

    Attributes:
        code: its exit code, negative for a signal; None if it took too long and was killed.
        out: the last part of its standard output.
        err: the last part of its error output.
    """

    code: int | None
    out: str
    err: str


class Pipe(ABC):
    """A running process that answers lines.

    Attributes:
        pid: its id, on its machine.
    """

    pid: int

    @abstractmethod
    def exchange(self, line: bytes, timeout: float) -> Answer:
        """Write a line, unless it is empty, and wait for the answer for at most ``timeout`` seconds.

        Raises:
            BoardLostError: the connection is lost.
        """

    @abstractmethod
    def kill(self) -> None:
        """Kill the process."""

    @abstractmethod
    def close(self) -> None:
        """End the process; safe to call twice, and from a garbage collection."""


class BoardWatch(LoadWatch):
    """Watches a board from now on: what others use of it, and whether it throttles.

    Args:
        state: returns the board's state, see `autoprune.runtimes.hosts.agent.Agent.state`.
        throttles: hears the remark if the board throttles.
    """

    def __init__(self, state: Callable[[], Mapping[str, Any]], throttles: Callable[[str], None]) -> None:
        self._state, self._throttles = state, throttles
        self._first = self._last = state()
        self.cores = range(self._first["cores"])
        self._began = self._now()

    def busy(self) -> float:
        """Return how many cores other processes have used since, on average."""
        self._last = self._state()
        if (remark := self.remark()) is not None:
            self._throttles(remark)
        return super().busy()

    def _now(self) -> tuple[float, float, float]:
        return (self._last["seconds"], self._last["idle"], self._last["own"])

    def remark(self) -> str | None:
        """Return a remark if the board was throttled when `busy` was called; else None."""
        throttled, heat, speeds = (self._last[key] for key in ("throttled", "celsius", "megahertz"))
        fell = False
        if speeds is not None and self._first["megahertz"] is not None:
            fell = speeds[0] < FALL * min(speeds[1], self._first["megahertz"][0])
        if not (throttled or fell):
            return None
        at = f" at {heat:.0f} °C" if heat is not None else ""
        clock = f": {speeds[0]:.0f} of {speeds[1]:.0f} MHz" if speeds is not None else ""
        return f"the board throttles{at}{clock}; cool it, or power it better"


class Host(ABC):
    """A machine that starts processes.

    Attributes:
        local: whether it is this machine.
        name: for messages.
    """

    local: bool = True
    name: str = "this machine"

    @abstractmethod
    def start(self, arguments: Sequence[str | Path]) -> Pipe:
        """Start Python with arguments; files among them are sent first."""

    @abstractmethod
    def put(self, path: Path) -> str:
        """Return the path, there, of a copy of a file or a folder; equal content is sent once."""

    @abstractmethod
    def run(self, argv: Sequence[str], timeout: float) -> Output:
        """Run a command in an empty folder and a process group of its own, which is killed after ``timeout`` seconds.

        Args:
            argv: the program and its arguments; no shell sees them.
            timeout: seconds that it may take.

        Raises:
            DeviceError: the program does not start.
        """

    @abstractmethod
    def fingerprint(self, packages: Sequence[str] = ()) -> Mapping[str, Any]:
        """Return what the time of a network depends on there: board, processor, governor, versions of packages."""

    def watch(self) -> BoardWatch | None:
        """Return what watches the board from now on, or None for this machine."""
        return None

    def leave(self) -> None:
        """Let others measure there if nothing runs; safe at any moment, so that a garbage collection can call it."""
        return

    @abstractmethod
    def close(self) -> None:
        """End what was started there."""


class LocalHost(Host):
    """This machine.

    Example:
        >>> host = LocalHost()
        >>> float(host.run(["echo", "12.5"], timeout=10).out)
        12.5
    """

    def start(self, arguments: Sequence[str | Path]) -> Pipe:
        """Start this Python; see ``Host``."""
        return _LocalPipe(Child([sys.executable, *map(str, arguments)]))

    def put(self, path: Path) -> str:
        """Return the path itself."""
        return str(path)

    def run(self, argv: Sequence[str], timeout: float) -> Output:
        """Run a command; see ``Host``."""
        with tempfile.TemporaryDirectory() as folder:
            return command_output(argv, lambda: run_command_apart(list(argv), timeout, folder), self.name)

    def fingerprint(self, packages: Sequence[str] = ()) -> Mapping[str, Any]:
        """Return nothing: `autoprune.runtimes.settings.fingerprint` knows this machine."""
        return {}

    def close(self) -> None:
        """Do nothing: processes end by themselves."""


class _LocalPipe(Pipe):
    """A process of this machine."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.pid = child.process.pid
        self._finalizer = weakref.finalize(self, child.end)

    def exchange(self, line: bytes, timeout: float) -> Answer:
        """Write and wait; see ``Pipe``."""
        return Answer(**self._child.exchange(line, lambda stream: _readable(stream, timeout)))

    def kill(self) -> None:
        """Kill it."""
        self._child.kill()

    def close(self) -> None:
        """End it."""
        self._finalizer()


def command_output(argv: Sequence[str], run: Callable[[], Mapping[str, Any]], where: str) -> Output:
    """Return what a command printed.

    Args:
        argv: the command.
        run: runs it.
        where: the machine, for messages.

    Raises:
        DeviceError: the program cannot be started.
    """
    try:
        return Output(**run())
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DeviceError(
            f"The benchmark command {argv[0]} must start on {where}, and does not ({reason}); "
            "name a program that is there, by its whole path if need be, in `runtime_command`"
        ) from error


def _readable(stream: Any, timeout: float) -> bool:
    """Return whether the stream has data or ends within ``timeout`` seconds."""
    if sys.platform == "win32":
        return True  # only sockets can be waited for there: the read that follows waits without a limit
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(timeout * 1e3))


LOCAL = LocalHost()
"""This machine."""
