"""Plain values: what a file from others may hold next to tensors, and how it is known from what only looks like it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

MOST_VALUES = 100_000
"""More values than any settings have: nested references to a few lists can expand to billions."""

_SHOWN = 60


def is_plain(value: Any) -> bool:
    """Return whether a value consists of texts, numbers, paths, None, and lists and dictionaries of them."""
    waiting, seen = [value], 0
    while waiting:
        one = waiting.pop()
        seen += 1
        if seen > MOST_VALUES:
            return False
        if isinstance(one, Mapping):
            if not all(key is None or type(key) in (str, int, float, bool) for key in one):
                return False
            waiting.extend(one.values())
        elif isinstance(one, (list, tuple)):
            waiting.extend(one)
        elif not (one is None or isinstance(one, (str, int, float, PurePath))) or _is_huge(one):
            return False
    return True


def _is_huge(value: Any) -> bool:
    """Return whether an integer does not fit into 64 bits."""
    return isinstance(value, int) and abs(value) >= 2**63


def shown(value: Any) -> str:
    """Return a value from a file for a message: short, on one line; its class if it is not plain."""
    if not is_plain(value):
        return f"a {type(value).__name__}"
    if isinstance(value, (list, tuple, Mapping)) and len(value) > _SHOWN:
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
