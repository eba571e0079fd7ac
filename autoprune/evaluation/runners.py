"""How the candidates of a batch are computed: a new way is a file of its own and a record here."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, Protocol, TypeVar

from autoprune.errors import ConfigError, DeviceError
from autoprune.io.installed import install_extra

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Summary = TypeVar("Summary")
Content = TypeVar("Content")


@dataclass(frozen=True)
class Large(Generic[Summary, Content]):
    """An answer with a large part, which stays with the worker that computed it unless it is fetched.

    Attributes:
        summary: the small part.
        fetch: returns the large one.

    Example:
        >>> answer = Large.of(0.5, {"weight": [1.0, 2.0]})
        >>> answer.summary, answer.fetch()
        (0.5, {'weight': [1.0, 2.0]})
    """

    summary: Summary
    fetch: Callable[[], Content]

    @classmethod
    def of(cls, summary: Summary, content: Content) -> Large[Summary, Content]:
        """Return the answer of a small and a large part."""
        return cls(summary, lambda: content)


@dataclass(frozen=True, eq=False)
class Shared(Generic[Content]):
    """A value that goes to a worker once, in however many functions it is: the images of a run, its dense network.

    Attributes:
        value: the value; it is not changed any more.
    """

    value: Content


@dataclass
class Usage:
    """What the workers of a run were used for.

    Attributes:
        workers: how many there are.
        tasks: what they gave an answer to: candidates to score, networks to fine-tune.
        repeated: tasks that were given to a second worker, since the first one died or was far slower than others.
        busy: seconds that all of them computed together, without second copies.
        wall: seconds that the run waited for them.

    Example:
        >>> usage = Usage(workers=4, tasks=20, busy=36.0, wall=10.0)
        >>> print(usage)
        4 workers computed 20 tasks, 3.6 times as fast as one of them would have (90% of their time)
        >>> usage.short
        '4 workers, 3.6 × one, 90% busy'
    """

    workers: int = 0
    tasks: int = 0
    repeated: int = 0
    busy: float = 0.0
    wall: float = 0.0

    @property
    def speed_up(self) -> float:
        """How many times as fast they were as one of them would have been."""
        return self.busy / max(self.wall, 1e-9)

    @property
    def busy_share(self) -> float:
        """How much of the time that the run waited for them they computed, in [0, 1]."""
        return min(self.speed_up / max(self.workers, 1), 1.0)

    @property
    def short(self) -> str:
        """The figures as a progress bar shows them."""
        return f"{self._counted}, {self.speed_up:.1f} × one, {self.busy_share:.0%} busy"

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a result holds them."""
        figures = {"workers": self.workers, "tasks": self.tasks, "repeated": self.repeated}
        return {**figures, "speed_up": self.speed_up, "busy": self.busy_share}

    @property
    def _counted(self) -> str:
        return "1 worker" if self.workers == 1 else f"{self.workers} workers"

    def __str__(self) -> str:
        return (
            f"{self._counted} computed {self.tasks} tasks, {self.speed_up:.1f} times as fast as one of them "
            f"would have ({self.busy_share:.0%} of their time)"
        )


class Runner(Protocol):
    """Computes batches, in this process or in others.

    Attributes:
        usage: what its workers were used for; None if it has none.
    """

    usage: Usage | None

    def map(self, function: Callable[[Item], Answer], items: Sequence[Item]) -> Iterable[Answer]:
        """Give a function's answer for every item in the order of the items, in whatever order they are computed.

        Give each as soon as it and those before it are there: what was given is durable when the process is killed.

        Args:
            function: the same (``==``) at every call of one evaluator, so that it is sent to workers once; it can be
                pickled, and brings along the network and all else that it needs.
            items: allocations, which are small, as are the answers; large ones are `Large`.
        """


def usage_figures(runner: Runner | None) -> dict[str, Any]:
    """Return what a runner's workers were used for as figures of a result; empty if they were not.

    Example:
        >>> usage_figures(SerialRunner())
        {}
    """
    usage = runner.usage if runner is not None else None
    return {"workers": usage.to_json()} if usage is not None and usage.tasks else {}


class SerialRunner:
    """Computes one after the other, in this process.

    Example:
        >>> list(SerialRunner().map(abs, [-2, 1]))
        [2, 1]
    """

    usage: Usage | None = None

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
        workers: a pattern of the values of `workers` that it is for.
        meaning: these values in words.
        opener: ``module:name`` of what opens it: a function of `RunnerOptions` that gives a context manager.
        package: what it needs; empty if autoprune brings it.
        extra: what installs that.

    Example:
        >>> [spec.name for spec in RUNNERS]
        ['serial', 'ray']
        >>> with RUNNERS[0].open(RunnerOptions("0")) as runner:
        ...     list(runner.map(abs, [-2, 1]))
        [2, 1]
    """

    name: str
    workers: str
    meaning: str
    opener: str
    package: str = ""
    extra: str = ""

    def check(self) -> None:
        """Check that its package is there, without importing it.

        Raises:
            DeviceError: it is missing.
        """
        if self.package and find_spec(self.package) is None:
            raise DeviceError(
                f"`workers` needs the package {self.package}, which is not installed: {install_extra(self.extra)}"
            )

    def open(self, options: RunnerOptions) -> AbstractContextManager[Runner]:
        """Return the runner, whose processes end with the context.

        Raises:
            DeviceError: its package is missing, or it does not start.
        """
        self.check()
        opened: AbstractContextManager[Runner] = pkgutil.resolve_name(self.opener)(options)
        return opened


RUNNERS = (
    RunnerSpec("serial", "0", "0", "autoprune.evaluation.runners:open_serial"),
    RunnerSpec(
        "ray",
        r"auto|ray://[^\s/:]+:[0-9]{1,5}|[1-9][0-9]{0,3}",
        "a number of processes up to 9999, auto, or ray://HOST:PORT",
        "autoprune.evaluation.ray_cluster:open_ray",
        package="ray",
        extra="ray",
    ),
)
"""All of them; a value of `workers` belongs to the first that it fits."""


def runner_spec(workers: str) -> RunnerSpec:
    """Return the record of the runner that `workers` asks for.

    Raises:
        ConfigError: there is none.
    """
    for spec in RUNNERS:
        if re.fullmatch(spec.workers, workers, re.ASCII):
            return spec
    raise ConfigError(f"`workers` must be {', or '.join(spec.meaning for spec in RUNNERS)}, got {workers!r}")


def open_runner(options: RunnerOptions) -> AbstractContextManager[Runner]:
    """Return the runner that `workers` asks for; its processes end with the context."""
    return runner_spec(options.workers).open(options)
