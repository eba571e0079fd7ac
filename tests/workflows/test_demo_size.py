"""The demonstration runs at an image size at which its budget asks for a fair amount of pruning on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.config import SearchConfig
from autoprune.demo import DEMO_SIZES
from autoprune.errors import DeviceError
from autoprune.image_size import ImageSize
from autoprune.listener import SilentListener
from autoprune.workflows import demo_size
from autoprune.workflows.demo_size import WANTED, suitable_size


class Folder:
    """Keeps what a stage found, as a run folder does."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def once(self, kind: str, compute: Any) -> Any:
        if kind not in self.kept:
            self.kept[kind] = compute()
        return self.kept[kind]


class Notes(SilentListener):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Machine:
    """Takes so long at 288 px."""

    def __init__(self, milliseconds: float, under_load: bool = False) -> None:
        self._milliseconds, self.under_load = milliseconds, under_load

    def __call__(self, size: int) -> float:
        return self._milliseconds * (size / 288) ** 2


def size_on(
    monkeypatch: pytest.MonkeyPatch, machine: float | Machine, folder: Any = None, listener: Any = None, **options: Any
) -> int | list[int] | None:
    """Return the image size on a machine, or on an idle one that takes so long at 288 px."""
    found = machine if isinstance(machine, Machine) else Machine(machine)
    monkeypatch.setattr(demo_size, "pin_threads", lambda threads, folder, listener: None)
    monkeypatch.setattr(demo_size, "DenseLatency", lambda config: found)
    config = SearchConfig(**{"budget": ("latency=8ms",), "threads": 1, **options})
    size = demo_size.with_demo_size(config, folder or Folder(), listener or SilentListener()).imgsz
    return size and size.plain


@given(speed=st.floats(1e-6, 1e6), overhead=st.floats(0, 100), power=st.floats(0.3, 2.5), limit=st.floats(0.1, 1000))
def test_the_size_is_the_nearest_to_what_is_wanted(speed: float, overhead: float, power: float, limit: float) -> None:
    asked: list[int] = []

    def latency(size: int) -> float:
        return overhead + speed * (size / 320) ** power

    def measure(size: int) -> float:
        asked.append(size)
        return latency(size)

    size, taken = suitable_size(measure, limit)
    shares = {one: latency(one) / limit for one in DEMO_SIZES}
    distances = {one: max(share / WANTED, WANTED / share) for one, share in shares.items()}
    assert distances[size] <= min(distances.values()) * (1 + 1e-9)
    assert taken == latency(size)
    assert len(asked) == len(set(asked)) <= 6, "each measurement takes a second"


def test_slow_and_fast_machines_get_the_ends_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert size_on(monkeypatch, 0.001) == DEMO_SIZES[-1] == 640
    assert size_on(monkeypatch, 5000.0) == DEMO_SIZES[0] == 64


def test_only_load_makes_it_refuse_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert size_on(monkeypatch, Machine(5000.0, under_load=False)) == 64
    assert size_on(monkeypatch, Machine(300.0, under_load=True)) == 64
    with pytest.raises(DeviceError, match=r"takes 247 ms at 64 px already; run it again when they are done"):
        size_on(monkeypatch, Machine(5000.0, under_load=True))


def test_the_size_is_said_with_what_the_dense_network_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Notes()
    assert size_on(monkeypatch, 22.0, listener=listener) == 224
    taken = "there its dense network takes 13.31 ms on this machine, 1.7 times the budget."
    assert listener.notes == [f"The demonstration runs at 224 px: {taken}"]


def test_the_size_of_a_run_stays_on_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder()
    assert size_on(monkeypatch, 47.0, folder) == size_on(monkeypatch, 18.0, folder) == 160


def test_the_dense_network_is_measured_as_a_search_measures_it() -> None:
    latency = demo_size.DenseLatency(SearchConfig(budget=("latency=8ms",), threads=1, device="cpu"))
    assert 0 < latency(64) < latency(320)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"imgsz": ImageSize(320, 320)}, 320),
        ({"imgsz": ImageSize(192, 320)}, [192, 320]),
        ({"budget": ("flops=50%",)}, None),
        ({"budget": ("latency=60%",)}, None),
        ({"model": Path("a.pt"), "data": Path("b")}, None),
    ],
)
def test_what_was_asked_for_stays(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], size: int | list[int] | None
) -> None:
    assert size_on(monkeypatch, 47.0, **options) == size
