"""Reading YAML that a user wrote, without its traps: a small file with one mapping, no anchors, no tags.

Anchors make a file of a few lines expand without end, and tags name classes. Neither a configuration nor the
description of a data set has a use for them.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any, TypeAlias

import yaml

_LARGEST = 2**20
_DEEPEST = 20
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = re.compile(r"[^\x09\x0A\x0D\x20-\x7E\x85\xA0-\uD7FF\uE000-\uFFFD\U00010000-\U0010ffff]+")

Plain: TypeAlias = "str | list[Plain] | dict[str, Plain] | None"
"""What a file says, every value as the text that was written; None if it says null."""


_ESCAPE = re.compile(r"\\(?:u(d[89ab]\w\w)\\u(d[c-f]\w\w)|.)")


def yaml_line(value: object) -> str:
    r"""Return a plain value as YAML in one line, in ASCII: as JSON, but for what JSON writes as two surrogates.

    Example:
        >>> yaml_line(["a", 1, None, "🔴"])
        '["a", 1, null, "\\U0001f534"]'
    """
    return _ESCAPE.sub(_one_escape, json.dumps(value))


def _one_escape(found: re.Match[str]) -> str:
    if found[1] is None:
        return found[0]
    character = json.loads(f'"{found[0]}"')
    return f"\\U{ord(character):08x}"


def read_texts(file: Path) -> dict[str, Plain]:
    """Return a mapping with its values as texts: ``seed: 0x10`` is ``"0x10"``, and nothing is evaluated.

    Raises:
        ValueError: the file cannot be read as such a mapping; the message is the end of a sentence that begins with
            the file's name.
    """
    try:
        text = _content(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not text in UTF-8 (byte {error.start})") from error
    _check(text)
    node = yaml.compose(text, Loader=_LOADER)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("must map names to values, one 'name: value' in each line")
    return _mapping(node)


def read_values(file: Path) -> dict[str, Any]:
    """Return a mapping with its values as YAML reads them, of a file in any encoding that has ASCII in it.

    Raises:
        ValueError: as ``read_texts``.
    """
    text = _UNPRINTABLE.sub("", _content(file).decode("utf-8-sig", errors="ignore"))
    _check(text)
    try:
        found = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # a date of month 13, 5000 digits
        raise ValueError(f"is not readable YAML: {_first_line(error)}") from error
    if not isinstance(found, dict):
        raise ValueError("must map names to values, one 'name: value' in each line")
    return found


def _content(file: Path) -> bytes:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is no file, but a folder, a device or a pipe")
        if (size := status.st_size) > _LARGEST:
            raise ValueError(f"has {size} bytes, and at most {_LARGEST} are read")
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def _check(text: str) -> None:
    """Raise ValueError for what is no YAML, or has in it what is not read."""
    depth = documents = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            line = event.start_mark.line + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                raise ValueError(f"has a second document in line {line}, and one is read: leave the others out")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"refers to an anchor in line {line}, and anchors are not read: write it out")
            if getattr(event, "tag", None):
                raise ValueError(f"has the tag {event.tag} in line {line}, and tags are not read: leave it out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ValueError(f"is nested too deeply in line {line}: at most {_DEEPEST} levels are read")
    except yaml.YAMLError as error:
        raise ValueError(f"is not readable YAML: {_first_line(error)}") from error


def _mapping(node: yaml.MappingNode) -> dict[str, Plain]:
    found: dict[str, Plain] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"has something in line {line} that is no name")
        if key.value in found:
            raise ValueError(f"has the entry {key.value} twice, again in line {line}; keep the one you mean")
        found[key.value] = _plain(value)
    return found


def _plain(node: yaml.Node) -> Plain:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    return None if node.tag == "tag:yaml.org,2002:null" else str(node.value)


def _first_line(error: Exception) -> str:
    """Return what a YAML error says, with the place if it knows one."""
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    text = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{text}{where}"
