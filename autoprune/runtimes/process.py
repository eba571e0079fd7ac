"""The parent's side of a worker process: calls, answers, and one clear error when the process dies."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from autoprune.errors import DeviceError

WORKER = Path(__file__).with_name("worker.py")

TIMEOUT = 900.0
"""Seconds after which a worker that does not answer counts as hung: the slowest engine builds need minutes."""


class WorkerError(Exception):
    """An exception that an engine raised.

    Attributes:
        kind: the name of its class.
        text: its message.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class WorkerProcess:
    """A process that serves one engine; it ends when this object is collected or this process ends.

    Calls come from one thread.

    Args:
        name: the runtime, for messages.
        engine: the file with the class ``Engine``.
        options: arguments of ``Engine``, plain JSON.
        timeout: seconds that a call may take.

    Raises:
        DeviceError: the process died or hangs; by every call too.
        WorkerError: the engine did not start.
    """

    def __init__(self, name: str, engine: Path, options: Mapping[str, Any], *, timeout: float = TIMEOUT) -> None:
        self.name = name
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), str(engine), json.dumps(dict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._released: deque[int] = deque()
        self.close = weakref.finalize(self, _end, self._process, self._errors)
        self._answer()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a method of the engine with plain JSON arguments and return its plain JSON result.

        Raises:
            WorkerError: the engine raised an exception.
        """
        while self._released:
            self._exchange("drop", {"number": self._released.popleft()})
        return self._exchange(name, arguments)

    def release(self, number: int) -> None:
        """Drop a network before the next call; safe at any moment, so that a garbage collection can call it."""
        self._released.append(number)

    def _exchange(self, name: str, arguments: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died: the missing answer says so
            self._process.stdin.write(json.dumps({"call": name, "arguments": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        """Wait for the answer to the last call."""
        stream = self._process.stdout
        assert stream is not None
        try:
            in_time = _readable(stream, self._timeout)
            if not in_time:
                self._process.kill()
            line = stream.readline()
        except BaseException:  # interrupted: a late answer would be taken for that of the next call
            self._process.kill()
            raise
        if not line.endswith(b"\n"):
            raise DeviceError(self._exit_message(in_time))
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(**answer["error"])
        return answer["value"]

    def _exit_message(self, in_time: bool) -> str:
        """Return one sentence on how the process ended."""
        code = self._process.wait()
        if not in_time:
            return (
                f"The process of {self.name} must answer within {self._timeout:g} s and did not, so it was ended; "
                "try again, or use another `runtime`"
            )
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        hint = "; if memory ran out, a smaller `batch` or `imgsz` helps" if code == -signal.SIGKILL else ""
        return f"The process of {self.name} ended during the run ({how}; it last said: {words}){hint}"


def _readable(stream: IO[bytes], timeout: float) -> bool:
    """Return whether the stream has data or ends within ``timeout`` seconds."""
    if sys.platform == "win32":
        return True  # only sockets can be waited for there: the read that follows waits without a limit
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(timeout * 1e3))


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """End a worker: closing its input makes it exit; kill it if it is still busy after two seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    errors.close()
