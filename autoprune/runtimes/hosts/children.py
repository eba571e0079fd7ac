"""Child processes of this machine or of a board: one that answers lines, and commands that print and end.

Boards get this file together with `agent`: it needs Python 3.8 and nothing else. As a program it runs one command for
the process that started it, and ends with it, see `run_command_apart`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_MOST_SAID = 1 << 18
"""Bytes that are kept of what a command printed."""


_KILLED = '{"code": -9, "out": "", "err": "the process that ran it was killed"}'


class Child:
    """A process that answers each line on its input with a line on its output.

    Args:
        argv: program and arguments.
        folder: where it runs; None for the current one.
        alone: put it into a process group of its own, which is killed as a whole.
    """

    def __init__(self, argv: list[str], folder: str | None = None, alone: bool = False) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._alone = alone
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=folder,
            env=_environment(folder),
            start_new_session=alone,
        )

    def exchange(self, line: bytes, in_time: Callable[[Any], bool]) -> dict[str, Any]:
        """Write a line, unless it is empty, and return the answer.

        Args:
            line: with its end.
            in_time: waits for a stream to be readable, and returns whether it is.

        Returns:
            ``line``: the answer; or, if the process ended, its exit ``code``, its last ``words``, and whether it was
            killed because the answer was ``late``.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(OSError):  # it has died: the missing answer says so
            self.process.stdin.write(line)
            self.process.stdin.flush()
        late = not in_time(self.process.stdout)
        if late:
            self.kill()
        answer = self.process.stdout.readline()
        if answer.endswith(b"\n") and not late:
            return {"line": answer.decode()}
        code = self.process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        words = next((words.strip() for words in reversed(lines) if words.strip()), "nothing")
        return {"code": code, "words": words, "late": late}

    def kill(self) -> None:
        """Kill it, and what it started if it has a process group of its own."""
        if self._alone:
            _kill_group(self.process)
        else:
            self.process.kill()

    def end(self, seconds: float = 2.0) -> None:
        """End it by closing its input; kill it if it is still busy after some seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        self.process.stdout.close()
        self._errors.close()


def run_command(argv: list[str], timeout: float, folder: str, watch: Callable[[], None]) -> dict[str, Any]:
    """Run a command in a process group of its own, and return what it printed.

    Args:
        argv: program and arguments.
        timeout: seconds after which the group is killed.
        folder: where it runs.
        watch: called several times a second; the command is killed if it raises.

    Returns:
        ``code``, ``out`` and ``err``; the code is None if it was killed because of the timeout.

    Raises:
        OSError: the program cannot be started.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
        code, end = None, time.monotonic() + timeout
        try:
            while code is None and time.monotonic() < end:
                watch()
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=0.1)
        finally:
            _kill_group(process)  # what it left running would disturb the next measurement
            process.wait()
        return {"code": code, "out": _end_of(out), "err": _end_of(err)}


def run_command_apart(argv: list[str], timeout: float, folder: str) -> dict[str, Any]:
    """Run a command as `run_command` does, from a process that kills it when this one ends, in whatever way.

    Raises:
        OSError: the program cannot be started.
    """
    process = subprocess.Popen(
        [sys.executable, "-E", "-S", __file__, str(timeout), folder, *argv],
        stdin=subprocess.PIPE,  # its end is the end of this process
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process alone
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        answer: dict[str, Any] = json.loads(process.stdout.read() or _KILLED)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    return answer


def _run_for_another() -> None:
    """Run a command for the process at the other end of the standard input."""
    timeout, folder, argv = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    alone = threading.Event()

    def listen() -> None:
        sys.stdin.buffer.read()
        alone.set()

    def watch() -> None:
        if alone.is_set():
            raise SystemExit

    threading.Thread(target=listen, daemon=True).start()
    try:
        answer = run_command(argv, timeout, folder, watch)
    except OSError as error:
        answer = {"errno": error.errno}
    sys.stdout.write(json.dumps(answer))


def _environment(folder: str | None) -> dict[str, str] | None:
    """Return an environment whose temporary files lie in a folder, which is removed; None for the present one."""
    return None if folder is None else {**os.environ, "TMPDIR": folder}


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:  # Windows
            process.kill()


def _end_of(file: Any) -> str:
    """Return the last part of a file as text."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MOST_SAID))
    return str(file.read().decode(errors="replace"))


if __name__ == "__main__":
    _run_for_another()
