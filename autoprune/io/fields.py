"""JSON without its traps, and a layout with one item per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def parse_strictly(text: str) -> Any:
    """Read JSON without its traps: a name twice in one object, NaN and infinities are refused.

    Raises:
        ValueError: the text is not such JSON; the message has line and column if they are known.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("not valid JSON: nested too deeply") from error


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
