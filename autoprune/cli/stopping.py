"""Signals that ask a process to stop: each interrupts it as Ctrl-C does, so that everything cleans up after itself."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 30.0
"""Seconds for cleaning up, in which further signals do nothing; after them a signal interrupts again."""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stop:
    """Which signal stopped a block, if any did.

    Attributes:
        signal: the first signal's number; SIGINT's if none came, since an interrupt is Ctrl-C then.
    """

    def __init__(self) -> None:
        self.signal: int = signal.SIGINT
        self.came = False
        self._until = 0.0

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that the signal ended: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signal

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        if time.monotonic() < self._until:
            return
        self._until = time.monotonic() + GRACE
        if not self.came:
            self.came, self.signal = True, number
        raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Let SIGTERM and SIGHUP interrupt the block with ``KeyboardInterrupt``, as SIGINT does.

    A signal that the process was started to ignore stays ignored: SIGHUP under ``nohup``, SIGINT in the background of
    a script. Outside the main thread nothing changes. Once a signal came the handlers stay for the rest of the process,
    so that a second one does not break into what is cleaned up at its exit.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, stop)
    try:
        yield stop
    finally:
        if not stop.came:
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)
