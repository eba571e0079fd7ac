"""The machines that networks are measured on: this one, and boards over SSH."""

from functools import cache

from autoprune.choices import is_board
from autoprune.runtimes.hosts._base import LOCAL, Answer, BoardLostError, BoardWatch, Host, LocalHost, Output, Pipe
from autoprune.runtimes.hosts.ssh import SshHost


def host_of(device: str) -> Host:
    """Return the machine that a device belongs to; a board has one connection, which ends with this process.

    Example:
        >>> host_of("cuda:0").local, host_of("ssh://pi@cam1").local
        (True, False)
    """
    return board_at(device) if is_board(device) else LOCAL


@cache
def board_at(url: str) -> SshHost:
    """Return the board of an address; nothing is connected yet."""
    return SshHost(url)


__all__ = [
    "LOCAL",
    "Answer",
    "BoardLostError",
    "BoardWatch",
    "Host",
    "LocalHost",
    "Output",
    "Pipe",
    "SshHost",
    "board_at",
    "host_of",
]
