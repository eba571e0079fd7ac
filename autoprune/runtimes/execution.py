"""Run a program to its end, within a time limit, and leave no process of it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TypeAlias

LONGEST = 2**20
"""Bytes of an output that are read, from its end."""


@dataclass(frozen=True)
class Execution:
    """How a program ended.

    Attributes:
        code: its exit code, negative for a signal; None if it was ended because it took too long.
        out: what it printed.
        err: what it printed as errors.
    """

    code: int | None
    out: str
    err: str


Execute: TypeAlias = Callable[[Sequence[str], float], Execution]
"""Runs a program's words for a number of seconds at most; an ``OSError`` says that it does not start."""


def execute(argv: Sequence[str], timeout: float) -> Execution:
    r"""Run a program of this machine in an empty temporary folder; its whole process group ends with it.

    Args:
        argv: the program and its arguments; no shell sees them.
        timeout: seconds that it may take.

    Raises:
        OSError: it does not start.

    Example:
        >>> execute(["echo", "12.5"], 10.0)
        Execution(code=0, out='12.5\n', err='')
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            list(argv), cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # an interrupt, too
            _end(process)
        return Execution(code, _tail(out), _tail(err))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a program and of its children."""
    with suppress(ProcessLookupError, PermissionError):  # all have ended
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - LONGEST))
    return file.read().decode(errors="replace")
