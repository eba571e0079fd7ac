"""The fields of a configuration as options: their types, and how a value is read that a user wrote."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from docstring_parser import parse as parse_docstring

from autoprune.budget import Budget
from autoprune.config import PLACE, Config, ResumableConfig, named, option
from autoprune.errors import ConfigError
from autoprune.image_size import ImageSize
from autoprune.io.numerals import decimal, whole
from autoprune.io.plain_yaml import Plain
from autoprune.policy import HoldsModule, Policy

_EXPECTED = {
    int: "a whole number (digits 0-9)",
    float: "a finite number (digits 0-9)",
    str: "a text",
    Path: "a path that can be looked up",
    bool: "true or false",
    ImageSize: "a whole number of pixels such as 640, or height and width such as 384,640",
}
_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
_SHOWN = 60


def hints_of(kind: type[Config]) -> Mapping[str, Any]:
    """Return the fields of a configuration with their types; those that commands have in common come last."""
    found = _types(kind)
    return {name: found[name] for name in sorted(found, key=lambda name: name in _types(ResumableConfig))}


_types: Callable[[Any], Mapping[str, Any]] = cache(get_type_hints)


def field_of(kind: type[Config], name: str) -> Field[Any]:
    """Return a field by its name."""
    return next(item for item in fields(kind) if item.name == name)


def places_of(kind: type[Config]) -> Mapping[str, str]:
    """Return the fields that are taken by their place, each with the word that stands for it."""
    return {item.name: item.metadata[PLACE] for item in fields(kind) if PLACE in item.metadata}


def spelled(kind: type[Config], name: str) -> str:
    """Return what stands for a field on the command line."""
    return places_of(kind).get(name, option(name))


def base_of(hint: Any) -> Any:
    """Return T for ``T | None``, and any other hint as it is."""
    return next((member for member in get_args(hint) if member is not type(None) and member is not Ellipsis), hint)


def is_list(hint: Any) -> bool:
    """Return whether a field takes several texts."""
    return bool(hint == tuple[str, ...])


def enum_of(hint: Any) -> type[Enum] | None:
    """Return the enum of a hint ``E`` or ``E | None``."""
    base = base_of(hint)
    return base if isinstance(base, type) and issubclass(base, Enum) else None


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the names that a field chooses among; none if it is of another kind."""
    return tuple(member.value for member in enum_of(hint) or ())


def read_value(name: str, hint: Any, value: Plain) -> Any:
    """Read what a user wrote for a field.

    Args:
        name: what stands for the field on the command line.
        hint: the field's type.
        value: a text, or for a field that takes several a list of texts; there one text stands for a list of it, and a
            mapping for texts ``key=value``. None for null.

    Raises:
        ConfigError: it is nothing that the field takes; the message names the option, the rule and the value.
    """
    if value is None and type(None) in get_args(hint):
        return None
    found = _texts(value) if is_list(hint) else _one(hint, value)
    if found is None:
        raise ConfigError(f"{name} must be {_expected(hint)}, got {_shown(value)}")
    return found


def from_python(name: str, hint: Any, value: object) -> Any:
    """Read what a Python caller gave for a field: the field's own type, or a text as the command line takes it.

    Args:
        name: of the field.
        hint: the field's type.
        value: what was given, as ``read_value`` takes it; for a text with commas, a list of texts stands too.

    Raises:
        ConfigError: it is nothing that the field takes; the message names the parameter, the rule and the value.

    Example:
        >>> from_python("budget", tuple[str, ...], "flops=50%")
        ('flops=50%',)
        >>> from_python("train_args", tuple[str, ...], {"mosaic": 0.5})
        ('mosaic=0.5',)
    """
    if is_list(hint) and isinstance(value, Mapping):
        return read_value(named(name), hint, {str(key): str(one) for key, one in value.items()})
    if isinstance(value, Policy) and Policy in get_args(hint):
        return value
    if isinstance(value, Budget):
        value = value.texts
    if Path in (hint, *get_args(hint)):
        value = _file_of(named(name), value)
    if isinstance(value, (list, tuple)):
        texts: list[Plain] = [_as_text(item) for item in value]
        return read_value(named(name), hint, texts if is_list(hint) else ",".join(map(str, texts)))
    return read_value(named(name), hint, None if value is None else _as_text(value))


def _file_of(name: str, value: object) -> object:
    """Return a path as it was given, and that of a network's file for the network."""
    if isinstance(value, HoldsModule):
        value = getattr(value, "path", None)
        if value is None:
            raise ConfigError(f'{name} is read from its file, and this network has none: network.save("small.pt")')
    if not isinstance(value, str | os.PathLike | None):
        raise ConfigError(f"{name} must be a path, got a {type(value).__name__}")
    return value


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


def field_docs(kind: type[Config]) -> dict[str, str]:
    """Return what the docs of a configuration say of its fields, by name."""
    return {
        param.arg_name: " ".join((param.description or "").split())
        for ancestor in reversed(kind.__mro__)
        for param in parse_docstring(ancestor.__doc__ or "").params
    }


def _texts(value: Plain) -> tuple[str, ...] | None:
    if isinstance(value, dict) and all(isinstance(one, str) for one in value.values()):
        value = [f"{key}={one}" for key, one in value.items()]
    texts = value if isinstance(value, list) else [value]
    return tuple(map(str, texts)) if all(_text(text) is not None for text in texts) else None


def _one(hint: Any, value: Plain) -> Any:
    if base_of(hint) is ImageSize and isinstance(value, list):  # as Ultralytics has it: [384, 640]
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        return None
    if (members := enum_of(hint)) is not None:
        return next((member for member in members if member.value == value), None)
    return _READERS[base_of(hint)](value)


def _number(text: str) -> float | None:
    found = decimal(text)
    return found if found is not None and math.isfinite(found) else None


def _text(text: object) -> str | None:
    """Return a text that can be printed and written to files."""
    return text if isinstance(text, str) and "\0" not in text and not re.search("[\ud800-\udfff]", text) else None


def _path(text: str) -> Path | None:
    """Return a path that can be looked up, whether there is a file or not."""
    if not text or _text(text) is None:
        return None
    try:
        os.lstat(text)
    except OSError as error:
        return None if error.errno in (errno.ENAMETOOLONG, errno.EACCES) else Path(text)
    return Path(text)


_READERS: Mapping[Any, Callable[[str], Any]] = {
    int: whole,
    float: _number,
    str: _text,
    Path: _path,
    bool: lambda text: _BOOLEANS.get(text.lower()),
    ImageSize: ImageSize.read,
}


def _expected(hint: Any) -> str:
    if choices := choices_of(hint):
        return "one of " + ", ".join(choices)
    return "a list of texts" if is_list(hint) else _EXPECTED[base_of(hint)]


def _shown(value: Plain) -> str:
    """Return a value as a message can have it: in one line, and not too long."""
    text = value if isinstance(value, str) and value and value.isprintable() else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
