"""Messages of the library in the words of the command line: parameters become options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from autoprune.config import COMMANDS, option
from autoprune.config.reading import hints_of, places_of

ALIASES = {"--strategy": "--agent"}
"""Other names of options."""


def in_options(text: str) -> str:
    """Return a text with every parameter as the option that sets it.

    Example:
        >>> in_options("lower `min_keep`, or give `compensate=False`")
        'lower --min-keep, or give --no-compensate'
    """
    return re.sub(r"`(\w+)(=False)?`", _option, text)


def _option(found: re.Match[str]) -> str:
    word = _words().get(found[1])
    if word is None:
        return found[0]
    return word.replace("--", "--no-", 1) if found[2] else word


@cache
def _words() -> Mapping[str, str]:
    """Return what stands for every parameter on the command line."""
    words = {alias.strip("-"): alias for alias in ALIASES.values()}
    for kind in COMMANDS.values():
        words |= {name: option(name) for name in hints_of(kind)} | dict(places_of(kind))
    return words
