"""Small changes of a module's source, each of which some test should notice."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeAlias

VARIABLE = "AUTOPRUNE_MUTANT"
"""The environment variable that tells ``tests.mutation.plugin`` which mutant to run the tests with."""

Path: TypeAlias = tuple[tuple[str, int | None], ...]
"""How to get from a module to a node: the name of a field, and the place in it where it is a list."""

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_NAMES = {"min": "max", "any": "all", "argmin": "argmax", "minimum": "maximum", "left": "right"}
_NAMES |= {other: name for name, other in _NAMES.items()}
_LEFT_ALONE = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.arg)
_NOT_FOLLOWED = {"annotation", "returns", "decorator_list", "bases"}


@dataclass(frozen=True)
class Mutant:
    """A module with one node replaced.

    Attributes:
        name: function, source before and source after; the same as long as that place of the module stays as it is.
        path: to the node.
        replacement: what stands there instead.
    """

    name: str
    path: Path
    replacement: ast.AST

    def of(self, source: str) -> ast.Module:
        """Return the changed module."""
        tree = ast.parse(source)
        owner: ast.AST = tree
        for field, place in self.path[:-1]:
            owner = _child(owner, field, place)
        field, place = self.path[-1]
        if place is None:
            setattr(owner, field, self.replacement)
        else:
            getattr(owner, field)[place] = self.replacement
        return ast.fix_missing_locations(tree)


def mutants(source: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its source; names are unique."""
    found, names = [], Counter[str]()
    for path, function, node in _nodes(ast.parse(source)):
        for replacement in _replacements(node):
            name = f"{function}: {_shown(node)} → {_shown(replacement)}"
            names[name] += 1
            found.append(Mutant(name if names[name] == 1 else f"{name} ({names[name]})", path, replacement))
    return found


def sample(source: str, number: int) -> list[Mutant]:
    """Return so many mutants, drawn by their names: a change elsewhere in the module leaves most of them."""
    return sorted(mutants(source), key=lambda mutant: hashlib.sha256(mutant.name.encode()).digest())[:number]


def _nodes(node: ast.AST, path: Path = (), function: str = "") -> Iterator[tuple[Path, str, ast.AST]]:
    """Yield every node that may be replaced, with the name of the class and function that it is in."""
    if isinstance(node, _LEFT_ALONE) or _is_docstring(node) or _is_strict(node):
        return
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        function = f"{function}.{node.name}".strip(".")
    elif path:
        yield path, function, node
    for field, value in ast.iter_fields(node):
        if field in _NOT_FOLLOWED:
            continue
        children: Sequence[object] = value if isinstance(value, list) else [value]
        for place, child in enumerate(children):
            if isinstance(child, ast.AST):
                step = (field, place if isinstance(value, list) else None)
                yield from _nodes(child, (*path, step), function)


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a node is replaced with, one at a time."""
    changed = deepcopy(node)
    match changed:
        case ast.Compare(ops=[operator]) if type(operator) in _OPERATORS:
            changed.ops = [_OPERATORS[type(operator)]()]  # type: ignore[list-item]
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) | ast.AugAssign(op=operator):
            if type(operator) not in _OPERATORS:
                return
            changed.op = _OPERATORS[type(operator)]()  # type: ignore[assignment]
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            changed = changed.operand
        case ast.Constant(value=bool(value)):
            changed.value = not value
        case ast.Constant(value=int(value) | float(value)):
            changed.value = value + 1
        case ast.Constant(value=str(value)) if value in _NAMES:
            changed.value = _NAMES[value]
        case ast.Name(id=name) if name in _NAMES:
            changed.id = _NAMES[name]
        case ast.Attribute(attr=name) if name in _NAMES:
            changed.attr = _NAMES[name]
        case ast.Slice(lower=lower, upper=upper) if (lower is None) != (upper is None):
            changed.lower, changed.upper = upper, lower
        case ast.IfExp(body=body, orelse=orelse):
            changed.body, changed.orelse = orelse, body
        case ast.If(test=test) | ast.While(test=test):
            changed.test = ast.UnaryOp(ast.Not(), test)
        case ast.Expr(value=ast.Call()):
            changed = ast.Pass()
        case ast.Break():
            changed = ast.Continue()
        case ast.Continue():
            changed = ast.Break()
        case _:
            return
    yield changed


def _child(owner: ast.AST, field: str, place: int | None) -> ast.AST:
    value = getattr(owner, field)
    child: ast.AST = value if place is None else value[place]
    return child


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_strict(node: ast.AST) -> bool:
    """Return whether this is ``strict=…``, which speaks up where the code around it is wrong."""
    return isinstance(node, ast.keyword) and node.arg == "strict"


def _shown(node: ast.AST) -> str:
    """Return a node's source, of a compound statement its first line."""
    return ast.unparse(node).splitlines()[0]
