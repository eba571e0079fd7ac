"""Listeners of the Python API."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.listener import Listener, Relay
from autoprune.report import Table


class Recording(Relay):
    """Hands everything on to another listener, and keeps tables and notes.

    Attributes:
        tables: those heard so far.
        notes: those heard so far.
    """

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self.tables: list[Table] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep it and hand it on."""
        self.notes.append(text)
        super().note(text)

    def warn(self, text: str) -> None:
        """Keep it and hand it on."""
        self.notes.append(text)
        super().warn(text)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Keep it and hand it on."""
        self.tables.append(Table(title, header, rows))
        super().table(title, header, rows)
