"""What a command tells the person in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, detail: str = "") -> None:
        """Show how much is done, and a few words beside it."""


class Screen(Protocol):
    """Where a command's words go; the command line's own is the only one that prints."""

    def note(self, text: str) -> None:
        """Tell one sentence."""

    def warn(self, text: str) -> None:
        """Tell one sentence that a person should act on or know about."""

    def progress(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Show a progress bar with the time left."""

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table."""
