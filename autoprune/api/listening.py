"""Listeners of the Python API."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from autoprune.errors import AutopruneWarning
from autoprune.listener import Listener, Relay, SilentListener
from autoprune.report import Table


class PythonListener(SilentListener):
    """The default in Python: warns by Python's warnings, and is silent otherwise."""

    def warn(self, text: str) -> None:
        """Issue an ``AutopruneWarning``."""
        warnings.warn(text, AutopruneWarning, stacklevel=2)


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
