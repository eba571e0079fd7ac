"""Serves a board to the search that measures on it; sent there over SSH, and run by the board's own Python.

It needs Python 3.8, `children`, which is sent with it, and nothing else. Requests come as lines of JSON on the standard
input, ``{"call": name, "arguments": {...}}``, the content of a file follows its line; each is answered by a line
``{"value": ...}`` or ``{"error": {"kind": ..., "text": ...}}``. Empty lines are signs of life. When the input ends or
is silent for too long, all processes that were started here are killed, the folder of files is removed, and the lock is
released.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import select
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from autoprune.runtimes.hosts.children import Child, run_command

GREETING = b"autoprune-agent "
"""Starts the first answer; what a login script prints before it is skipped."""

SILENCE = 90.0
"""Seconds without a sign of life after which the search counts as gone."""

_PIECE = 1 << 16
_LOCK = "autoprune.lock"
_CPU = "/sys/devices/system/cpu/cpu0/cpufreq/"


class Gone(Exception):
    """The search has gone."""


class Agent:
    """The board's side of a connection: files, processes, the lock and the board's state."""

    def __init__(self) -> None:
        self._buffer, self._heard = bytearray(), time.monotonic()
        self._lock: int | None = None
        self._children: dict[int, Child] = {}
        self._started = 0
        _sweep()
        self._folder = tempfile.mkdtemp(prefix=f"autoprune-{os.getpid()}-")

    def serve(self) -> None:
        """Answer requests until the search has gone, and leave nothing."""
        try:
            os.write(1, b"\n" + GREETING + json.dumps(self.describe()).encode() + b"\n")
            while True:
                line = self._line()
                if line.strip():
                    self._answer(json.loads(line))
        except (Gone, BrokenPipeError):
            pass
        finally:
            for child in self._children.values():
                child.kill()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _answer(self, request: dict[str, Any]) -> None:
        try:
            answer = {"value": getattr(self, request["call"])(**request["arguments"])}
        except Gone:
            raise
        except Exception as error:  # the search reports it
            answer = {"error": {"kind": type(error).__name__, "text": str(error)}}
        self._send(answer)

    def _send(self, message: dict[str, Any]) -> None:
        left = json.dumps(message).encode() + b"\n"
        while left:
            left = left[os.write(1, left) :]

    # -- input -----------------------------------------------------------------------------------

    def _fill(self, seconds: float, stream: Any = None) -> bool:
        """Wait for input, or for another stream; return whether that one is readable."""
        silent = self._heard + SILENCE - time.monotonic()
        if silent <= 0:
            raise Gone
        ready, _, _ = select.select([0] if stream is None else [0, stream], [], [], max(0.0, min(seconds, silent)))
        if 0 in ready:
            piece = os.read(0, _PIECE)
            if not piece:
                raise Gone
            self._heard = time.monotonic()
            self._buffer += piece
        return stream in ready

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            self._fill(SILENCE)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return line

    def _watch(self) -> None:
        self._fill(0.0)

    # -- the board ---------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return what the board is."""
        cpu = _fields("/proc/cpuinfo")
        names = ("model name", "Hardware", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
        flags = (cpu.get("flags") or cpu.get("Features") or "").split()
        return {
            "board": _read("/proc/device-tree/model") or _read("/sys/class/dmi/id/product_name"),
            "cpu": ", ".join(f"{name} {cpu[name]}" for name in names if name in cpu),
            "cores": len(_cores()),
            "wide": "avx512f" in flags,
            "governor": _read(_CPU + "scaling_governor"),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "executable": sys.executable,
            "environment": sys.prefix != sys.base_prefix,
            "boot": _read("/proc/sys/kernel/random/boot_id"),
            "folder": self._folder,
            "free": shutil.disk_usage(tempfile.gettempdir()).free,
        }

    def versions(self, packages: list[str]) -> dict[str, str]:
        """Return the versions of those packages that are installed."""
        found = {}
        for package in packages:
            with suppress(PackageNotFoundError):
                found[package] = version(package)
        return found

    def state(self) -> dict[str, Any]:
        """Return how busy, how fast and how hot the board is.

        ``seconds`` is a clock that nobody sets; ``idle`` and ``own`` are the seconds that the usable cores idled and
        that processes of this connection computed, ``megahertz`` the frequencies now and at most.
        """
        ticks = os.sysconf("SC_CLK_TCK")
        idle, usable = 0.0, {f"cpu{core}" for core in _cores()}
        for line in _read("/proc/stat").split("\n"):
            parts = line.split()
            if parts and parts[0] in usable:
                idle += (int(parts[4]) + int(parts[5])) / ticks
        ended = os.times()
        own = time.process_time() + ended.children_user + ended.children_system  # commands that were run
        for child in self._children.values():
            fields = _read(f"/proc/{child.process.pid}/stat").rpartition(")")[2].split()
            own += sum(map(int, fields[11:13])) / ticks
        heat = [int(value) / 1e3 for value in map(_read, glob.glob("/sys/class/thermal/*/temp")) if value.isdigit()]
        speeds = [_read(_CPU + name) for name in ("scaling_cur_freq", "cpuinfo_max_freq")]
        firmware = _read("/sys/devices/platform/soc/soc:firmware/get_throttled")  # a Raspberry Pi's
        return {
            "seconds": time.monotonic(),
            "idle": idle,
            "own": own,
            "cores": len(usable),
            "megahertz": [int(speed) / 1e3 for speed in speeds] if all(map(str.isdigit, speeds)) else None,
            "celsius": max(heat, default=None),
            "throttled": bool(int(firmware, 16) & 0xF) if firmware else None,
        }

    def lock(self, owner: str, seconds: float) -> bool:
        """Keep other searches off the board, waiting for them to end; return False if they do not.

        Args:
            owner: says to others who has the board.
            seconds: how long to wait.
        """
        import fcntl

        if self._lock is not None:
            return True
        handle, end, holder = _open_lock(), time.monotonic() + seconds, None
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if holder is None:
                    holder = os.pread(handle, 500, 0).decode(errors="replace").strip() or "somebody"
                    self._send({"waiting": holder})
            if time.monotonic() > end:
                os.close(handle)
                return False
            self._fill(0.2)
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner.encode(), 0)
        self._lock = handle
        return True

    def holder(self) -> str:
        """Return who has locked the board; empty if nobody has."""
        import fcntl

        handle = _open_lock()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return os.pread(handle, 500, 0).decode(errors="replace").strip() or "somebody"
        finally:
            os.close(handle)
        return ""

    def unlock(self) -> None:
        """Leave the board to other searches, unless a process of this one runs."""
        if not self._children and self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- files ---------------------------------------------------------------------------------------

    def put(self, name: str, size: int, digest: str) -> str:
        """Write a file whose content follows, check its SHA-256, and return its path."""
        path = os.path.join(self._folder, name)
        found, failed = hashlib.sha256(), None
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file: Any = open(path, "wb")  # noqa: SIM115  # closed below, whose error counts
        except OSError as error:
            file, failed = None, error
        while size:
            if not self._buffer:
                self._fill(SILENCE)
            piece = bytes(self._buffer[:size])
            del self._buffer[:size]
            size -= len(piece)
            found.update(piece)
            try:
                if failed is None:
                    file.write(piece)
            except OSError as error:
                failed = error
        try:
            if file is not None:
                file.close()
        except OSError as error:
            failed = failed or error
        if failed is not None:
            with suppress(OSError):
                os.remove(path)
            raise failed
        if found.hexdigest() != digest:
            raise OSError(f"the file {name} arrived changed")
        return path

    def remove(self, name: str) -> None:
        """Remove a file or a folder that was put here."""
        shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)

    # -- processes -------------------------------------------------------------------------------------

    def start(self, argv: list[str]) -> list[int]:
        """Start a process that answers lines, and return its number and its id; the first argument is this Python."""
        self._started += 1
        child = self._children[self._started] = Child([sys.executable, *argv], self._folder, alone=True)
        return [self._started, child.process.pid]

    def ask(self, number: int, line: str, timeout: float) -> dict[str, Any]:
        """Hand a line to a process and return its answer, as `Child.exchange` does."""
        end = time.monotonic() + timeout

        def in_time(stream: Any) -> bool:
            while not self._fill(end - time.monotonic(), stream):
                if time.monotonic() >= end:
                    return False
            return True

        return self._children[number].exchange(line.encode(), in_time)

    def end(self, number: int) -> None:
        """End a process; the last one releases the lock, unless it died: then it is started again."""
        child = self._children.pop(number)
        died = child.process.poll() is not None
        child.end()
        if not died:
            self.unlock()

    def run(self, argv: list[str], timeout: float) -> dict[str, Any]:
        """Run a command in an empty folder, as `run_command` does."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            return run_command(argv, timeout, folder, self._watch)


def _read(path: str) -> str:
    """Return the text of a file of the system; empty if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace").strip(" \n\0")
    except OSError:
        return ""


