"""What a command shows: its notes and tables, and one view of where the run stands."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from autoprune.cli.run_view import Bar, RunView, about, clock_time
from autoprune.cli.words import in_options
from autoprune.errors import RunError
from autoprune.report import WIDTH, Table

PULSE = 30.0
"""Seconds without a line after which one says where the run stands, if there is no terminal."""

_SHOWN = 1.0
"""Seconds from which on a bar within another one is shown, and a finished bar leaves a line."""


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What moves a terminal's cursor, or more: names in files of others may have it."""


class Closed(SystemExit):
    """Leaves the process since nobody reads standard output any more."""


class _Console(Console):
    """A console that leaves it to others what happens then."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Terminal:
    """Shows a command's notes, progress and tables on standard output, its warnings on standard error.

    On a terminal one view of the run stays below the notes: stage, bars, and the time left. Without a terminal there
    is a line for every stage and every finished bar, and one at least every ``PULSE`` seconds.

    Attributes:
        quiet: show warnings and tables only.
        verbose: show debug notes, too.
    """

    def __init__(self) -> None:
        self.quiet = self.verbose = False
        self._out = _Console(highlight=False)
        self._watched = self._out.is_terminal
        if not self._watched:
            self._out = _Console(highlight=False, soft_wrap=True, width=WIDTH)
        self._err = _Console(highlight=False, soft_wrap=not self._watched, stderr=True)
        self._view = RunView()
        self._live: Live | None = None
        self._said = time.monotonic()
        self._over = threading.Event()
        self._pulse: threading.Thread | None = None

    def note(self, text: str) -> None:
        """Print one sentence."""
        if not self.quiet:
            self._print(Text(_shown(text)))

    def debug(self, text: str) -> None:
        """Print one sentence if everything is wanted."""
        if self.verbose:
            self._print(Text(_shown(text), style="dim"))

    def warn(self, text: str) -> None:
        """Print one sentence to standard error."""
        with suppress(OSError):  # there is nowhere to say it
            self._err.print(Text(_shown(text), style="yellow"))

    def stages(self, work: Mapping[str, float]) -> None:
        """Hear what the run consists of."""
        self._view.stages(work)

    def stage(self, name: str) -> None:
        """Show that a stage begins."""
        self._view.stage(name)
        self._begin()
        if not self._watched:
            self.note(self._view.title)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Bar]:
        """Show a bar with the time left."""
        bar = Bar(label, total)
        self._view.bars.append(bar)
        self._begin()
        try:
            yield bar
        finally:
            self._view.bars.remove(bar)
        if bar.seconds >= _SHOWN and (self.verbose or not self._view.bars):
            self.note(_line(bar))

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table, numbers to the right."""
        with writing():
            clean = Table(_plain(title), [*map(_plain, header)], [[*map(_plain, row)] for row in rows])
            self._out.print(clean.rich(), soft_wrap=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Leave figures to trackers; the bars show the latest ones."""

    def close(self) -> None:
        """Take the view of the run away."""
        self._over.set()
        live, self._live = self._live, None
        if live is not None:
            with writing():
                live.stop()

    def _print(self, what: Text) -> None:
        with writing():
            self._out.print(what)
        self._said = time.monotonic()

    def _begin(self) -> None:
        """Show the view of the run from now on."""
        if self.quiet:
            return
        if self._watched:
            if self._live is None:
                self._live = Live(get_renderable=self._rendered, console=self._out, transient=True)
                with writing():
                    self._live.start()
        elif self._pulse is None:
            self._pulse = threading.Thread(target=self._tell, name="autoprune progress", daemon=True)
            self._pulse.start()

    def _tell(self) -> None:
        """Say where the run stands whenever nothing was said for long, until the run is over."""
        while not self._over.wait(1.0):
            if time.monotonic() - self._said >= PULSE:
                with suppress(OSError):  # the command itself finds out
                    self._out.print(Text(self._status()))
                self._said = time.monotonic()

    def _status(self) -> str:
        """Return in one line where the run stands."""
        view = self._view
        parts = [f"{view.title} {clock_time(view.seconds)}".strip()]
        parts += [f"{bar.label} {bar.done}/{bar.total or '?'} {bar.detail}".rstrip() for bar in list(view.bars)]
        parts += [f"{what} {left}" for what, left in self._lefts() if left]
        return ", ".join(part for part in parts if part)

    def _lefts(self) -> Sequence[tuple[str, str]]:
        return ("stage left", about(self._view.stage_left())), ("run left", about(self._view.run_left()))

    def _rendered(self) -> Group:
        """Return the view of the run: a line for its stage, and one for each bar."""
        view, bars = self._view, list(self._view.bars)
        left = about(view.run_left())
        head = Text(f"{view.title} {clock_time(view.seconds)}" + (f", run: {left} left" if left else ""), style="bold")
        grid = Grid.grid(padding=(0, 1))
        for place, bar in enumerate(bars):
            if place and bar.seconds < _SHOWN:
                continue
            moving = ProgressBar(bar.total or None, bar.done, width=30, pulse=not bar.total)
            rest = about(bar.left(bars[place + 1].share() if place + 1 < len(bars) else 0.0))
            grid.add_row(
                "  " * place + bar.label,
                moving,
                f"{bar.done}/{bar.total or '?'}",
                clock_time(bar.seconds),
                f"{rest} left" if rest else "",
                bar.detail,
            )
        return Group(*([head] if view.title else []), grid)


def _line(bar: Bar) -> str:
    """Return what a finished bar leaves; some strategies need fewer candidates than they may try."""
    return f"{bar.label:<12} {bar.done}/{bar.done}  {clock_time(bar.seconds)}  {bar.detail}".rstrip()


@contextmanager
def writing() -> Iterator[None]:
    """Say why standard output cannot be written; if nobody reads it any more, leave without a word as others do."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:  # that is a file
            raise
        with suppress(OSError):  # what is left in buffers must not fail once more when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise Closed(1) from error
        raise RunError(f"Standard output cannot be written: {error.strerror}") from error


def _shown(text: str) -> str:
    """Return a sentence as it is printed."""
    return _plain(in_options(text))


def _plain(text: str) -> str:
    return _CONTROLS.sub("\ufffd", text)
