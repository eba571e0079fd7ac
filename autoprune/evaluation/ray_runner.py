"""Candidates computed by worker processes on Ray, on this machine or on a cluster.

Source:
    Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", OSDI 2018; the actors are Ray's.
"""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, TypeVar

import torch

from autoprune.errors import DeviceError
from autoprune.evaluation.runners import RunnerOptions
from autoprune.io.installed import install_extra, install_package

Item = TypeVar("Item")
Answer = TypeVar("Answer")

ATTEMPTS = 3
"""How many workers may die of one candidate before it is given up."""

SLOW, SLOW_SECONDS = 3.0, 1.0
"""A candidate is computed again, if workers are idle, after this multiple of the median and at least these seconds."""

POLL_SECONDS, LOST_SECONDS = 0.2, 60.0
"""How often a batch looks at its workers; after how long without an answer, at whether any can still run."""

STORE_BYTES = 2**30
"""Memory of a local object store: it holds the network, the images and the covariances once."""

_PACKAGES = ("autoprune", "torch", "numpy", "ultralytics")


class CandidateWorker:
    """The process that computes: it holds the function, and so the network, the images and the covariances.

    Args:
        threads: CPU threads that it computes with.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._function: Callable[[Any], Any]

    def versions(self) -> dict[str, str]:
        """Return the versions of what scores depend on."""
        return versions()

    def load(self, function: Callable[[Any], Any]) -> None:
        """Take the function that the next items are for."""
        self._function = function

    def compute(self, item: Any) -> tuple[Any, float]:
        """Return the function's answer, and the seconds that it took."""
        start = time.perf_counter()
        answer = self._function(item)
        return answer, time.perf_counter() - start


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that scores depend on, in this process."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that was never installed
            continue
    return found


@dataclass
class Usage:
    """What the workers of a run were used for.

    Attributes:
        workers: how many there are.
        candidates: answers that they gave.
        busy: seconds that all of them computed together, without second copies.
        wall: seconds that the run waited for them.
    """

    workers: int = 0
    candidates: int = 0
    busy: float = 0.0
    wall: float = 0.0

    def __str__(self) -> str:
        factor = self.busy / max(self.wall, 1e-9)
        counted = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return (
            f"{counted} computed {self.candidates} candidates, {factor:.1f} times as fast as one of them would have "
            f"({factor / max(self.workers, 1):.0%} of their time)"
        )


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
    """An item on its way: where it stands in its batch, which worker computes it, and since when."""

    batch: _Batch
    place: int
    worker: int
    since: float

    def answered(self, answer: Any, error: BaseException | None = None) -> bool:
        """Put down the answer, or the error that it ended in; return whether it is the first."""
        first = self.place not in self.batch.finished
        if first:
            self.batch.finished.add(self.place)
            self.batch.answers[self.place] = answer, error
        return first


