"""How many threads a run takes by what others use, and what it says, waits for and marks if none is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autoprune.workflows.network as network
from autoprune.errors import BudgetUnreachableError, DeviceError
from autoprune.listener import SilentListener
from autoprune.runtimes.load import Load
from autoprune.workflows.latency_constraints import LatencyConstraints
from autoprune.workflows.network import WAITS, pin_threads
from tests.helpers.load import FULL, HALF, IDLE, set_load
from tests.workflows.test_demo_size import Folder


class Heard(SilentListener):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Begun:
    """A run that begins on a machine with four cores for torch, under these loads one after the other."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *loads: Load, asked: int | None = None, folder: Folder | None = None
    ) -> None:
        self.slept: list[float] = []
        self.heard, self.folder = Heard(), folder or Folder()
        chosen: list[int] = []
        set_load(monkeypatch, *loads)
        monkeypatch.setattr(network.time, "sleep", self.slept.append)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        monkeypatch.setattr(torch, "set_num_threads", chosen.append)
        pin_threads(asked, self.folder, self.heard)  # type: ignore[arg-type]  # keeps what a folder keeps
        (self.threads,) = chosen


def test_an_idle_machine_gives_what_torch_chooses_and_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Begun(monkeypatch, IDLE)
    assert begun.threads == 4
    assert begun.slept == begun.heard.notes == begun.heard.warnings == []


def test_a_busy_machine_gives_the_cores_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Begun(monkeypatch, HALF)
    assert begun.threads == 1
    assert begun.slept == []
    assert begun.heard.warnings == [
        "Other processes use 1.0 of 2 CPU cores, most of all python (process 7) 1.0: "
        "this run takes 1 thread; choose with `threads`."
    ]


def test_threads_that_were_asked_for_stay_and_the_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Begun(monkeypatch, HALF, asked=2)
    assert begun.threads == 2
    assert begun.heard.warnings[0].endswith("this run takes 2 threads, which wait for each other.")
    assert Begun(monkeypatch, IDLE, asked=2).heard.warnings == []
    assert Begun(monkeypatch, FULL, asked=2).threads == 2


def test_a_run_waits_a_little_for_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Begun(monkeypatch, FULL, FULL, HALF)
    assert begun.threads == 1
    assert len(begun.slept) == 2
    assert "waiting" in begun.heard.notes[0]
    assert "under load" not in begun.heard.warnings[0]


def test_on_an_overloaded_machine_a_run_goes_on_with_one_thread_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Begun(monkeypatch, FULL)
    assert begun.threads == 1
    assert len(begun.slept) == WAITS
    assert sum(begun.slept) <= 30, "a refusal comes within a minute"
    (warning,) = begun.heard.warnings
    assert "python (process 7)" in warning
    assert "measured under load" in warning


def test_a_resumed_run_keeps_its_threads_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Begun(monkeypatch, HALF)
    again = Begun(monkeypatch, FULL, folder=first.folder)
    assert again.threads == 1
    assert again.slept == again.heard.warnings == []


class Estimator:
    """Measured under load, or not."""

    def __init__(self, under_load: bool) -> None:
        self.under_load = under_load


@pytest.mark.parametrize("under_load", [True, False])
def test_no_minimum_is_named_that_was_measured_under_load(under_load: bool) -> None:
    estimators: Any = {"latency": Estimator(under_load)}
    constraints = LatencyConstraints(estimators, {"latency": 8.0})
    with pytest.raises((DeviceError, BudgetUnreachableError)) as caught, constraints.judged():
        raise BudgetUnreachableError("with every unit at its lower bound the network still needs 14.05 ms")
    assert caught.value.exit_code == (2 if under_load else 3)
    assert ("14.05" in str(caught.value)) is not under_load
    assert isinstance(caught.value, DeviceError) is under_load


def test_a_budget_without_latency_is_out_of_reach_under_any_load() -> None:
    constraints = LatencyConstraints({}, {"flops": 1.0})
    with pytest.raises(BudgetUnreachableError), constraints.judged():
        raise BudgetUnreachableError("out of reach")
