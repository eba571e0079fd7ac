"""What hears how a workflow goes: stages, progress, notes, warnings, tables and figures."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from operator import length_hint
from pathlib import Path
from typing import Any, Protocol, TypeVar

from autoprune.errors import AutopruneWarning

Item = TypeVar("Item")

_HOME = str(Path(__file__).parent)


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, detail: str = "") -> None:
        """Show how much is done, and a few words next to it."""


class Listener(Protocol):
    """Hears how a workflow goes; nothing in the library prints.

    Example:
        >>> class Log(ap.SilentListener):
        ...     def note(self, text: str) -> None:
        ...         print(text)
        >>> run = ap.apply("best.pt", policy="policy.json", listener=Log())
        best at 64 px on cpu: 21 units can be pruned, ...
        The pruned network is ...
    """

    def note(self, text: str) -> None:
        """Hear one sentence."""

    def warn(self, text: str) -> None:
        """Hear one sentence that users should act on or know about."""

    def debug(self, text: str) -> None:
        """Hear one sentence that only matters to users who want to know everything."""

    def stages(self, work: Mapping[str, float]) -> None:
        """Hear which stages the run has, in order, each with a guess of its work; may be heard again, guessed better.

        Args:
            work: about how many images the network is run on in each stage; only ratios matter.
        """

    def stage(self, name: str) -> None:
        """Hear that a stage begins; the one before is over."""

    def progress(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Return a context in which progress is reported; one within another is a part of that one's current unit.

        Args:
            label: what is done.
            total: what progress goes up to; 0 if nobody knows.
        """

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Hear a table of results."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hear figures of a curve.

        Args:
            step: counts evaluations or epochs over the whole run; a resumed run repeats those before it.
            values: by name, e.g. ``search/best``.
        """


def _nothing(done: int, detail: str = "") -> None:
    """Show nothing."""


class SilentListener:
    """Hears everything and does nothing; the base of listeners that want to hear a part.

    Example:
        >>> class Warnings(ap.SilentListener):
        ...     def warn(self, text: str) -> None:
        ...         print("!", text)
        >>> Warnings().warn("the machine is noisy")
        ! the machine is noisy
        >>> with Warnings().progress("Candidates", 2) as advance:
        ...     advance(1)
    """

    def note(self, text: str) -> None:
        """Do nothing."""

    def warn(self, text: str) -> None:
        """Do nothing."""

    def debug(self, text: str) -> None:
        """Do nothing."""

    def stages(self, work: Mapping[str, float]) -> None:
        """Do nothing."""

    def stage(self, name: str) -> None:
        """Do nothing."""

    def progress(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Return a context with a function that does nothing."""
        return nullcontext(_nothing)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Do nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""


class PythonListener(SilentListener):
    """The default in Python: warns by Python's warnings, and is silent otherwise."""

    def warn(self, text: str) -> None:
        """Issue an ``AutopruneWarning`` of the line that called autoprune."""
        warnings.warn(text, AutopruneWarning, stacklevel=_caller_level())


def _caller_level() -> int:
    """Return the ``stacklevel``, counted by the function that calls this one, of what called autoprune."""
    frames = traceback.walk_stack(sys._getframe(1))
    inside = [level for level, (frame, _) in enumerate(frames, start=1) if frame.f_code.co_filename.startswith(_HOME)]
    return max(inside) + 1


class Relay(SilentListener):
    """Hands everything on to another listener; what that one has no method for is left out.

    Args:
        listener: a listener; one of a user may lack methods that were added later.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def note(self, text: str) -> None:
        """Hand it on."""
        self._heard("note")(text)

    def warn(self, text: str) -> None:
        """Hand it on."""
        self._heard("warn")(text)

    def debug(self, text: str) -> None:
        """Hand it on."""
        self._heard("debug")(text)

    def stages(self, work: Mapping[str, float]) -> None:
        """Hand it on."""
        self._heard("stages")(work)

    def stage(self, name: str) -> None:
        """Hand it on."""
        self._heard("stage")(name)

    def progress(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Hand it on."""
        progress = getattr(self._listener, "progress", super().progress)
        return progress(label, total)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Hand it on."""
        self._heard("table")(title, header, rows)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand it on."""
        self._heard("log")(step, values)

    def _heard(self, method: str) -> Any:
        return getattr(self._listener, method, lambda *_: None)


_CURRENT: ContextVar[Listener] = ContextVar("autoprune_listener", default=SilentListener())  # noqa: B039 (no state)


@contextmanager
def hearing(listener: Listener) -> Iterator[None]:
    """Let a listener hear what `tracked` and `step_bar` report deep inside of the library."""
    token = _CURRENT.set(listener)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def warn(text: str) -> None:
    """Let the listener of the command that is running hear a warning."""
    _CURRENT.get().warn(text)


def step_bar(label: str, total: int) -> AbstractContextManager[Advance]:
    """Return a progress bar of the command that is running, as `Listener.progress`; silent if none is."""
    return _CURRENT.get().progress(label, total)


def tracked(items: Iterable[Item], label: str) -> Iterator[Item]:
    """Yield items while the command that is running shows a bar of them.

    Example:
        >>> sum(tracked([1, 2, 3], "Adding"))
        6
    """
    with step_bar(label, length_hint(items)) as advance:
        for done, item in enumerate(items, start=1):
            yield item
            advance(done)
