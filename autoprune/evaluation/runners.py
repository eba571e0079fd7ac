"""How the candidates of a batch are computed: a new way is a file of its own and a record here."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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
class RunnerOptions:
    """What a runner is opened with.

    Attributes:
        workers: how many processes, or which cluster: ``4``, ``auto``, ``ray://head:10001``.
        threads: CPU threads of each.
        device: where candidates are computed, as torch names it; every worker on CUDA has a share of a GPU.
        notify: called with a sentence that users should read.
    """

    workers: str = "2"
    threads: int = 1
    device: str = "cpu"
    notify: Callable[[str], None] = lambda note: None


@contextmanager
def open_serial(options: RunnerOptions) -> Iterator[SerialRunner]:
    """Give the runner of this process, which needs no options."""
    yield SerialRunner()


@dataclass(frozen=True)
class RunnerSpec:
    """What is known of a runner before it is opened.

    Attributes:
        name: what computes.
        opener: ``module:name`` of what opens it: a function of `RunnerOptions` that gives a context manager.

    Example:
        >>> [spec.name for spec in RUNNERS]
        ['serial', 'ray']
        >>> with RUNNERS[0].open(RunnerOptions()) as runner:
        ...     list(runner.map(abs, [-2, 1]))
        [2, 1]
    """

    name: str
    opener: str

    def open(self, options: RunnerOptions) -> AbstractContextManager[Runner]:
        """Return the runner, whose processes end with the context."""
        opened: AbstractContextManager[Runner] = pkgutil.resolve_name(self.opener)(options)
        return opened


RUNNERS = (
    RunnerSpec("serial", "autoprune.evaluation.runners:open_serial"),
    RunnerSpec("ray", "autoprune.evaluation.ray_runner:open_ray"),
)
"""The first computes if no workers are asked for, the second if they are."""


def open_runner(options: RunnerOptions) -> AbstractContextManager[Runner]:
    """Return the runner of workers; its processes end with the context."""
    return RUNNERS[1].open(options)
