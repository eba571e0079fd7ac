"""The lines of a journal: plain JSON, with a checksum each, that keeps floats to the last bit."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""What a journal keeps, exactly: floats to the last bit, infinities and NaN too. Tuples come back as lists."""

_FLOAT = "$float"


@dataclass(frozen=True)
class Record:
    """One thing that a run found out.

    Attributes:
        kind: what sort of thing, e.g. ``evaluation``.
        key: what it is about, e.g. an allocation.
        value: what was found; never null.
    """

    kind: str
    key: Any
    value: Any


def line_of(kind: str, key: JSON, value: JSON) -> bytes:
    """Return a record as a line."""
    body = {"kind": kind, "key": _encode(key), "value": _encode(value)}
    return (json.dumps({**body, "crc": checksum(body)}, allow_nan=False) + "\n").encode("ascii")


def record_of(line: bytes) -> Record:
    """Read one line.

    Raises:
        ValueError: it is not what ``line_of`` wrote.
    """
    body = json.loads(line.decode("ascii"))
    if not isinstance(body, dict) or set(body) != {"kind", "key", "value", "crc"}:
        raise ValueError("not a record")
    if body.pop("crc") != checksum(body):
        raise ValueError("wrong checksum")
    if not isinstance(body["kind"], str):
        raise ValueError("not a record")
    return Record(body["kind"], _decode(body["key"]), _decode(body["value"]))


def checksum(body: Mapping[str, Any]) -> str:
    """Return the 8 digits that a line ends with."""
    return f"{zlib.crc32(_canonical(body)):08x}"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def text_of(key: JSON) -> str:
    """Return a key as text, the same for equal keys."""
    return _canonical(_encode(key)).decode("ascii")


def _encode(value: JSON) -> Any:
    """Return plain JSON: what is not finite becomes ``{"$float": "nan"}``, other keys in ``$`` get one ``$`` more."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"A journal keeps JSON, whose names are strings, got {value!r}")
        return {f"${name}" if name.startswith("$") else name: _encode(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_FLOAT}:
            if value[_FLOAT] not in ("nan", "inf", "-inf"):
                raise ValueError("not a number that JSON lacks")
            return float(value[_FLOAT])
        return {name[1:] if name.startswith("$") else name: _decode(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value
