"""One SSH connection with an agent at its end, and the processes there."""

from __future__ import annotations

import hashlib
import json
import queue
import re
import shlex
import subprocess
import tempfile
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import suppress
from inspect import getsource
from typing import IO, Any

from autoprune.errors import DeviceError
from autoprune.listener import warn
from autoprune.runtimes.hosts import agent, children
from autoprune.runtimes.hosts._base import Answer, BoardLostError, Pipe

PROGRAM = "ssh"
"""The OpenSSH client."""

OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=4")
"""No question is ever asked, and a dead connection is noticed within 20 seconds."""

ENVIRONMENT = "~/.autoprune"
"""A virtual environment on the board whose Python is taken if it is there."""

_BEAT = 20.0
SLACK = 30.0
"""Seconds that an answer may take beyond what was asked for."""

_START = (
    'p="$HOME/.autoprune/bin/python3"; [ -x "$p" ] || p=python3; '
    'command -v "$p" >/dev/null || { echo autoprune: no python3 >&2; exit 1; }; '
    'exec "$p" -u -c "import sys; v = sys.version_info; '
    "v >= (3, 8) or sys.exit('autoprune: python %d.%d' % v[:2]); "
    'exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"'
)
_REASONS = {
    r"REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key has changed: if you know why, remove the old one with "
    "`ssh-keygen -R` and connect once by hand, else somebody may be listening",
    r"Host key verification failed|host key is known": "its host key is not known: connect once by hand with "
    "`ssh {url}` and compare the fingerprint",
    r"Permission denied|Too many authentication failures": "it accepts none of your keys: `ssh {url}` must work "
    "without a password, e.g. after `ssh-copy-id {url}` or with a running ssh-agent",
    r"autoprune: no python3": "it has no python3: install Python 3.8 or newer there",
    r"autoprune: python (\S+)": "its python3 is too old, {0}, and 3.8 is needed: make an environment of a newer one "
    "with `-m venv " + ENVIRONMENT + "` there",
    r"No space left on device": "its disk is full: free some space in its temporary folder",
}
"""What the client or the board says, and what is told; trying again does not help."""


class UnreachableError(DeviceError):
    """The board does not answer; it may do so later."""


class AgentError(Exception):
    """An error that the agent on the board reports."""


