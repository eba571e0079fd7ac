"""Darknet's ``.cfg`` files: sections of options, read with line numbers and written back unchanged elsewhere."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoprune.errors import ModelError
from autoprune.image_size import ImageSize
from autoprune.io.files import read_bytes
from autoprune.io.numerals import decimal, whole

_SECTIONS = {
    **dict.fromkeys(("net", "network"), "net"),
    **dict.fromkeys(("convolutional", "conv"), "convolutional"),
    **dict.fromkeys(("maxpool", "max"), "maxpool"),
    **{name: name for name in ("route", "shortcut", "upsample", "yolo")},
}
"""Names as files have them → one name for each kind."""

_NOTES = "# autoprune: "
"""Start of the comment with autoprune's notes; tools that read cfgs skip it."""

_MULTIPLE = 8
"""Widths of scaled networks are multiples of this."""


@dataclass(frozen=True)
class Option:
    """The value of an option, without spaces and comment, and its line number, from 1."""

    text: str
    line: int


@dataclass(frozen=True)
class Section:
    """One section of a cfg: the network's own options or a layer.

    Attributes:
        file: the cfg's name, for messages.
        name: its canonical name (``[conv]`` is ``convolutional``).
        line: number of the line with its name, from 1.
        options: by key; of two with the same key the first, as Darknet reads them.
    """

    file: str
    name: str
    line: int
    options: Mapping[str, Option]

    def error(self, problem: str, key: str | None = None) -> ModelError:
        """Return an error that begins with the file and the line of the option, or else of the section."""
        line = self.options[key].line if key is not None and key in self.options else self.line
        return ModelError(f"{self.file}, line {line}: {problem}")

    def text(self, key: str, default: str) -> str:
        """Return an option's text or its default."""
        return self.options[key].text if key in self.options else default

    def integer(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """Return an option that is a whole number of at least ``least``.

        Raises:
            ModelError: it is not, or it is absent and has no default.
        """
        if key not in self.options:
            if default is None:
                raise self.error(f"[{self.name}] needs {key}=")
            return default
        text = self.options[key].text
        found = whole(text)
        if found is None or found < least:
            raise self.error(f"{key} must be a whole number of at least {least}, got {text!r}", key)
        return found

    def number(self, key: str, default: float) -> float:
        """Return an option that is a number; ModelError if it is none."""
        return self._numbers(key)[0] if key in self.options else default

    def integers(self, key: str) -> tuple[int, ...]:
        """Return an option that is a list of whole numbers, () if it is absent; ModelError if it is none."""
        values = self._numbers(key) if key in self.options else ()
        if any(value != int(value) for value in values):
            raise self.error(f"{key} must be whole numbers with commas between, got {self.text(key, '')!r}", key)
        return tuple(int(value) for value in values)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return an option that is a list of numbers, () if it is absent; ModelError if it is none."""
        return self._numbers(key) if key in self.options else ()

    def _numbers(self, key: str) -> tuple[float, ...]:
        text = self.options[key].text
        numbers = [decimal(part) for part in text.removesuffix(",").split(",")]
        found = tuple(number for number in numbers if number is not None and math.isfinite(number))
        if len(found) < len(numbers):
            raise self.error(f"{key} must be numbers with commas between, got {text!r}", key)
        return found


@dataclass(frozen=True)
class Cfg:
    """A whole file.

    Attributes:
        file: its name, for messages.
        lines: all of its lines, with comments and unread options.
        net: the section ``[net]``.
        layers: the sections of its layers; ``route`` and ``shortcut`` number layers by their position here.
    """

    file: str
    lines: tuple[str, ...]
    net: Section
    layers: tuple[Section, ...]

    @property
    def text(self) -> str:
        """The file's content."""
        return "\n".join(self.lines)

    def replaced(self, values: Mapping[tuple[int, str], int]) -> Cfg:
        """Return the cfg with other numbers for existing options; the rest of their lines stays.

        Args:
            values: (number of the layer, key) → the new value.
        """
        lines, layers = list(self.lines), list(self.layers)
        for (index, key), value in values.items():
            layers[index] = _replaced(lines, layers[index], key, value)
        return replace(self, lines=tuple(lines), layers=tuple(layers))

    def resized(self, size: ImageSize) -> Cfg:
        """Return the cfg for images of another size."""
        lines, net = list(self.lines), self.net
        for key, side in size._asdict().items():
            net = _replaced(lines, net, key, side)
        return replace(self, lines=tuple(lines), net=net)

    @property
    def notes(self) -> Mapping[str, Any]:
        """The notes that an earlier run of autoprune left in a comment; {} if there are none, or none readable."""
        for line in self.lines:
            if line.startswith(_NOTES):
                try:
                    found = json.loads(line.removeprefix(_NOTES))
                except ValueError:
                    return {}
                return found if isinstance(found, dict) else {}
        return {}

    def noted(self, notes: Mapping[str, Any]) -> str:
        """Return the file's content with plain JSON values in a comment at the top, which replaces earlier notes."""
        kept = [line for line in self.lines if not line.startswith(_NOTES)]
        return "\n".join([_NOTES + json.dumps(dict(notes)), *kept] if notes else kept)


def _replaced(lines: list[str], section: Section, key: str, value: int) -> Section:
    """Return a section with another number for an existing option; change the option's line in ``lines``, too."""
    option = section.options[key]
    lines[option.line - 1] = re.sub(r"(=\s*)[^#]*?(?=\s*(#|$))", rf"\g<1>{value}", lines[option.line - 1], count=1)
    return replace(section, options={**section.options, key: replace(option, text=str(value))})


def read_cfg(path: Path) -> Cfg:
    """Read a cfg.

    Raises:
        ModelError: the file cannot be read, or is not a cfg of layers that are supported.
    """
    try:
        # Comments may be in any encoding: bytes that are not UTF-8 stay.
        text = read_bytes(path).decode(errors="surrogateescape")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_cfg(text, str(path))


def parse_cfg(text: str, file: str = "the cfg") -> Cfg:
    """Read a cfg's content (Darknet, ``src/parser.c``: ``read_cfg``; ``src/option_list.c``: ``read_option``).

    Args:
        text: the content.
        file: its name, for messages.

    Raises:
        ModelError: a section is unknown, a line is neither section, option nor comment, or there is no network.
    """
    lines = text.split("\n")
    sections: list[tuple[str, int, dict[str, Option]]] = []
    for number, line in enumerate(lines, start=1):
        bare = re.sub(r"\s", "", line)  # Darknet drops all white space, within names too
        key, equals, value = bare.partition("=")
        if not bare or bare[0] in "#;":
            continue
        if bare[0] == "[":
            sections.append((_section_name(bare, f"{file}, line {number}"), number, {}))
        elif not equals or not sections:
            raise ModelError(
                f"{file}, line {number}: a line must be a [section], key=value or # a comment, got {line!r}"
            )
        else:
            sections[-1][2].setdefault(key, Option(value.partition("#")[0], number))
    read = [Section(file, name, number, options) for name, number, options in sections]
    if not read or read[0].name != "net":
        raise ModelError(f"{file}: a cfg must begin with the section [net]; give a Darknet .cfg file")
    if (second := next((section for section in read[1:] if section.name == "net"), None)) is not None:
        raise second.error("a cfg has one section [net], this is another one")
    return Cfg(file, tuple(lines), read[0], tuple(read[1:]))


def _section_name(bare: str, where: str) -> str:
    name = bare.partition("]")[0][1:]
    if name not in _SECTIONS:
        raise ModelError(
            f"{where}: a section must be one of {', '.join(sorted(set(_SECTIONS.values())))}; [{name}] is not supported"
        )
    return _SECTIONS[name]


def scaled_cfg(cfg: Cfg, width: float) -> Cfg | None:
    """Return a cfg with all ``filters`` times ``width``, in multiples of 8; None if convolutions have groups.

    Args:
        cfg: the dense network's.
        width: the factor.
    """
    values: dict[tuple[int, str], int] = {}
    following = [*(section.name for section in cfg.layers[1:]), ""]
    for index, section in enumerate(cfg.layers):
        if section.name != "convolutional" or following[index] == "yolo":
            continue
        if section.integer("groups", 1) > 1:
            return None
        if "filters" in section.options:
            values[index, "filters"] = max(1, round(section.integer("filters") * width / _MULTIPLE)) * _MULTIPLE
    return cfg.replaced(values)
