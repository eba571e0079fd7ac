"""JSON without its traps, whether a value is of a type, and a layout with one item per line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict


def parse_strictly(text: str) -> Any:
    """Read JSON without its traps: a name twice in one object, NaN and infinities are refused.

    Raises:
        ValueError: the text is not such JSON; the message has line and column where they are known.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("not valid JSON: nested too deeply") from error


def fits(value: object, hint: Any) -> bool:
    """Return whether a JSON value is what a type says.

    Args:
        value: of JSON.
        hint: ``Any``, ``bool``, ``int``, ``float``, ``str`` and ``None``, unions, tuples and sequences (lists in JSON),
            mappings, and dataclasses and ``TypedDict`` (objects with these entries and no others); ``Annotated`` with
            functions that must return true, too.
    """
    if hint is Any:
        return True
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, args[0]) and all(holds(value) for holds in args[1:])
    if origin in (Union, UnionType):
        return any(fits(value, member) for member in args)
    if isinstance(value, list):
        if origin is tuple and args[-1] is not ...:
            return len(value) == len(args) and all(map(fits, value, args))
        return origin in (tuple, list, Sequence) and all(fits(item, args[0]) for item in value)
    if isinstance(value, dict):
        return all(fits(item, args[1]) for item in value.values()) if origin is Mapping else _has_entries(value, hint)
    if type(value) is int:
        return hint in (int, float) and abs(value) < 2**53
    return type(value) is (type(None) if hint is None else hint)


def _has_entries(value: Mapping[str, object], kind: Any) -> bool:
    if is_dataclass(kind):
        required = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    elif is_typeddict(kind):
        required = set(kind.__required_keys__)
    else:
        return False
    hints = get_type_hints(kind, include_extras=True)
    return required <= value.keys() <= hints.keys() and all(fits(item, hints[name]) for name, item in value.items())


def pretty(value: Any, indent: str) -> str:
    """Return a JSON value with one item per line, the items themselves on one line each.

    Args:
        value: a JSON value; only its outermost list or object is spread over lines.
        indent: spaces before the closing bracket; items get two more.
    """
    if isinstance(value, Mapping) and value:
        items, brackets = [f"{json.dumps(name)}: {_flat(item)}" for name, item in value.items()], "{}"
    elif isinstance(value, list) and value:
        items, brackets = [_flat(item) for item in value], "[]"
    else:
        return _flat(value)
    inner = f",\n{indent}  ".join(items)
    return f"{brackets[0]}\n{indent}  {inner}\n{indent}{brackets[1]}"


def _flat(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the entry {name!r} is there twice in one object")
        result[name] = value
    return result


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number that JSON knows")
