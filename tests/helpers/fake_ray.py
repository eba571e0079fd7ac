"""A stand-in for Ray's package, in this process and on a clock of its own, for what real clusters seldom do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """The base of Ray's errors."""


class RayTaskError(RayError):
    """What a task raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ActorDiedError(RayError):
    """The death of a worker."""


@dataclass(eq=False)
class Reference:
    """A task on its way; it ends at a time, with an answer or an error."""

    end: float
    answer: Any = None
    error: Exception | None = None


def _instantly(worker: int, item: Any) -> float:
    return 1.0


def _never(worker: int, item: Any) -> bool:
    return False


@dataclass
class FakeRay:
    """A cluster of workers numbered from 0, in the order in which they start.

    Attributes:
        seconds: (worker, item) → how long it computes.
        dies: (worker, item) → whether it dies of it at the end.
        versions: what the workers say of their packages; None for the truth.
        cpus: what is left of the cluster.
        now: the clock.
        sent: what was put into the object store.
        computed: (worker, item) of every task.
    """

    seconds: Callable[[int, Any], float] = _instantly
    dies: Callable[[int, Any], bool] = _never
    versions: dict[str, str] | None = None
    cpus: float = 8.0
    now: float = 0.0
    sent: list[Any] = field(default_factory=list)
    computed: list[tuple[int, Any]] = field(default_factory=list)

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __post_init__(self) -> None:
        self._numbers = count()

    def remote(self, kind: type) -> Any:
        """Return what makes workers of a class."""
        made = SimpleNamespace(remote=lambda *arguments: self._worker(kind(*arguments)))
        return SimpleNamespace(options=lambda **resources: made)

    def put(self, value: Any) -> Any:
        """Keep a value in the object store."""
        self.sent.append(value)
        return value

    def get(self, asked: Any) -> Any:
        """Return answers, or raise the error that there is in place of one."""
        if isinstance(asked, list):
            return [self.get(one) for one in asked]
        self.now = max(self.now, asked.end)
        if asked.error is not None:
            raise asked.error
        return asked.answer

    def wait(self, references: Sequence[Reference], *, timeout: float) -> tuple[list[Reference], list[Reference]]:
        """Let the clock run to the next end, but no longer than the timeout."""
        first = min(references, key=lambda one: one.end)
        if first.end > self.now + timeout:
            self.now += timeout
            return [], list(references)
        self.now = max(self.now, first.end)
        return [first], [one for one in references if one is not first]

    def cluster_resources(self) -> dict[str, float]:
        """Return what nodes that are left have."""
        return {"CPU": self.cpus}

    def _worker(self, actor: Any) -> Any:
        number = next(self._numbers)
        calls = {
            "versions": lambda: Reference(self.now, self.versions or actor.versions()),
            "load": lambda function: Reference(self.now, actor.load(function)),
            "compute": partial(self._compute, actor, number),
        }
        return SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in calls.items()})

    def _compute(self, actor: Any, number: int, item: Any) -> Reference:
        self.computed.append((number, item))
        seconds = self.seconds(number, item)
        end = self.now + seconds
        if self.dies(number, item):
            return Reference(end, error=ActorDiedError("The actor is dead.\nIts process was killed."))
        try:
            answer, _ = actor.compute(item)
        except Exception as error:
            return Reference(end, error=RayTaskError(error))
        return Reference(end, (answer, seconds))
