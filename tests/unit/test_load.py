"""What other processes use of the CPU is measured, said, and decides over threads."""

from __future__ import annotations

import time
from collections import namedtuple
from typing import Any

import psutil
import pytest

from autoprune.runtimes import load as load_module
from autoprune.runtimes.load import Load, LoadWatch, measure_load

Times = namedtuple("Times", "user system idle iowait")
Used = namedtuple("Used", "user system")


class FakeProcess:
    """A process that uses so much of a core all the time."""

    def __init__(self, machine: Machine, pid: int, name: str, used: float, core: int = 0) -> None:
        self._machine, self.pid, self._used, self._core = machine, pid, used, core
        self.info = {"name": name}  # as psutil fills it in

    def cpu_times(self) -> Any:
        return Used(self._used * self._machine.now, 0.0)

    def cpu_num(self) -> int:
        return self._core

    def children(self, recursive: bool = False) -> list[FakeProcess]:
        return []


class Machine:
    """A machine with a fake clock, whose cores are busy to these shares."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *busy: float, own: float = 0.0) -> None:
        self.now, self._busy = 0.0, busy
        me = FakeProcess(self, 1, "pytest", own)
        others = [FakeProcess(self, 10 + core, f"job{core}", used, core) for core, used in enumerate(busy)]
        monkeypatch.setattr(load_module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(load_module.time, "sleep", self.sleep)
        monkeypatch.setattr(load_module, "_kernel_share", lambda seconds: 1.0)
        monkeypatch.setattr(load_module, "_quota", lambda: None)
        monkeypatch.setattr(load_module, "_usable_cores", lambda: list(range(len(busy))))
        monkeypatch.setattr(psutil, "Process", lambda: me)
        monkeypatch.setattr(psutil, "process_iter", lambda attrs: iter([me, *others]))
        monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [self._core(used) for used in busy])

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def _core(self, used: float) -> Any:
        return Times(used * self.now, 0.0, (1 - used) * self.now, 0.0)


@pytest.mark.parametrize(
    ("busy", "free", "overloaded"),
    [
        ((0.0, 0.0), 2, False),
        ((0.1, 0.1), 2, False),
        ((1.0, 0.0), 1, False),
        ((0.5, 0.5), 1, False),
        ((1.0, 1.0), 1, True),
        ((0.9, 0.6), 1, True),
        ((1.0, 1.0, 0.0, 0.0), 2, False),
        ((1.0,), 1, True),
    ],
)
def test_free_cores_are_those_that_others_leave(
    monkeypatch: pytest.MonkeyPatch, busy: tuple[float, ...], free: int, overloaded: bool
) -> None:
    Machine(monkeypatch, *busy)
    load = measure_load()
    assert load.busy == pytest.approx(sum(busy))
    assert (load.free, load.overloaded) == (free, overloaded)


def test_one_sentence_says_who_uses_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, 0.2, 0.9)
    assert str(measure_load()) == "Other processes use 1.1 of 2 CPU cores, most of all job1 (process 11) 0.9"


def test_on_an_idle_machine_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, 0.0, 0.02)
    assert measure_load().busiest == ""


def test_processes_on_other_cores_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, 0.9, 0.5)
    monkeypatch.setattr(load_module, "_usable_cores", lambda: [1])
    load = measure_load()
    assert load.cores == 1
    assert load.busy == pytest.approx(0.5)
    assert load.busiest == "job1 (process 11) 0.5"


def test_a_container_allows_fewer_threads_than_there_are_cores() -> None:
    load = Load(cores=64, busy=10.0, share=1.0, quota=2.5)
    assert (load.free, load.overloaded) == (2, False)


def test_a_kernel_that_has_to_wait_is_overload() -> None:
    load = Load(cores=2, busy=0.0, share=0.5)
    assert (load.free, load.overloaded) == (1, True)


@pytest.mark.parametrize(
    ("busy", "own", "threads", "disturbed"),
    [
        ((1.0, 1.0), 2.0, 2, False),  # this process alone
        ((1.0, 1.0), 1.0, 1, False),  # one other, and a core for each
        ((1.0, 1.0), 1.3, 2, True),  # one other, and threads that wait for each other
        ((1.0, 1.0), 0.67, 1, True),  # two others
        ((1.0,), 0.5, 1, True),
        ((1.0, 1.0), 1.9, 8, False),  # more threads than cores are no load
    ],
)
def test_a_watch_tells_others_from_this_process(
    monkeypatch: pytest.MonkeyPatch, busy: tuple[float, ...], own: float, threads: int, disturbed: bool
) -> None:
    machine = Machine(monkeypatch, *busy, own=own)
    watch = LoadWatch()
    machine.sleep(1.0)
    assert watch.busy() == pytest.approx(len(busy) - own)
    assert watch.disturbs(threads) is disturbed


def test_a_moment_is_too_short_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 1.0)
    watch = LoadWatch()
    machine.sleep(0.05)
    assert watch.busy() == 0.0


def test_a_process_that_ends_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 0.5)
    gone = FakeProcess(machine, 99, "gone", 1.0)

    def cpu_times() -> Any:
        raise psutil.NoSuchProcess(99)

    monkeypatch.setattr(gone, "cpu_times", cpu_times)
    monkeypatch.setattr(psutil, "process_iter", lambda attrs: iter([gone]))
    assert measure_load().busiest == ""


def test_the_real_machine_can_be_measured() -> None:
    start = time.perf_counter()
    load = measure_load(0.1)
    assert 0 <= load.busy <= load.cores
    assert 0 < load.share <= 1
    assert time.perf_counter() - start < 20
