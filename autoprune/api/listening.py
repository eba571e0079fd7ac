"""Listeners of the Python API."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from autoprune.errors import AutopruneWarning
from autoprune.listener import Listener, Relay, SilentListener
from autoprune.report import Table

_HOME = str(Path(__file__).parent.parent)


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
