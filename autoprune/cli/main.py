"""The command line: the only place that prints or sets exit codes."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from click.shell_completion import shell_complete
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from autoprune.cli.arguments import COMPLETION, build_parser, parse
from autoprune.cli.stopping import stoppable
from autoprune.cli.words import in_options
from autoprune.config import Config
from autoprune.config.files import resume_command
from autoprune.errors import AutopruneError, AutopruneWarning, RunError
from autoprune.report import WIDTH, Table
from autoprune.workflows.call import Caller, located, run_workflow

INTERRUPTED = 130


class _Closed(SystemExit):
    """Leaves the process since nobody reads standard output any more."""


class _Console(Console):
    """A console that leaves it to others what happens then."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Terminal:
    """Shows a command's notes, progress and tables on standard output, its warnings on standard error."""

    def __init__(self) -> None:
        self._out = _Console(highlight=False, soft_wrap=True)
        if not self._out.is_terminal:
            self._out = _Console(highlight=False, soft_wrap=True, width=WIDTH)
        self._err = _Console(highlight=False, soft_wrap=True, stderr=True)

    def note(self, text: str) -> None:
        """Print one sentence."""
        with _writing():
            self._out.print(Text(in_options(text)))

    def warn(self, text: str) -> None:
        """Print one sentence to standard error."""
        with suppress(OSError):  # there is nowhere to say it
            self._err.print(Text(in_options(text), style="yellow"))

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[_Bar]:
        """Show a progress bar with the time left; if no user is watching, print its end only."""
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        progress = Progress(*columns, console=self._out)
        with _writing():
            progress.start()
        try:
            bar = _Bar(progress, label, total)
            yield bar
            bar.finish()
        finally:
            with _writing():
                progress.stop()

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table, numbers to the right."""
        with _writing():
            self._out.print(Table(title, header, rows).rich())


class _Bar:
    """One line of a progress display."""

    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=total, detail="")

    def __call__(self, done: int, detail: str = "") -> None:
        """Show how much is done, and a few words next to it."""
        self._progress.update(self._task, completed=done, detail=detail)

    def finish(self) -> None:
        """Show that this was all: some strategies need fewer candidates than they may try."""
        (task,) = self._progress.tasks
        self._progress.update(self._task, total=task.completed)


@contextmanager
def _writing() -> Iterator[None]:
    """Say why standard output cannot be written; if nobody reads it any more, leave without a word as others do."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:  # that is a file
            raise
        with suppress(OSError):  # what is left in buffers must not fail once more when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise _Closed(1) from error
        raise RunError(
            f"Standard output cannot be written: {error.strerror}; what a run has found so far is kept, and --resume "
            "goes on with it"
        ) from error


def _understood(argv: Sequence[str]) -> tuple[str, Config]:
    """Return what ``parse`` does; help and the like reach standard output, or the reason why not is shown."""
    with _writing():
        try:
            return parse(argv)
        finally:
            sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the command line without the program's name; by default the process's.

    Returns:
        0; 1 if ``doctor`` found something broken; or the exit code of the error that was printed: 2 for bad input, 3
        for a budget that cannot be met, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    if asked := os.environ.get(COMPLETION):
        return shell_complete(build_parser(), {}, "autoprune", COMPLETION, asked)
    with stoppable() as stop:
        code = _told(argv)
    return stop.exit_code if code == INTERRUPTED else code


def _told(argv: Sequence[str] | None) -> int:
    """Run one command, and print its error if there is one."""
    terminal = Terminal()
    try:
        words = sys.argv[1:] if argv is None else argv
        command, config = _understood(words)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # third parties'; ours are shown in one line
            warnings.simplefilter("always", AutopruneWarning)
            warnings.showwarning = lambda message, *_, **__: terminal.warn(str(message))
            caller = Caller(shlex.join(["autoprune", *words]), resume_command)
            finished = run_workflow(command, located(config, terminal), terminal, caller)
            return finished.exit_code
    except AutopruneError as error:
        terminal.warn(f"autoprune: {error}")
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        terminal.warn(f"autoprune: {interrupt}" if str(interrupt) else "autoprune: interrupted")
        return INTERRUPTED
