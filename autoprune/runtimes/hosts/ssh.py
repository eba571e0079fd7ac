"""A board over the system's OpenSSH client: keys, configuration, known hosts and jump hosts are the user's own."""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
import queue
import re
import shlex
import subprocess
import tempfile
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from autoprune.errors import DeviceError
from autoprune.listener import warn
from autoprune.runtimes.hosts import agent
from autoprune.runtimes.hosts._base import Answer, BoardLostError, BoardWatch, Host, Output, Pipe, command_output

PROGRAM = "ssh"
"""The OpenSSH client."""

OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=4")
"""No question is ever asked, and a dead connection is noticed within 20 seconds."""

ENVIRONMENT = "~/.autoprune"
"""A virtual environment on the board whose Python is taken if it is there."""

PATIENCE = 300.0
"""Seconds in which a lost board may come back: a reboot takes one or two minutes."""

LOCK_PATIENCE = 600.0
"""Seconds to wait for another search on the same board."""

_LONGEST_PAUSE = 30.0
_BEAT = 20.0
_SLACK = 30.0
_KEPT_BYTES = 200 * 2**20
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


class SshHost(Host):
    """A board that is reached over SSH.

    One connection serves all that is measured there; it is opened when it is needed, and again if it was lost.

    Args:
        url: ``ssh://[user@]host[:port]``; the host may be an alias of the client's configuration.
    """

    local = False

    def __init__(self, url: str) -> None:
        self.name = url
        self._connection: _Connection | None = None
        self._boot = ""
        self._throttled = False

    @property
    def description(self) -> Mapping[str, Any]:
        """What the board says of itself, see `autoprune.runtimes.hosts.agent.Agent.describe`."""
        return self._connected().description

    def start(self, arguments: Sequence[str | Path]) -> Pipe:
        """Lock the board and start its Python; see ``Host``.

        Raises:
            DeviceError: the board cannot be reached, or another search does not leave it.
        """
        self._lock()
        sent = [self.put(one) if isinstance(one, Path) else one for one in arguments]
        number, pid = self._ask("start", argv=sent)
        return _SshPipe(self.name, self._connected(), number, pid)

    def put(self, path: Path) -> str:
        """Send a file or a folder unless it is there; those sent longest ago are removed beyond 200 MB."""
        connection = self._connected()
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        contents = {str(one.relative_to(path.parent)): one.read_bytes() for one in files}
        digest = hashlib.sha256()
        for name, content in contents.items():
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        key = digest.hexdigest()[:24]
        if key not in connection.sent:
            for name, content in contents.items():
                connection.put(f"{key}/{name}", content)
        connection.sent[key] = sum(map(len, contents.values()))
        connection.sent.move_to_end(key)
        while len(connection.sent) > 1 and sum(connection.sent.values()) > _KEPT_BYTES:
            oldest, _ = connection.sent.popitem(last=False)
            self._ask("remove", name=oldest)
        return f"{connection.folder}/{key}/{path.name}"

    def run(self, argv: Sequence[str], timeout: float) -> Output:
        """Lock the board and run a command in its folder of files; see ``Host``."""
        self._lock()

        def act() -> Mapping[str, Any]:
            try:
                found: Mapping[str, Any] = self._ask("run", seconds=timeout, argv=list(argv), timeout=timeout)
            except _AgentError as error:
                raise OSError(str(error)) from error
            return found

        return command_output(argv, act, self.name)

    def fingerprint(self, packages: Sequence[str] = ()) -> Mapping[str, Any]:
        """Return board, processor, cores, governor, kernel and machine, and the packages' versions; see ``Host``."""
        kept = ("board", "cpu", "cores", "governor", "kernel", "machine")
        versions: dict[str, str] = self._ask("versions", packages=list(packages))
        return {**{key: self.description[key] for key in kept}, **versions}

    def state(self) -> Mapping[str, Any]:
        """Return how busy, fast and hot the board is, see `autoprune.runtimes.hosts.agent.Agent.state`."""
        found: Mapping[str, Any] = self._ask("state")
        return found

    def holder(self) -> str:
        """Return who measures on the board at the moment; empty if nobody does."""
        return str(self._ask("holder"))

    def round_trip(self) -> float:
        """Return the milliseconds from a request to its answer."""
        self.state()
        start = time.perf_counter()
        self.state()
        return (time.perf_counter() - start) * 1e3

    def watch(self) -> BoardWatch:
        """Return what watches the board from now on."""
        return BoardWatch(self.state, self._tell_of_throttling)

    def _tell_of_throttling(self, remark: str) -> None:
        if not self._throttled:
            warn(f"On {self.name} {remark}: figures in milliseconds change with its heat until then.")
        self._throttled = True

    def install_hint(self, *packages: str) -> str:
        """Return the command, run here, that installs packages there."""
        names = shlex.join(packages)
        if self.description["environment"]:
            there = f"{shlex.quote(self.description['executable'])} -m pip install {names}"
        else:
            there = f"python3 -m venv {ENVIRONMENT} && {ENVIRONMENT}/bin/pip install {names}"
        return f"ssh {self.name} {shlex.quote(there)}"

    def close(self) -> None:
        """End the connection, and with it all that runs there."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _lock(self) -> None:
        """Keep other searches off the board.

        Raises:
            DeviceError: another search does not leave it.
        """
        owner = f"{getpass.getuser()}@{platform.node()} since {time.strftime('%H:%M')}"
        if not self._ask("lock", seconds=LOCK_PATIENCE, owner=owner):
            raise DeviceError(
                f"One search at a time measures on {self.name}, and another one has it ({self.holder()}); start this "
                "one again when that is done"
            )

    def _ask(self, call: str, /, *, seconds: float = 0.0, **arguments: Any) -> Any:
        if call == "lock":
            arguments["seconds"] = seconds
        return self._connected().request(call, arguments, seconds=seconds + _SLACK)

    def _connected(self) -> _Connection:
        """Return the connection; one that was lost is opened anew, for as long as a reboot may take."""
        if self._connection is not None and self._connection.alive:
            return self._connection
        if self._connection is None:
            self._connection = _Connection(self.name)
        else:
            self._connection.close()
            self._connection = self._again()
            if self._connection.description["boot"] != self._boot:
                warn(f"The board {self.name} has started anew; what was being measured is measured again.")
        self._boot = self._connection.description["boot"]
        return self._connection

    def _again(self) -> _Connection:
        """Connect again, with longer and longer pauses.

        Raises:
            DeviceError: the board does not come back, or refuses the connection now.
        """
        warn(f"The connection to {self.name} was lost; trying again for up to {PATIENCE / 60:.0f} minutes …")
        end, pause = time.monotonic() + PATIENCE, 1.0
        while True:
            try:
                return _Connection(self.name)
            except _UnreachableError:
                if time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


class _UnreachableError(DeviceError):
    """The board does not answer; it may do so later."""


class _AgentError(Exception):
    """An error that the agent on the board reports."""


class _Connection:
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
        self._ended: deque[int] = deque()
        self.sent: OrderedDict[str, int] = OrderedDict()
        self.close = weakref.finalize(self, _hang_up, self._process, self._over, self._errors)
        for work in (
            lambda stream=self._process.stdout, lines=self._lines, over=self._over: _listen(stream, lines, over),
            lambda stream=self._process.stdin, lock=self._writing, over=self._over: _beat(stream, lock, over),
        ):
            threading.Thread(target=work, daemon=True).start()
        source = Path(agent.__file__).read_bytes()
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
            _AgentError: the method raised an error.
        """
        with self._asking:
            while self._ended:
                self._exchange("end", {"number": self._ended.popleft()}, _SLACK)
            return self._exchange(call, arguments, seconds, content)

    def put(self, name: str, content: bytes) -> None:
        """Write a file into the agent's folder.

        Raises:
            DeviceError: the disk is full there.
        """
        digest = hashlib.sha256(content).hexdigest()
        try:
            self.request(
                "put", {"name": name, "size": len(content), "digest": digest}, seconds=10 * _SLACK, content=content
            )
        except _AgentError as error:
            raise DeviceError(f"A file of {len(content) / 1e6:.1f} MB must fit on {self._url}: {error}") from error

    def end(self, number: int) -> None:
        """End a process there; from a garbage collection within a request, before the next one."""
        if not self._asking.acquire(blocking=False):
            self._ended.append(number)
            return
        try:
            if self.alive:
                with suppress(BoardLostError, _AgentError):
                    self._exchange("end", {"number": number}, _SLACK)
        finally:
            self._asking.release()

    def _exchange(self, call: str, arguments: Mapping[str, Any], seconds: float, content: bytes = b"") -> Any:
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
                raise _AgentError(answer["error"]["text"])
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


class _SshPipe(Pipe):
    """A process on a board.

    Args:
        name: the board.
        connection: what it was started through; it ends with it.
        number: the agent's number of it.
        pid: its id there.
    """

    def __init__(self, name: str, connection: _Connection, number: int, pid: int) -> None:
        self._name, self._connection, self._number, self.pid = name, connection, number, pid
        self._finalizer = weakref.finalize(self, connection.end, number)
        self._finalizer.atexit = False  # the connection's own end is enough

    def exchange(self, line: bytes, timeout: float) -> Answer:
        """Write and wait; see ``Pipe``."""
        arguments = {"number": self._number, "line": line.decode(), "timeout": timeout}
        try:
            return Answer(**self._connection.request("ask", arguments, seconds=timeout + _SLACK))
        except _AgentError as error:
            raise BoardLostError(f"A process on {self._name} is gone ({error})") from error

    def kill(self) -> None:
        """Kill it, with all that runs on the board for this search: an answer may be under way."""
        self._connection.close()

    def close(self) -> None:
        """End it."""
        self._finalizer()


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
    return _UnreachableError(f"The board {url} must be reachable over SSH and is not ({last}); try `ssh {url}`")


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
