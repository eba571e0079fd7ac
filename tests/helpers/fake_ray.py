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


class GetTimeoutError(RayError):
    """The answers that were asked for are not there in time."""


class TaskCancelledError(RayError):
    """What a task ends with that was taken back."""


@dataclass(eq=False)
class Reference:
    """A task on its way: asked for at a time, it begins and ends later, with an answer or an error."""

    asked: float
    seconds: float = 0.0
    answer: Any = None
    error: Exception | None = None
    begin: float = 0.0
    end: float = 0.0


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
        starts: worker → how long it takes to take a function; negative if it dies of it.
        places: how many workers find a place; the others never start.
        cancels: whether a task that waits behind another can be taken back in time.
        versions: what the workers say of their packages; None for the truth.
        cpus: what is left of the cluster.
        now: the clock.
        ended: whether it was shut down.
        sent: what was put into the object store.
        handed: (worker, item) of every task.
        computed: the same of those that were not taken back before they began.
    """

    seconds: Callable[[int, Any], float] = _instantly
    dies: Callable[[int, Any], bool] = _never
    places: float = float("inf")
    cancels: bool = True
    starts: Callable[[int], float] = lambda worker: 0.0
    versions: dict[str, str] | None = None
    cpus: float = 8.0
    now: float = 0.0
    ended: bool = False
    sent: list[Any] = field(default_factory=list)
    handed: dict[Reference, tuple[int, Any]] = field(default_factory=dict)

    exceptions = SimpleNamespace(
        RayError=RayError,
        RayTaskError=RayTaskError,
        TaskCancelledError=TaskCancelledError,
        GetTimeoutError=GetTimeoutError,
    )

    def __post_init__(self) -> None:
        self._numbers = count()
        self._queues: dict[int, list[Reference]] = {}

    @property
    def computed(self) -> list[tuple[int, Any]]:
        """Return (worker, item) of every task that began."""
        begun = [one for one in self.handed if not isinstance(one.error, TaskCancelledError)]
        return [self.handed[one] for one in begun if one.begin <= self.now]

    def remote(self, kind: type) -> Any:
        """Return what makes workers of a class."""
        made = SimpleNamespace(remote=lambda *arguments: self._worker(kind(*arguments)))
        return SimpleNamespace(options=lambda **resources: made)

    def put(self, value: Any) -> Any:
        """Keep a value in the object store."""
        self.sent.append(value)
        return value

    def get(self, asked: Any, *, timeout: float | None = None) -> Any:
        """Return answers, or raise the error that there is in place of one."""
        if isinstance(asked, list):
            return [self.get(one, timeout=timeout) for one in asked]
        if timeout is not None and asked.end > self.now + timeout:
            raise GetTimeoutError
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

    def is_initialized(self) -> bool:
        """Return whether it has not been shut down."""
        return not self.ended

    def cluster_resources(self) -> dict[str, float]:
        """Return what nodes that are left have."""
        return {"CPU": self.cpus}

    def cancel(self, reference: Reference) -> None:
        """Take a task back that has not begun; those behind it move up."""
        assert not self.ended
        queue = next(queue for queue in self._queues.values() if reference in queue)
        if self.cancels and reference.begin > self.now and reference.error is None:
            queue.remove(reference)
            _schedule(queue)
            reference.error, reference.end = TaskCancelledError(), self.now

    def _worker(self, actor: Any) -> Any:
        number = next(self._numbers)
        self._queues[number] = []
        calls = {
            "versions": lambda: Reference(
                self.now, answer=self.versions or actor.versions(), end=0.0 if number < self.places else float("inf")
            ),
            "load": partial(self._load, actor, number),
            "compute": partial(self._compute, actor, number),
        }
        return SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in calls.items()})

    def _load(self, actor: Any, number: int, function: Any, shared: Any) -> Reference:
        assert not self.ended
        actor.load(function, shared)
        seconds = self.starts(number)
        error = ActorDiedError("The actor is dead.\nIts process was killed.") if seconds < 0 else None
        return self._queued(number, Reference(self.now, abs(seconds), error=error))

    def _compute(self, actor: Any, number: int, item: Any) -> Reference:
        reference = Reference(self.now, self.seconds(number, item))
        self.handed[reference] = number, item
        if self.dies(number, item):
            reference.error = ActorDiedError("The actor is dead.\nIts process was killed.")
        else:
            try:
                answer, _, kept = actor.compute(item)
                reference.answer = answer, reference.seconds, kept
            except Exception as error:
                reference.error = RayTaskError(error)
        return self._queued(number, reference)

    def _queued(self, number: int, reference: Reference) -> Reference:
        self._queues[number].append(reference)
        _schedule(self._queues[number])
        return reference


def _schedule(queue: Sequence[Reference]) -> None:
    """Let each task of a worker begin when the one before it ends; what waits when the worker dies dies with it."""
    before = Reference(0.0)
    for one in queue:
        one.begin = max(one.asked, before.end)
        one.end = one.begin + one.seconds
        if isinstance(before.error, ActorDiedError):
            one.begin, one.end, one.error = float("inf"), one.begin, before.error
        before = one
