"""Reading JSON that others may have written into dataclasses: one sentence says what does not fit, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args, get_type_hints

from autoprune.io.fields import parse_strictly

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text in quotes",
    "tuple_type": "a list in brackets",
    "list_type": "a list in brackets",
    "dict_type": "an object in braces",
    "dataclass_type": "an object in braces",
}
"""What pydantic's kinds of errors say, in the words of somebody who edits a file."""


class FiniteRecord:
    """A dataclass whose numbers must be finite where `read_record` reads it."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"allow_inf_nan": False}


def read_record(text: str, kind: type[T], where: str, *, version: int | None = None) -> T:
    """Read JSON strictly into a dataclass: nothing is converted, and every entry is known and there.

    Args:
        text: JSON, see `parse_strictly`.
        kind: a dataclass of numbers, strings, tuples, dictionaries and other such dataclasses.
        where: what the text is, for messages.
        version: of the entries, if the dataclass has a ``schema_version``.

    Raises:
        ValueError: the text is not JSON, is of another version, or does not hold such a record; the message names the
            entry.
    """
    from pydantic import TypeAdapter, ValidationError

    value = parse_strictly(text)
    found = value.get("schema_version") if isinstance(value, dict) else None
    if version is not None and type(found) is int and found != version:
        raise ValueError(f"schema_version is {found}, this autoprune reads {version}")
    try:
        return TypeAdapter(kind).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(_sentence(error.errors(include_url=False)[0], kind, where)) from error


def fits(value: object, kind: Any) -> bool:
    """Return whether a JSON value, infinities and NaN allowed, is what a type says: nothing is converted.

    Args:
        value: of JSON.
        kind: a type that pydantic knows. Objects of dataclasses and of ``TypedDict`` have all their entries and no
            others.
    """
    from pydantic import ValidationError

    try:
        _reader(kind).validate_json(json.dumps(value), strict=True, extra="forbid")
    except ValidationError:
        return False
    return True


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # late: it loads in a tenth of a second

    return TypeAdapter(kind)


def _sentence(error: Mapping[str, Any], kind: Any, where: str) -> str:
    *parents, name = error["loc"] or (None,)
    inside = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parents).lstrip(".") or where
    if error["type"] == "missing":
        return f"{inside} lacks the entry {name!r}"
    if error["type"] == "unexpected_keyword_argument":
        for part in parents:
            kind = get_type_hints(kind)[part] if is_dataclass(kind) else get_args(kind)[isinstance(part, str)]
        return f"{inside} has the unknown entry {name!r}; it may have: {', '.join(item.name for item in fields(kind))}"
    entry = where if name is None else f"{inside}[{name}]" if isinstance(name, int) else f"{inside}: {name}"
    expected = _EXPECTED.get(error["type"]) or error.get("ctx", {}).get("expected", "").replace("'", "")
    if not expected:  # such as half of a surrogate pair in a string
        return f"{entry} cannot be read: {error['msg']}"
    shown = json.dumps(error["input"])
    return f"{entry} must be {expected}, got {shown if len(shown) <= 60 else shown[:57] + '...'}"
