"""What hears how a workflow goes: notes, warnings, progress and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


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

    def progress(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Return a context in which progress is reported, from 1 to ``total``."""

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Hear a table of results."""


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

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        """Yield a function that does nothing."""
        yield lambda done, detail="": None

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Do nothing."""