def _fields(path: str) -> dict[str, str]:
    """Return the fields of the first processor."""
    fields: dict[str, str] = {}
    for line in _read(path).split("\n"):
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _cores() -> list[int]:
    """Return the numbers of the cores that may be used."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _open_lock() -> int:
    """Open the lock's file, which all users share."""
    path, flags = os.path.join(tempfile.gettempdir(), _LOCK), os.O_RDWR | os.O_NOFOLLOW
    try:
        return os.open(path, flags)  # without O_CREAT: Linux forbids that for files of others in a shared folder
    except FileNotFoundError:
        handle = os.open(path, flags | os.O_CREAT, 0o666)
        os.fchmod(handle, 0o666)
        return handle


def _sweep() -> None:
    """Remove the folders of agents that were killed."""
    for folder in glob.glob(os.path.join(tempfile.gettempdir(), "autoprune-*-*")):
        number = os.path.basename(folder).split("-")[1]
        with suppress(OSError):
            if number.isdigit() and os.stat(folder).st_uid == os.getuid():
                try:
                    os.kill(int(number), 0)
                except ProcessLookupError:
                    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Serve until the search has gone."""

    def leave(number: int, _: Any) -> None:
        raise Gone

    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        signal.signal(getattr(signal, name), leave)
    Agent().serve()


if __name__ == "__main__":
    main()