class Connection:
    """One SSH connection with an agent at its end.

    Args:
        url: the board.

    Attributes:
        description: what the board says of itself.
        folder: its folder of files.
        sent: bytes of what was put there, by content, in the order of last use.

    Raises:
        DeviceError: the board cannot be reached, or refuses.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        command = [PROGRAM, "-T", *(part for one in OPTIONS for part in ("-o", one)), "--", url]
        try:
            self._process = subprocess.Popen(
                [*command, f"exec sh -c {shlex.quote(_START)}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is for this process, which ends the connection when it is done
            )
        except OSError as error:
            self._errors.close()
            raise DeviceError(
                f"Measuring on {url} needs the OpenSSH client, and `{PROGRAM}` does not start: {error.strerror}"
            ) from error
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._writing, self._asking, self._over = threading.Lock(), threading.Lock(), threading.Event()
        self._later: deque[tuple[str, dict[str, Any]]] = deque()
        self.sent: OrderedDict[str, int] = OrderedDict()
        self.close = weakref.finalize(self, _hang_up, self._process, self._over, self._errors)
        for work in (
            lambda stream=self._process.stdout, lines=self._lines, over=self._over: _listen(stream, lines, over),
            lambda stream=self._process.stdin, lock=self._writing, over=self._over: _beat(stream, lock, over),
        ):
            threading.Thread(target=work, daemon=True).start()
        source = agent_program().encode()
        self._write(b"%d\n" % len(source) + source)
        self.description = self._greeting()
        self.folder = str(self.description["folder"])

    @property
    def alive(self) -> bool:
        """Whether nobody has noticed its end yet."""
        return not self._over.is_set()

    def request(self, call: str, arguments: Mapping[str, Any], *, seconds: float, content: bytes = b"") -> Any:
        """Call a method of the agent.

        Args:
            call: its name.
            arguments: plain JSON.
            seconds: how long the answer may take.
            content: follows the call.

        Raises:
            BoardLostError: the connection is lost.
            AgentError: the method raised an error.
        """
        with self._asking:
            while self._later:
                self._exchange(*self._later.popleft(), SLACK)
            return self._exchange(call, arguments, seconds, content)

    def put(self, name: str, content: bytes) -> None:
        """Write a file into the agent's folder.

        Raises:
            DeviceError: the disk is full there.
        """
        digest = hashlib.sha256(content).hexdigest()
        try:
            self.request(
                "put", {"name": name, "size": len(content), "digest": digest}, seconds=10 * SLACK, content=content
            )
        except AgentError as error:
            raise DeviceError(f"A file of {len(content) / 1e6:.1f} MB must fit on {self._url}: {error}") from error

    def soon(self, call: str, **arguments: Any) -> None:
        """Call a method whose answer nobody needs; from a garbage collection within a request, before the next one."""
        if not self._asking.acquire(blocking=False):
            self._later.append((call, arguments))
            return
        try:
            if self.alive:
                with suppress(BoardLostError, AgentError):
                    self._exchange(call, arguments, SLACK)
        finally:
            self._asking.release()

    def _exchange(self, call: str, arguments: Mapping[str, Any], seconds: float, content: bytes = b"") -> Any:
        if not self.alive:  # nothing would say so a second time
            raise BoardLostError(f"The connection to {self._url} was lost")
        self._write(json.dumps({"call": call, "arguments": arguments}).encode() + b"\n" + content)
        while True:
            try:
                line = self._lines.get(timeout=seconds)
            except queue.Empty:
                line = b""
            except BaseException:  # interrupted: a late answer would be taken for that of the next call
                self.close()
                raise
            if not line:
                raise BoardLostError(f"The connection to {self._url} was lost{self._last_words()}")
            answer = json.loads(line)
            if "waiting" in answer:
                warn(
                    f"Another search measures on {self._url} ({answer['waiting']}); waiting for up to "
                    f"{seconds / 60:.0f} minutes …"
                )
            elif "error" in answer:
                raise AgentError(answer["error"]["text"])
            else:
                return answer["value"]

    def _write(self, message: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError), self._writing:  # it has ended: the missing answer says so
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def _greeting(self) -> dict[str, Any]:
        """Wait for the agent, past whatever login scripts print."""
        while line := self._line(60.0):
            if line.startswith(agent.GREETING):
                found: dict[str, Any] = json.loads(line[len(agent.GREETING) :])
                return found
        raise refused(self._url, self.close() or "")

    def _line(self, seconds: float) -> bytes:
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return b""

    def _last_words(self) -> str:
        said = self.close()
        return f" ({said.splitlines()[-1].strip()})" if said else ""


class SshPipe(Pipe):
    """A process on a board.

    Args:
        name: the board.
        connection: what it was started through; it ends with it.
        number: the agent's number of it.
        pid: its id there.
    """

    def __init__(self, name: str, connection: Connection, number: int, pid: int) -> None:
        self._name, self._connection, self._number, self.pid = name, connection, number, pid
        self._finalizer = weakref.finalize(self, connection.soon, "end", number=number)
        self._finalizer.atexit = False  # the connection's own end is enough

    def exchange(self, line: bytes, timeout: float) -> Answer:
        """Write and wait; see ``Pipe``."""
        arguments = {"number": self._number, "line": line.decode(), "timeout": timeout}
        try:
            return Answer(**self._connection.request("ask", arguments, seconds=timeout + SLACK))
        except AgentError as error:
            raise BoardLostError(f"A process on {self._name} is gone ({error})") from error

    def kill(self) -> None:
        """Kill it, with all that runs on the board for this search: an answer may be under way."""
        self._connection.close()

    def close(self) -> None:
        """End it."""
        self._finalizer()


def agent_program() -> str:
    """Return a Python program that runs the agent, with the one module of autoprune that it imports."""
    name = children.__name__
    return (
        f"import sys, types\nchildren = sys.modules[{name!r}] = types.ModuleType({name!r})\n"
        f"exec({getsource(children)!r}, vars(children))\nexec({getsource(agent)!r})\n"
    )


def refused(url: str, said: str) -> DeviceError:
    """Return why a board cannot be reached, as one sentence with a way out.

    Args:
        url: the board.
        said: what the client and the board said.
    """
    for pattern, reason in _REASONS.items():
        found = re.search(pattern, said)
        if found is not None:
            return DeviceError(f"Latency is measured on {url}, but {reason.format(*found.groups(), url=url)}")
    last = said.splitlines()[-1].strip() if said else "it does not answer"
    return UnreachableError(f"The board {url} must be reachable over SSH and is not ({last}); try `ssh {url}`")


def _listen(stream: IO[bytes] | None, lines: queue.SimpleQueue[bytes], over: threading.Event) -> None:
    """Collect answers until the connection ends; the last line is empty."""
    assert stream is not None
    with suppress(OSError, ValueError), stream:
        for line in stream:
            lines.put(line)
    over.set()
    lines.put(b"")


def _beat(stream: IO[bytes] | None, lock: threading.Lock, over: threading.Event) -> None:
    """Send signs of life until the connection ends."""
    assert stream is not None
    while not over.wait(_BEAT):
        with suppress(OSError, ValueError), lock:
            stream.write(b"\n")
            stream.flush()


def _hang_up(process: subprocess.Popen[bytes], over: threading.Event, errors: IO[bytes]) -> str:
    """End a connection, and return what the client said: at the end of its input the agent ends, and so does it."""
    over.set()
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip()
    errors.close()
    return said
