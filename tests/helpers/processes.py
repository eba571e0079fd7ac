"""Wait for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psutil


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until a condition holds, that many seconds at most."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(pid: int) -> bool:
    """Return whether a process is gone; a zombie is, whoever has to collect it."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True
