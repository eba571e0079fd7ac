"""Batches of candidates spread over worker processes on Ray.

Source:
    Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", OSDI 2018; the actors are Ray's.
"""

from __future__ import annotations

import io
import itertools
import pickle
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import cloudpickle  # type: ignore[import-untyped]

from autoprune.errors import DeviceError
from autoprune.evaluation.ray_worker import CandidateWorker, versions
from autoprune.evaluation.runners import Large, RunnerOptions, Shared, Usage
from autoprune.listener import step_bar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

START_SECONDS = 600.0
"""How long workers may take to start, where each loads torch, perhaps from a slow disk."""

ATTEMPTS = 3
"""How many workers may die of one candidate before it is given up."""

AHEAD = 2
"""How many items a worker has at a time: the next one is there when it ends the present one."""

SLOW, SLOW_SECONDS = 3.0, 1.0
"""A candidate is computed again, if workers are idle, after this multiple of the median and at least these seconds."""

POLL_SECONDS, LOST_SECONDS = 0.2, 60.0
"""How often a batch looks at its workers; after how long without an answer, at whether any can still run."""

FORGET_SECONDS = 5.0
"""How long workers have to end what nobody wants any more and to remove the files that they made, at the run's end."""


@dataclass
class _Batch:
    """The state of one batch: items by their place, what waits, what is answered, and how many workers died of it."""

    items: Sequence[Any]
    waiting: deque[int]
    answers: dict[int, tuple[Any, BaseException | None]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    deaths: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """An item on its way: where it stands in its batch."""

    batch: _Batch
    place: int

    @property
    def wanted(self) -> bool:
        """Whether nobody has answered it yet."""
        return self.place not in self.batch.finished

    def answered(self, answer: Any, error: BaseException | None = None) -> None:
        """Put down the answer, or the error that it ended in."""
        self.batch.finished.add(self.place)
        self.batch.answers[self.place] = answer, error


@dataclass(eq=False)
class _Worker:
    """A worker with its tasks by Ray's reference, None for a function that is sent; the first runs, since a time."""

    actor: Any
    tasks: dict[Any, _Task | None] = field(default_factory=dict)
    since: float = 0.0
    deaths: int = 0

    @property
    def ready(self) -> bool:
        """Whether it has the function."""
        return None not in self.tasks.values()

    @property
    def queued(self) -> Iterator[tuple[Any, _Task]]:
        """The tasks that wait behind the first."""
        return ((reference, task) for reference, task in list(self.tasks.items())[1:] if task is not None)


class RayRunner:
    """Computes a batch on Ray's actors; see `Runner`.

    Every worker has the item that it computes and the next one, so that none waits to be handed one. A slow worker gets
    fewer of them: at the end of a batch, workers without an item take over what waits behind others, and compute what
    takes far longer than the rest a second time. The items of a worker that dies are computed by others.

    Args:
        ray: the package, connected to a cluster.
        count: how many workers.
        options: their threads and device.
        resources: of each, as Ray's ``options`` takes them.
    """

    def __init__(self, ray: Any, count: int, options: RunnerOptions, resources: Mapping[str, float]) -> None:
        self._ray, self._threads = ray, options.threads
        self._kind = ray.remote(CandidateWorker).options(**resources)
        self._holders: dict[Any, _Worker] = {}
        self._function: Callable[[Any], Any] | None = None
        self._sent: tuple[Any, Mapping[int, Any]] | None = None
        self._numbers = itertools.count()
        self._shared: dict[int, tuple[Any, Any]] = {}
        self._used: set[int] = set()
        self._heard = time.perf_counter()
        self.usage = Usage(count)
        self._workers = [self._started() for _ in range(count)]

    def check_versions(self) -> None:
        """Make sure that the workers have the versions of this process.

        Raises:
            DeviceError: one has not, or does not start.
        """
        here = versions()
        try:
            asked = [worker.actor.versions.remote() for worker in self._workers]
            found = self._ray.get(asked, timeout=START_SECONDS)
        except self._ray.exceptions.GetTimeoutError as error:
            raise DeviceError(
                f"{len(asked)} workers must start, and after {START_SECONDS:.0f} s some have not: the cluster has no "
                "room for all of them at the same time; take fewer `workers` or `threads`"
            ) from error
        except self._ray.exceptions.RayError as error:
            raise DeviceError(
                f"Every worker must start with autoprune {here.get('autoprune', 'of this checkout')} and its packages, "
                f"and one does not ({summary(error)}); install the same there"
            ) from error
        for there in found:
            for name in here:
                if there.get(name) != here[name]:
                    raise DeviceError(
                        f"Workers must have the versions of this process, got {name} {there.get(name, 'missing')} "
                        f"there and {here[name]} here; install the same in both places"
                    )

    def map(self, function: Callable[[Item], Answer], items: Sequence[Item]) -> Iterator[Answer]:
        """Give the answers in order; see `Runner`.

        Raises:
            DeviceError: a candidate was the death of several workers, or the cluster is gone.
        """
        if not items:
            return
        batch = _Batch(items, deque(range(len(items))))
        self._send(function)
        try:
            with step_bar("Workers", len(items)) as advance:
                for place in range(len(items)):
                    start = time.perf_counter()
                    while place not in batch.answers:
                        self._hand_out(batch)
                        self._collect()
                        advance(len(batch.finished), self.usage.short)
                    self.usage.wall += time.perf_counter() - start
                    answer, error = batch.answers.pop(place)
                    if error is not None:
                        raise error
                    if isinstance(answer, Large):
                        answer = Large(answer.summary, partial(self._fetch, answer.fetch, function, items[place]))
                    yield answer
        finally:
            batch.waiting.clear()
            batch.finished.update(range(len(items)))
            self._withdraw()

    def close(self) -> None:
        """Let the workers forget their function, which then removes the files that it made there."""
        if not self._ray.is_initialized():
            return
        nothing = pickle.dumps(None)
        with suppress(self._ray.exceptions.RayError, ConnectionError):
            self._ray.get([worker.actor.load.remote(nothing, {}) for worker in self._workers], timeout=FORGET_SECONDS)

    def _fetch(self, get: Callable[[], Any], function: Callable[[Item], Any], item: Item) -> Any:
        """Return the large part of an answer; one whose machine has left is computed again."""
        try:
            return get()
        except self._ray.exceptions.RayError:
            self.usage.repeated += 1
            return next(self.map(function, [item])).fetch()

    # -- one batch ---------------------------------------------------------------------------------

    def _hand_out(self, batch: _Batch) -> None:
        """Give every worker an item, and then the next one; workers without any help others out."""
        for ahead in range(AHEAD):
            for worker in self._workers:
                if len(worker.tasks) != ahead or not worker.ready:
                    continue
                place = batch.waiting.popleft() if batch.waiting else self._helped_out(batch) if not ahead else None
                if place is None:
                    break
                self._give(worker, worker.actor.compute.remote(batch.items[place]), _Task(batch, place))

    def _give(self, worker: _Worker, reference: Any, task: _Task | None) -> None:
        if not worker.tasks:
            worker.since = time.perf_counter()
        worker.tasks[reference] = task
        self._holders[reference] = worker

    def _helped_out(self, batch: _Batch) -> int | None:
        """Return the place of an item that one worker alone has, and has not begun or computes for far too long."""
        tasks = [task for worker in self._workers for task in worker.tasks.values() if task is not None]
        copies = Counter(task.place for task in tasks if task.batch is batch)

        def alone(task: _Task | None) -> bool:
            return task is not None and task.batch is batch and task.wanted and copies[task.place] == 1

        for worker in self._workers:
            for reference, task in worker.queued:
                if alone(task):
                    self._ray.cancel(reference)
                    return task.place
        if not batch.seconds:
            return None
        limit = max(SLOW * statistics.median(batch.seconds), SLOW_SECONDS)
        now = time.perf_counter()
        for worker in self._workers:
            first = next(iter(worker.tasks.values()), None)
            if first is not None and alone(first) and now - worker.since > limit:
                self.usage.repeated += 1
                return first.place
        return None

    def _withdraw(self) -> None:
        """Take back what waits behind others and is not wanted any more, if the cluster is still there."""
        for worker in self._workers if self._ray.is_initialized() else ():  # or Ray would start anew to cancel
            for reference, task in worker.queued:
                if not task.wanted:
                    self._ray.cancel(reference)

    def _collect(self) -> None:
        """Wait a little for an answer, and put down the one that came."""
        exceptions = self._ray.exceptions
        try:
            done, _ = self._ray.wait(list(self._holders), timeout=POLL_SECONDS)
        except (exceptions.RayError, ConnectionError) as error:
            raise _gone(summary(error)) from error
        self._check_alive(answered=bool(done))
        for reference in done:
            worker = self._holders[reference]
            try:
                found = self._ray.get(reference)
            except exceptions.TaskCancelledError:  # another worker has it, or nobody wants it any more
                self._taken(worker, reference)
            except exceptions.RayTaskError as error:
                task = self._taken(worker, reference)
                if task is None:
                    raise _unable(error) from error
                if task.wanted:
                    task.answered(None, error.cause)
            except exceptions.RayError as error:
                self._replace(worker, error)
            else:
                task = self._taken(worker, reference)
                if task is not None and task.wanted:
                    self._answered(task, *found)

    def _taken(self, worker: _Worker, reference: Any) -> _Task | None:
        """Take a task off its worker, which begins its next one."""
        del self._holders[reference]
        if reference == next(iter(worker.tasks)):
            worker.since = time.perf_counter()
        return worker.tasks.pop(reference)

    def _answered(self, task: _Task, answer: Any, seconds: float, kept: Any) -> None:
        task.answered(answer if kept is None else Large(answer, partial(self._ray.get, kept)))
        task.batch.seconds.append(seconds)
        self.usage.busy += seconds
        self.usage.tasks += 1

    def _check_alive(self, *, answered: bool) -> None:
        """Make sure, if nothing was heard for long, that the cluster still has room for a worker."""
        if answered:
            self._heard = time.perf_counter()
        elif time.perf_counter() - self._heard > LOST_SECONDS:
            self._heard = time.perf_counter()
            if self._ray.cluster_resources().get("CPU", 0) < self._threads:
                raise _gone("none of its nodes has room for a worker")

    def _replace(self, dead: _Worker, error: Exception) -> None:
        """Put a new worker in a dead one's place, and its items back into the queue; it died of the first one."""
        tasks = list(dead.tasks.values())
        for reference in dead.tasks:
            del self._holders[reference]
        if tasks[0] is None and dead.deaths + 1 == ATTEMPTS:
            raise _unable(error) from error
        deaths = dead.deaths + 1 if tasks[0] is None else 0
        self._workers[self._workers.index(dead)] = self._started(deaths)
        for task in reversed(tasks):
            if task is None or not task.wanted:
                continue
            if task is tasks[0]:
                task.batch.deaths[task.place] += 1
            if task.batch.deaths[task.place] == ATTEMPTS:
                task.answered(None, _deadly(error))
            else:
                self.usage.repeated += 1
                task.batch.waiting.appendleft(task.place)

    # -- workers -----------------------------------------------------------------------------------

    def _started(self, deaths: int = 0) -> _Worker:
        worker = _Worker(self._kind.remote(self._threads), deaths=deaths)
        self._load(worker)
        return worker

    def _load(self, worker: _Worker) -> None:
        if self._sent is not None:
            self._give(worker, worker.actor.load.remote(*self._sent), None)

    def _send(self, function: Callable[[Any], Any]) -> None:
        """Put the function into the object store, from where every worker takes it, unless it is there already."""
        if self._function == function:
            return
        pickled, before = io.BytesIO(), self._used
        pickler = _Pickler(pickled, self._number)
        pickler.dump(function)
        self._used = pickler.numbers
        self._shared = {number: one for number, one in self._shared.items() if number in self._used | before}
        references = {number: reference for number, (_, reference) in self._shared.items()}
        self._function, self._sent = function, (self._ray.put(pickled.getvalue()), references)
        for worker in self._workers:
            self._load(worker)
        self._heard = time.perf_counter()

    def _number(self, value: Any) -> int:
        """Return the number of a value that functions share, which is put into the object store the first time.

        It stays there until neither of the last two functions has it.
        """
        for number, (known, _) in self._shared.items():
            if known is value:
                return number
        number = next(self._numbers)
        self._shared[number] = value, self._ray.put(value)
        return number


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes a function; in place of what it shares with others there is a number."""

    def __init__(self, file: io.BytesIO, number_of: Callable[[Any], int]) -> None:
        super().__init__(file)
        self._number_of = number_of
        self.numbers: set[int] = set()

    def persistent_id(self, value: Any) -> int | None:
        """Return the number of a shared value; None for others, which are written as they are."""
        if not isinstance(value, Shared):
            return None
        number = self._number_of(value.value)
        self.numbers.add(number)
        return number


def _unable(error: BaseException) -> DeviceError:
    return DeviceError(
        f"Every worker must be able to hold the network and its images, and one is not ({summary(error)}); "
        "take fewer `workers`, or fewer `images`"
    )


def _deadly(error: BaseException) -> DeviceError:
    return DeviceError(
        f"A candidate must not end its worker, and {ATTEMPTS} died of the same one, the last with: {summary(error)}; "
        "if memory ran out, take fewer `workers` or a smaller `batch`"
    )


def _gone(reason: str) -> DeviceError:
    return DeviceError(f"The Ray cluster must stay until the run ends, and is gone ({reason})")


def summary(error: BaseException) -> str:
    """Return the last line of a message of Ray's, which has the reason, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
