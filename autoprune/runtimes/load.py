"""How much of the CPU other processes use, before and while latency is measured."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import floor
from pathlib import Path

import numpy as np
import psutil

TOLERANCE = 0.25
"""How much of a core other processes may use without a remark: about what an idle desktop does."""

_SECONDS = 0.4
_KERNEL_SECONDS, _KERNEL_BYTES = 0.2, 1 << 20
_LEAST_SHARE = 0.8
_SHORTEST = 0.1  # seconds; the system counts CPU time in steps of 0.01
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Load:
    """What other processes leave of the CPU.

    Attributes:
        cores: that this process may run on.
        busy: how many of them other processes use, 0 to ``cores``.
        share: of the time that a calibration kernel on one thread wanted a core, how much it had one, 0 to 1.
        busiest: the process that uses most, as text; empty if none can be seen.
        quota: how many cores a container allows, or None.

    Example:
        >>> load = Load(cores=4, busy=1.0, share=1.0, busiest="python (process 7) 1.0")
        >>> load.free, load.overloaded, str(load)
        (3, False, 'Other processes use 1.0 of 4 CPU cores, most of all python (process 7) 1.0')
    """

    cores: int
    busy: float
    share: float
    busiest: str = ""
    quota: float | None = None

    @property
    def free(self) -> int:
        """How many threads find a core for themselves, at least 1."""
        if self.overloaded:
            return 1
        free = floor(self.cores - self.busy + TOLERANCE)
        return max(1, free if self.quota is None else min(free, floor(self.quota)))

    @property
    def overloaded(self) -> bool:
        """Whether not even one thread has a core for itself."""
        return self.cores - self.busy < 1 - TOLERANCE or self.share < _LEAST_SHARE

    def __str__(self) -> str:
        most = f", most of all {self.busiest}" if self.busiest else ""
        return f"Other processes use {self.busy:.1f} of {self.cores} CPU cores{most}"


def measure_load(seconds: float = _SECONDS) -> Load:
    """Measure what other processes use while this one sleeps, then how much of a core a kernel gets.

    Args:
        seconds: how long to sleep; the kernel takes 0.2 s more.
    """
    watch, before = LoadWatch(), _process_times()
    start = time.perf_counter()
    time.sleep(seconds)
    taken = time.perf_counter() - start
    busy, after = watch.busy(), _process_times()
    used = {key: (value - before[key]) / taken for key, value in after.items() if key in before}
    (pid, name), most = max(used.items(), key=lambda item: item[1], default=((0, ""), 0.0))
    busiest = f"{name} (process {pid}) {most:.1f}" if most >= TOLERANCE / 2 else ""
    return Load(len(watch.cores), busy, _kernel_share(_KERNEL_SECONDS), busiest, _quota())


class LoadWatch:
    """Watches what other processes use of the CPU from now on; made just before a measurement.

    This process and its children, such as a runtime's worker, are not counted.

    Attributes:
        cores: numbers of the cores that this process may run on.

    Example:
        >>> watch = LoadWatch()
        >>> 0 <= watch.busy() <= len(watch.cores)
        True
    """

    def __init__(self) -> None:
        self.cores = _usable_cores()
        self._own = _family()
        self._began = self._now()

    def busy(self) -> float:
        """Return how many cores other processes have used since, on average; 0 if that is too short ago to know."""
        seconds, idle, own = (now - began for now, began in zip(self._now(), self._began, strict=True))
        if seconds < _SHORTEST:
            return 0.0
        return float(np.clip(len(self.cores) - (idle + own) / seconds, 0, len(self.cores)))

    def disturbs(self, threads: int) -> bool:
        """Return whether this number of threads has had to share their cores with other processes."""
        return len(self.cores) - self.busy() < min(threads, len(self.cores)) - TOLERANCE

    def _now(self) -> tuple[float, float, float]:
        """Return the time, the idle time of the usable cores, and the CPU time of this process and its children."""
        times = psutil.cpu_times(percpu=True)
        idle = sum(times[core].idle + getattr(times[core], "iowait", 0.0) for core in self.cores if core < len(times))
        own = sum(map(_cpu_seconds, self._own)) + _ended_children()
        return time.perf_counter(), idle, own


def _usable_cores() -> Sequence[int]:
    """Return the numbers of the cores that this process may run on; all where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _family() -> Sequence[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _cpu_seconds(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _ended_children() -> float:
    """Return the CPU seconds of all children of this process that have ended, such as benchmark commands."""
    times = os.times()
    return float(times.children_user + times.children_system)


def _process_times() -> dict[tuple[int, str], float]:
    """Return the CPU seconds of all other processes that can be seen on the usable cores, by number and name."""
    own, cores = {process.pid for process in _family()}, _usable_cores()
    return {
        (one.pid, str(one.info["name"])): _cpu_seconds(one)
        for one in psutil.process_iter(["name"])
        if one.pid not in own and _last_core(one) in (None, *cores)
    }


def _last_core(process: psutil.Process) -> int | None:
    """Return the number of the core that a process ran on last; None where the system does not say."""
    if hasattr(process, "cpu_num"):
        with suppress(psutil.Error):
            return int(process.cpu_num())
    return None


def _kernel_share(seconds: float) -> float:
    """Hash the same bytes for so long; return the share of a core that this thread had, at most 1."""
    block = bytes(_KERNEL_BYTES)
    began, used = time.perf_counter(), time.thread_time()
    while time.perf_counter() < began + seconds:
        hashlib.sha256(block).digest()
    share = (time.thread_time() - used) / max(time.perf_counter() - began, 1e-9)
    return min(1.0, share)


def _quota() -> float | None:
    """Return how many cores' worth of time Linux allows this container, if it is limited."""
    with suppress(OSError, ValueError):
        allowed, period = _QUOTA.read_text(encoding="ascii").split()
        return int(allowed) / int(period)
    return None