class RayRunner:
    """Computes a batch on Ray's actors; see `Runner`.

    Items are handed out one at a time, so that a slow worker gets fewer of them. One whose worker dies is computed by
    another; at the end of a batch, workers without an item compute what takes far longer than others a second time.

    Args:
        ray: the package, connected to a cluster.
        count: how many workers.
        options: their threads and device.
        resources: of each, as Ray's ``options`` takes them.
    """

    def __init__(self, ray: Any, count: int, options: RunnerOptions, resources: Mapping[str, float]) -> None:
        self._ray, self._threads = ray, options.threads
        self._kind = ray.remote(CandidateWorker).options(**resources)
        self._numbers = itertools.count()
        self._workers: dict[int, Any] = {}
        self._running: dict[Any, _Task] = {}
        self._function: Callable[[Any], Any] | None = None
        self._sent: Any = None
        self._heard = time.perf_counter()
        self.usage = Usage(count)
        for _ in range(count):
            self._add_worker()

    def check_versions(self) -> None:
        """Make sure that the workers have the versions of this process.

        Raises:
            DeviceError: one has not, or does not start.
        """
        here = versions()
        try:
            found = self._ray.get([worker.versions.remote() for worker in self._workers.values()])
        except self._ray.exceptions.RayError as error:
            raise DeviceError(
                f"Every worker must start with autoprune {here.get('autoprune', 'of this checkout')} and its packages, "
                f"and one does not ({_summary(error)}); install the same there"
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
        batch = _Batch(items, deque(range(len(items))))
        if items:
            self._send(function)
        for place in range(len(items)):
            start = time.perf_counter()
            while place not in batch.answers:
                self._hand_out(batch)
                self._collect(batch)
            self.usage.wall += time.perf_counter() - start
            answer, error = batch.answers.pop(place)
            if error is not None:
                raise error
            yield answer

    # -- one batch ---------------------------------------------------------------------------------

    def _hand_out(self, batch: _Batch) -> None:
        """Give every idle worker an item, or a second copy of a slow one."""
        busy = {task.worker for task in self._running.values()}
        for number in [number for number in self._workers if number not in busy]:
            place = batch.waiting.popleft() if batch.waiting else self._slow(batch)
            if place is None:
                return
            task = _Task(batch, place, number, time.perf_counter())
            self._running[self._workers[number].compute.remote(batch.items[place])] = task

    def _slow(self, batch: _Batch) -> int | None:
        """Return the place of an item that takes far longer than the others, and that one worker alone computes."""
        if not batch.seconds:
            return None
        running = [task for task in self._running.values() if task.batch is batch and task.place not in batch.finished]
        copies = Counter(task.place for task in running)
        limit = max(SLOW * statistics.median(batch.seconds), SLOW_SECONDS)
        now = time.perf_counter()
        return next((task.place for task in running if copies[task.place] == 1 and now - task.since > limit), None)

    def _collect(self, batch: _Batch) -> None:
        """Wait a little for answers, and put down those that came."""
        exceptions = self._ray.exceptions
        try:
            done, _ = self._ray.wait(list(self._running), timeout=POLL_SECONDS)
        except (exceptions.RayError, ConnectionError) as error:
            raise _gone(_summary(error)) from error
        self._check_alive(answered=bool(done))
        for reference in done:
            task = self._running.pop(reference)
            try:
                answer, seconds = self._ray.get(reference)
            except exceptions.RayTaskError as error:
                task.answered(None, error.cause)
            except exceptions.RayError as error:
                self._replace(task, error)
            else:
                if task.answered(answer):
                    task.batch.seconds.append(seconds)
                    self.usage.busy += seconds
                    self.usage.candidates += 1

    def _check_alive(self, *, answered: bool) -> None:
        """Make sure, if nothing was heard for long, that the cluster still has room for a worker."""
        if answered:
            self._heard = time.perf_counter()
        elif time.perf_counter() - self._heard > LOST_SECONDS:
            self._heard = time.perf_counter()
            if self._ray.cluster_resources().get("CPU", 0) < self._threads:
                raise _gone("none of its nodes has room for a worker")

    def _replace(self, task: _Task, error: Exception) -> None:
        """Put a new worker in a dead one's place, and its item back into the queue."""
        del self._workers[task.worker]
        self._add_worker()
        batch = task.batch
        batch.deaths[task.place] += 1
        if task.place in batch.finished:
            return
        if batch.deaths[task.place] < ATTEMPTS:
            batch.waiting.appendleft(task.place)
            return
        reason = (
            f"A candidate must not end its worker, and {ATTEMPTS} died of the same one, the last with: "
            f"{_summary(error)}; if memory ran out, take fewer `workers` or a smaller `batch`"
        )
        task.answered(None, DeviceError(reason))

    # -- workers -----------------------------------------------------------------------------------

    def _add_worker(self) -> None:
        worker = self._kind.remote(self._threads)
        self._workers[next(self._numbers)] = worker
        if self._sent is not None:
            worker.load.remote(self._sent)

    def _send(self, function: Callable[[Any], Any]) -> None:
        """Put the function into the object store, from where every worker takes it, unless it is there already."""
        if self._function == function:
            return
        self._function, self._sent = function, self._ray.put(function)
        try:
            self._ray.get([worker.load.remote(self._sent) for worker in self._workers.values()])
        except self._ray.exceptions.RayError as error:
            raise DeviceError(
                f"Every worker must be able to hold the network and its images, and one is not ({_summary(error)}); "
                "take fewer `workers`, or fewer `images`"
            ) from error
        self._heard = time.perf_counter()


def _gone(reason: str) -> DeviceError:
    return DeviceError(f"The Ray cluster must stay until the run ends, and is gone ({reason})")


def _summary(error: BaseException) -> str:
    """Return the last line of a message of Ray's, which has the reason, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


# -- clusters --------------------------------------------------------------------------------------


@contextmanager
def open_ray(options: RunnerOptions) -> Iterator[RayRunner]:
    """Start workers, on this machine or on a cluster, and end them with the context.

    Ray's usage statistics stay off. A cluster that this process is connected to already is used, and left alone after.

    Raises:
        DeviceError: Ray is not installed, the cluster is not there, has no room, or has other versions.
    """
    if find_spec("ray") is None:
        raise DeviceError(f"`workers` needs the package ray, which is not installed: {install_extra('ray')}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own settings
        if not ray.is_initialized():
            _connect(ray, options, stack)
        count, resources = _room(ray, options)
        runner = RayRunner(ray, count, options, resources)
        runner.check_versions()
        yield runner
        if runner.usage.candidates:
            options.notify(f"{runner.usage}.")


def _connect(ray: Any, options: RunnerOptions, stack: ExitStack) -> None:
    """Start a cluster of this machine's own, or connect to one that is there."""
    common = {"logging_level": "error", "log_to_driver": False}
    if options.workers.isdecimal():
        folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(ray.shutdown)
        try:
            ray.init(
                num_cpus=int(options.workers) * options.threads,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                _temp_dir=folder,
                **common,
            )
        except Exception as error:  # Ray raises it bare
            raise DeviceError(f"Ray must start on this machine, and does not ({_summary(error)})") from error
        return
    if options.workers.startswith("ray://") and find_spec("grpc") is None:
        raise DeviceError(f"`workers` ray:// needs the package grpcio, Ray's client: {install_package('grpcio')}")
    try:
        ray.init(address=options.workers, **common)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise DeviceError(
            f"`workers` {options.workers} must be a Ray cluster that runs, and there is none ({_summary(error)}); "
            "start one with `ray start --head`, or give a number of processes on this machine"
        ) from error
    stack.callback(ray.shutdown)


def _room(ray: Any, options: RunnerOptions) -> tuple[int, dict[str, float]]:
    """Return how many workers the cluster has room for, as many as were asked for, and the resources of each."""
    there = ray.available_resources()
    cpus = int(there.get("CPU", 0) // options.threads)
    asked = int(options.workers) if options.workers.isdecimal() else cpus
    resources: dict[str, float] = {"num_cpus": options.threads}
    if options.device.startswith("cuda"):
        gpus = there.get("GPU", 0)
        asked = asked if options.workers.isdecimal() else int(min(gpus, cpus))
        resources["num_gpus"] = min(1.0, gpus / max(asked, 1))
        if not gpus:
            raise DeviceError(f"The Ray cluster must have a GPU for `device` {options.device}, and has none free")
    if not 1 <= asked <= cpus:
        raise DeviceError(
            f"The Ray cluster must have {options.threads} free CPUs for each worker, and has "
            f"{there.get('CPU', 0):g} in all; free some, or take fewer `workers` or `threads`"
        )
    return asked, resources
