"""A program of the user's that measures a network: its command line with placeholders, and how its output is read."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from autoprune.errors import ConfigError
from autoprune.formats import FORMATS

FILES: Mapping[str, str] = {name: spec.name for spec in FORMATS for name in spec.placeholders}
"""Placeholders of a network's files, each with the format that is exported for it."""

NUMBERS = ("imgsz", "height", "width", "batch", "threads")
"""Placeholders of numbers."""

TIMEOUT = 120.0
"""Seconds that one run of a command may take if the user does not say."""

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_AMOUNT = r"(?<![\w.,])(\d+(?:,\d+)*(?:\.\d+)?(?:[eE][+-]?\d+)?)"
"""One with commas (12,5 or 1,234.5) is found, and is none for Python."""

_READINGS = (rf"{_AMOUNT}[ \t]*(?:ms|msec|milliseconds?)\b", rf"{_AMOUNT}(?!\w|[.,]\d)")
"""With milliseconds as its unit, or else without a unit that touches it."""


@dataclass(frozen=True)
class BenchmarkCommand:
    r"""A command line that runs a network and prints milliseconds.

    Attributes:
        text: as users write it; no shell sees it.
        pattern: a regular expression with one group, whose last match is the milliseconds; empty for the last number.
        timeout: seconds that one run may take.

    Example:
        >>> command = BenchmarkCommand.parse("bench --model {onnx} --threads {threads}")
        >>> command.argv({"onnx": "a file.onnx", "threads": 4})
        ['bench', '--model', 'a file.onnx', '--threads', '4']
        >>> command.formats, command.milliseconds("loaded in 3 s\nmean 12.5 ms\n")
        (('onnx',), 12.5)
    """

    text: str
    pattern: str = ""
    timeout: float = TIMEOUT

    @classmethod
    def parse(cls, text: str, pattern: str = "", timeout: float = TIMEOUT) -> BenchmarkCommand:
        """Check a command line.

        Raises:
            ConfigError: it cannot be split into words, names no file of the network or an unknown placeholder; the
                pattern is no regular expression with one group; or the timeout is not above 0.
        """
        command = cls(text, pattern, timeout)
        names = command.placeholders
        known = ", ".join(f"{{{name}}}" for name in (*FILES, *NUMBERS))
        for name in names:
            if name not in FILES and name not in NUMBERS:
                raise ConfigError(f"`runtime_command` knows the placeholders {known}, got {{{name}}}")
        if not command.formats:
            files = ", ".join(f"{{{name}}}" for name in FILES)
            raise ConfigError(f"`runtime_command` must name the network's file, one of {files}, got {text!r}")
        _check_pattern(pattern)
        if not (math.isfinite(timeout) and timeout > 0):
            raise ConfigError(f"`runtime_timeout` must be above 0, got {timeout}")
        return command

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The placeholders in it, each once."""
        return tuple(dict.fromkeys(name for word in _words(self.text) for name in _PLACEHOLDER.findall(word)))

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats that it reads."""
        return tuple(dict.fromkeys(FILES[name] for name in self.placeholders if name in FILES))

    def argv(self, values: Mapping[str, object]) -> list[str]:
        """Return the words with the values of placeholders in place; a value never becomes several words."""
        return [_PLACEHOLDER.sub(lambda match: str(values[match[1]]), word) for word in _words(self.text)]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of this machine that its words name."""
        return tuple(Path(word) for place, word in enumerate(_words(self.text)) if _names_file(place, word, Path()))

    def milliseconds(self, *outputs: str) -> float | None:
        """Return the last number other than 0, or the pattern's last match, of the first output that has any.

        Numbers with milliseconds as their unit go before others. None if there is none, or if that is no finite number
        above 0: with a comma, or as the pattern's group.
        """
        for output, pattern in product(outputs, [self.pattern] if self.pattern else _READINGS):
            found = re.findall(pattern, output, re.MULTILINE)
            if not self.pattern:
                found = [text for text in found if text.strip("0.")]
            if found:
                return _above_zero(found[-1])
        return None


def placed(text: str, folder: Path) -> str:
    """Return a command line whose words mean the same from any folder: files of a folder by their whole path.

    A first word without a separator names a program on ``PATH``, as in a shell, whatever lies in the folder.

    Example:
        >>> placed("python bench.py {onnx}", Path("/nowhere"))
        'python bench.py {onnx}'
    """
    words = _words(text)
    whole = [
        str((folder / word).absolute()) if _names_file(place, word, folder) else word
        for place, word in enumerate(words)
    ]
    return text if whole == words else shlex.join(whole)


def _names_file(place: int, word: str, folder: Path) -> bool:
    """Return whether a word of a command line names a file of a folder, without placeholders."""
    if _PLACEHOLDER.search(word) or (place == 0 and os.path.basename(word) == word):
        return False
    try:
        return (folder / word).is_file()
    except (OSError, ValueError):  # too long, or with a zero byte: no file
        return False


def _words(text: str) -> Sequence[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"`runtime_command` must be words as a shell has them, got {text!r} ({error})") from error


def _above_zero(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"`runtime_pattern` must be a regular expression, got {pattern!r} ({error})") from error
    if pattern and groups != 1:
        raise ConfigError(f"`runtime_pattern` must have one group around the milliseconds, got {pattern!r}")
