"""Listeners of the Python API."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.errors import ConfigError
from autoprune.listener import Listener, PythonListener, Relay, SilentListener
from autoprune.report import Table


def checked_listener(listener: Listener | None) -> Listener:
    """Return the listener that a caller gave, or the default.

    Raises:
        ConfigError: it is a class, or hears nothing.
    """
    heard = [name for name in vars(SilentListener) if not name.startswith("_")]
    if isinstance(listener, type) or (listener is not None and not any(hasattr(listener, one) for one in heard)):
        raise ConfigError(
            f"`listener` must be an object with methods such as `note` and `progress` (see autoprune.SilentListener), "
            f"got {listener!r}"
        )
    return listener or PythonListener()


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
