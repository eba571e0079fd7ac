"""The search's side of a worker process: calls, answers, and one clear error when the process dies."""

from __future__ import annotations

import json
import signal
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import DeviceError
from autoprune.runtimes.hosts import LOCAL, Answer, BoardLostError, Host

WORKER = Path(__file__).with_name("worker.py")

TIMEOUT = 900.0
"""Seconds after which a worker that does not answer counts as hung: the slowest engine builds need minutes."""


class WorkerError(Exception):
    """An exception that an engine raised; ``text`` is its message."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.text = text


class WorkerProcess:
    """A process that serves one engine; it ends when this object is collected or this process ends.

    Calls come from one thread.

    Args:
        name: the runtime, for messages.
        engine: the file with the class ``Engine``.
        options: arguments of ``Engine``, plain JSON.
        timeout: seconds that a call may take.
        host: the machine that it runs on.

    Raises:
        DeviceError: the process died or hangs; by every call too.
        BoardLostError: it died on a board, or the connection did: what was loaded there is gone.
        WorkerError: the engine did not start.
    """

    def __init__(
        self, name: str, engine: Path, options: Mapping[str, Any], *, timeout: float = TIMEOUT, host: Host = LOCAL
    ) -> None:
        self.name = name if host.local else f"{name} on {host.name}"
        self._host, self._timeout = host, timeout
        self._pipe = host.start([WORKER, engine, json.dumps(dict(options))])
        self._released: deque[int] = deque()
        self.close = self._pipe.close
        self._exchange(b"")

    @property
    def pid(self) -> int:
        """The process's id on its machine."""
        return self._pipe.pid

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a method of the engine with plain JSON arguments and return its plain JSON result.

        A file or folder among the arguments, given as a ``Path``, is sent to the process's machine first.

        Raises:
            WorkerError: the engine raised an exception.
        """
        while self._released:
            self._request("drop", {"number": self._released.popleft()})
        return self._request(name, arguments)

    def release(self, number: int) -> None:
        """Drop a network before the next call; safe at any moment, so that a garbage collection can call it."""
        self._released.append(number)

    def _request(self, name: str, arguments: Mapping[str, Any]) -> Any:
        sent = {key: self._host.put(value) if isinstance(value, Path) else value for key, value in arguments.items()}
        return self._exchange(json.dumps({"call": name, "arguments": sent}).encode() + b"\n")

    def _exchange(self, line: bytes) -> Any:
        """Write a line, unless it is empty, and wait for the answer."""
        try:
            answer = self._pipe.exchange(line, self._timeout)
        except BaseException:  # interrupted: a late answer would be taken for that of the next call
            self._pipe.kill()
            raise
        if not answer.line:
            gone = DeviceError if self._host.local or answer.late else BoardLostError
            raise gone(self._exit_message(answer))
        found = json.loads(answer.line)
        if "error" in found:
            raise WorkerError(**found["error"])
        return found["value"]

    def _exit_message(self, answer: Answer) -> str:
        """Return one sentence on how the process ended."""
        if answer.late:
            return (
                f"The process of {self.name} must answer within {self._timeout:g} s and did not, so it was ended; "
                "try again, or use another `runtime`"
            )
        code = answer.code
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        hint = "; if memory ran out, a smaller `batch` or `imgsz` helps" if code == -signal.SIGKILL else ""
        return f"The process of {self.name} ended during the run ({how}; it last said: {answer.words}){hint}"
