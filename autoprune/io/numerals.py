"""Numbers as users write them, read strictly: digits 0 to 9 only, no underscores, no spaces within."""

from __future__ import annotations

import re

WHOLE = r"[+-]?[0-9]+"
DECIMAL = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"

_LONGEST = 300
"""Characters of a number at most; Python itself refuses to read whole numbers of more than 4300 digits."""


def whole(text: str) -> int | None:
    """Return the whole number that a text is, or None if it is none."""
    return int(text) if len(text) <= _LONGEST and re.fullmatch(WHOLE, text) else None


def decimal(text: str) -> float | None:
    """Return the number that a text is, infinite if it is too large, or None if it is none."""
    return float(text) if len(text) <= _LONGEST and re.fullmatch(DECIMAL, text) else None
