"""A board to measure on: a real sshd on the loopback address, with keys and a Python of its own."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from autoprune.runtimes.hosts import board_at

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
PACKAGES = ("numpy", "onnxruntime", "flatbuffers", "packaging", "google")
"""What the board's Python has of the packages of this one."""


@dataclass(frozen=True)
class Board:
    """A board.

    Attributes:
        url: its address.
        home: the home folder there.
        temporary: the temporary folder there.
        client: the folder with the `ssh` that knows it, for the front of PATH.
        server: the process of its sshd.
        configuration: the client's.
    """

    url: str
    home: Path
    temporary: Path
    client: Path
    server: subprocess.Popen[bytes]
    configuration: Path

    def processes(self) -> list[psutil.Process]:
        """Return what runs there: the agent and what it started."""
        agents = [
            one for one in psutil.process_iter(["cmdline"]) if str(self.home) in " ".join(one.info["cmdline"] or [])
        ]
        return [one for one in agents if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def files(self) -> list[Path]:
        """Return the files that the search has left there, but for the lock."""
        # os.walk, unlike rglob, passes over folders that the board removes meanwhile.
        found = (Path(folder, name) for folder, _, names in os.walk(self.temporary) for name in names)
        return [path for path in found if path.name != "autoprune.lock"]

    def cut(self) -> None:
        """Cut all connections, as a network does."""
        for child in psutil.Process(self.server.pid).children(recursive=False):
            child.kill()

    def wait_until_left(self, seconds: float = 15.0) -> None:
        """Wait until nothing of the search runs or lies there."""
        end = time.monotonic() + seconds
        while self.processes() or self.files():
            assert time.monotonic() < end, (self.processes(), self.files())
            time.sleep(0.05)


@contextmanager
def running_board(folder: Path, packages: Sequence[str] = PACKAGES) -> Iterator[Board]:
    """Start a board whose files are in a folder; its Python has numpy and onnxruntime, or the packages named, only."""
    assert SSHD is not None
    port = _free_port()
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    home, temporary = folder / "home", folder / "tmp"
    home.mkdir()
    temporary.mkdir()
    _make_python(home / ".autoprune", packages)
    public = (folder / "host.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {public}")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin yes\nSetEnv HOME={home} TMPDIR={temporary}\n"
    )
    client = folder / "bin"
    client.mkdir()
    configuration = folder / "ssh_config"
    configuration.write_text(
        f"UserKnownHostsFile {folder}/known\nGlobalKnownHostsFile /dev/null\nIdentityFile {folder}/user\n"
        "IdentitiesOnly yes\nIdentityAgent none\n"
    )
    program = shlex.quote(str(shutil.which("ssh")))
    (client / "ssh").write_text(f'#!/bin/sh\nexec {program} -F {shlex.quote(str(configuration))} "$@"\n')
    (client / "ssh").chmod(0o755)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    log = (folder / "sshd.log").open("wb")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log, start_new_session=True)
    try:
        _wait_for(port)
        url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
        yield Board(url, home, temporary, client, server, configuration)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        log.close()


def _make_python(folder: Path, packages: Sequence[str]) -> None:
    """Make a virtual environment that sees only some of the packages here, without any network."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (there,) = folder.glob("lib/python*/site-packages")
    import numpy

    here = Path(numpy.__file__).parents[1]
    for package in packages:
        for path in [*here.glob(package), *here.glob(f"{package}.libs"), *here.glob(f"{package}-*.dist-info")]:
            (there / path.name).symlink_to(path)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return


@dataclass(frozen=True)
class FakeBoard:
    """A board without a network: an `ssh` that runs the command on this machine.

    Attributes:
        url: its address.
        temporary: the temporary folder there.
        program: the `ssh`, for the test to change.
    """

    url: str
    temporary: Path
    program: Path


@contextmanager
def fake_board(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeBoard]:
    """Make a board in a folder, with its `ssh` at the front of PATH."""
    made = _make_fake_board(folder)
    patch.setenv("PATH", str(made.program.parent), prepend=os.pathsep)
    try:
        yield made
    finally:
        board_at(made.url).close()


def _make_fake_board(folder: Path) -> FakeBoard:
    home, temporary, client = (folder / name for name in ("home", "tmp", "bin"))
    for made in (home / ".autoprune" / "bin", temporary, client):
        made.mkdir(parents=True)
    python = home / ".autoprune" / "bin" / "python3"  # a link would not know this one's packages
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    program = client / "ssh"
    answer(program, f'for last; do :; done; HOME="{home}" TMPDIR="{temporary}" exec sh -c "$last"')
    return FakeBoard(f"ssh://me@{folder.name}", temporary, program)


def answer(program: Path, script: str) -> None:
    """Let a program be a shell script."""
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
