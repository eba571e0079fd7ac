"""How the candidates of a batch are computed: a new way is a file of its own and a record here."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Runner(Protocol):
    """Computes batches, in this process or in others."""

    def map(self, function: Callable[[Item], Answer], items: Sequence[Item]) -> Iterable[Answer]:
        """Give a function's answer for every item in the order of the items, in whatever order they are computed.

        Give each as soon as it and those before it are there: what was given is durable when the process is killed.

        Args:
            function: the same (``==``) at every call of one evaluator, so that it is sent to workers once; it can be
                pickled, and brings along the network and all else that it needs.
            items: allocations, which are small, as are the answers.
        """


class SerialRunner:
    """Computes one after the other, in this process.

    Example:
        >>> list(SerialRunner().map(abs, [-2, 1]))
        [2, 1]
    """

    def map(self, function: Callable[[Item], Answer], items: Sequence[Item]) -> Iterator[Answer]:
        """Compute each answer when it is asked for; see `Runner`."""
        return map(function, items)


@dataclass(frozen=True)
class RunnerSpec:
    """What is known of a runner before it is made.

    Attributes:
        name: as options name it.
        factory: ``module:name`` of what makes it, without arguments.

    Example:
        >>> RUNNERS[0].name, type(RUNNERS[0].make()).__name__
        ('serial', 'SerialRunner')
    """

    name: str
    factory: str

    def make(self) -> Runner:
        """Return the runner."""
        runner: Runner = pkgutil.resolve_name(self.factory)()
        return runner


RUNNERS = (RunnerSpec("serial", "autoprune.evaluation.runners:SerialRunner"),)
"""The first is the one that is used unless another is named."""
