"""A board over the system's OpenSSH client: keys, configuration, known hosts and jump hosts are the user's own."""

from __future__ import annotations

import getpass
import hashlib
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.benchmark_command import FILES
from autoprune.errors import DeviceError
from autoprune.listener import warn
from autoprune.runtimes.hosts._base import BoardWatch, Host, Output, Pipe, command_output
from autoprune.runtimes.hosts.connection import ENVIRONMENT, SLACK, AgentError, Connection, SshPipe, UnreachableError

PATIENCE = 300.0
"""Seconds in which a lost board may come back: a reboot takes one or two minutes."""

LOCK_PATIENCE = 600.0
"""Seconds to wait for another search on the same board."""

_LONGEST_PAUSE = 30.0
_KEPT_BYTES = 200 * 2**20
_KEPT_FILES = len(FILES)


class SshHost(Host):
    """A board that is reached over SSH.

    One connection serves all that is measured there; it is opened when it is needed, and again if it was lost.

    Args:
        url: ``ssh://[user@]host[:port]``; the host may be an alias of the client's configuration.
    """

    local = False

    def __init__(self, url: str) -> None:
        self.name = url
        self._connection: Connection | None = None
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
        return SshPipe(self.name, self._connected(), number, pid)

    def put(self, path: Path) -> str:
        """Send a file or a folder unless it is there; those sent longest ago are removed beyond 200 MB.

        As many stay as one benchmark command can name.
        """
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
        while len(connection.sent) > _KEPT_FILES and sum(connection.sent.values()) > _KEPT_BYTES:
            oldest, _ = connection.sent.popitem(last=False)
            self._ask("remove", name=oldest)
        return f"{connection.folder}/{key}/{path.name}"

    def run(self, argv: Sequence[str], timeout: float) -> Output:
        """Lock the board and run a command there; see ``Host``.

        Raises:
            DeviceError: it does not start, the board cannot be reached, or another search does not leave it.
            BoardLostError: the connection was lost, which ends the command there.
        """
        self._lock()

        def act() -> Mapping[str, Any]:
            try:
                arguments = {"argv": list(argv), "timeout": timeout}
                found: Mapping[str, Any] = self._connected().request("run", arguments, seconds=timeout + SLACK)
            except AgentError as error:
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

    def leave(self) -> None:
        """Release the lock unless a process of this search runs there; see ``Host``."""
        if self._connection is not None:
            self._connection.soon("unlock")

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
        try:
            return self._connected().request(call, arguments, seconds=seconds + SLACK)
        except AgentError as error:
            raise DeviceError(f"The board {self.name} must answer requests, and fails at {call!r}: {error}") from error

    def _connected(self) -> Connection:
        """Return the connection; one that was lost is opened anew, for as long as a reboot may take."""
        if self._connection is not None and self._connection.alive:
            return self._connection
        if self._connection is None:
            self._connection = Connection(self.name)
        else:
            self._connection.close()
            self._connection = self._again()
            if self._connection.description["boot"] != self._boot:
                warn(f"The board {self.name} has started anew; what was being measured is measured again.")
        self._boot = self._connection.description["boot"]
        return self._connection

    def _again(self) -> Connection:
        """Connect again, with longer and longer pauses.

        Raises:
            DeviceError: the board does not come back, or refuses the connection now.
        """
        warn(f"The connection to {self.name} was lost; trying again for up to {PATIENCE / 60:.0f} minutes …")
        end, pause = time.monotonic() + PATIENCE, 1.0
        while True:
            try:
                return Connection(self.name)
            except UnreachableError:
                if time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
