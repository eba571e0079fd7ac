"""What a run leaves of its course: ``run.log`` with everything that was said, and its curves in experiment trackers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from autoprune.config import RunConfig, SearchConfig, plain_values
from autoprune.errors import RunError
from autoprune.io.files import saying_why
from autoprune.listener import Advance, Listener, Relay
from autoprune.report import Table
from autoprune.tracking import RunTracking, check_tracker

LOG = "run.log"

_WORTH_A_LINE = 1.0
"""Seconds from which on a finished bar is in the log."""


class RunListener(Relay):
    """Hands everything on, and keeps it in the run folder, with times. A context manager.

    Args:
        listener: hears it too.
        command: what was called.
        words: a text of the library → as the caller shows it.
    """

    def __init__(self, listener: Listener, command: str, words: Callable[[str], str] = str) -> None:
        super().__init__(listener)
        self._command, self._words = command, words
        self._file: TextIO | None = None
        self._stage = ""
        self._waiting: list[str] = []
        self._warned: set[str] = set()
        self._tracking: RunTracking | None = None

    def opened(self, folder: Path, config: RunConfig) -> None:
        """Begin to write into a run folder, below what an earlier process wrote there.

        Raises:
            RunError: the log cannot be written.
        """
        trackers = {name: check_tracker(name).make() for name in (*config.tracker, *_tensorboard(config))}
        with saying_why(folder / LOG):
            self._file = (folder / LOG).open("a", encoding="utf-8", buffering=1)
        self._tracking = RunTracking(trackers, folder, plain_values(config))
        waiting, self._waiting = self._waiting, []
        for text in (self._command, *waiting):
            self._write(text)

    def note(self, text: str) -> None:
        """Keep it and hand it on."""
        self._write(text)
        super().note(text)

    def warn(self, text: str) -> None:
        """Keep it and hand it on, once: what holds for every iteration needs no repeating."""
        if text not in self._warned:
            self._warned.add(text)
            self._write(f"warning: {text}")
            super().warn(text)

    def debug(self, text: str) -> None:
        """Keep it and hand it on."""
        self._write(f"debug: {text}")
        super().debug(text)

    def stage(self, name: str) -> None:
        """Keep it and hand it on."""
        if name == self._stage:
            return
        self._stage = name
        self._write(f"stage: {name}")
        super().stage(name)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        """Hand it on, and keep where it ended."""
        began, where = time.monotonic(), [0, ""]
        with super().progress(label, total) as advance:

            def moved(done: int, detail: str = "") -> None:
                where[:] = [done, detail]
                advance(done, detail)

            yield moved
        seconds = time.monotonic() - began
        if seconds >= _WORTH_A_LINE:
            self._write(f"{label}: {where[0]} of {total or '?'} in {seconds:.0f} s {where[1]}".rstrip())

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Keep it and hand it on."""
        self._write(f"\n{Table(title, header, rows)}")
        super().table(title, header, rows)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand figures on, to the trackers too."""
        if self._tracking is not None:
            self._tracking.log(step, values)
        super().log(step, values)

    def _write(self, text: str) -> None:
        if self._file is None:
            self._waiting.append(text)
        else:
            with saying_why(Path(self._file.name)):
                self._file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {self._words(text)}\n")

    def __enter__(self) -> RunListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with suppress(RunError):  # the error itself is reported
                self._write(f"error: {str(error) or type(error).__name__}")
        if self._tracking is not None:
            self._tracking.close(failed=error is not None)
        if self._file is not None:
            self._file.close()


def _tensorboard(config: RunConfig) -> Sequence[str]:
    """Return TensorBoard's name if the command writes its events without being asked."""
    return ["tensorboard"] if isinstance(config, SearchConfig) and config.tensorboard else []
