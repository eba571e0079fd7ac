"""Which operations of an exported network are quantised together."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Operations that are quantised together, or stay in float together.

    Attributes:
        name: the stage, or the branch of the head, that their layers belong to, e.g. ``model.4`` or ``model.22/cv3.0``.
        operations: their names in the exported network.
    """

    name: str
    operations: tuple[str, ...]


def group_operations(operations: Iterable[tuple[str, bool]], stages: Collection[str]) -> tuple[Group, ...]:
    """Sort a network's operations into groups: a stage is one, and so is each branch of what is no stage, the head.

    Operations without weights that come before a group, such as a concatenation, belong to it: its layers read them.

    Args:
        operations: their names, paths as ``/model.2/cv1/conv/Conv``, in their order, each with whether it has weights
            to quantise. Names that are no paths, as exporters give to constants, are in no group.
        stages: of ``Adapter.stages``.
    """
    scopes: dict[str, list[str]] = {}
    weighty: set[str] = set()
    for name, has_weights in operations:
        first, *inner = name.strip("/").split("/")
        if not inner:
            continue
        scope = first if first in stages else f"{first}/{inner[0]}"
        scopes.setdefault(scope, []).append(name)
        if has_weights:
            weighty.add(scope)
    groups: list[Group] = []
    waiting: list[str] = []
    for scope, names in scopes.items():
        waiting += names
        if scope in weighty:
            groups.append(Group(scope, tuple(waiting)))
            waiting = []
    if groups and waiting:
        groups[-1] = Group(groups[-1].name, (*groups[-1].operations, *waiting))
    return tuple(groups)
