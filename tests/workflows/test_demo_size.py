"""The demonstration runs at an image size at which its budget can be held on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoprune.config import SearchConfig
from autoprune.demo import DEMO_IMAGE_SIZE
from autoprune.listener import SilentListener
from autoprune.workflows import demo_size


class Folder:
    """Keeps what a stage found, as a run folder does."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def once(self, kind: str, compute: Any) -> Any:
        if kind not in self.kept:
            self.kept[kind] = compute()
        return self.kept[kind]


def size_on(monkeypatch: pytest.MonkeyPatch, milliseconds: float, folder: Any = None, **options: Any) -> int | None:
    """Return the image size on a machine that takes so long at the demonstration's own."""

    def measured(size: int, device: str) -> float:
        return milliseconds * (size / DEMO_IMAGE_SIZE) ** 2

    monkeypatch.setattr(demo_size, "_milliseconds", measured)
    config = SearchConfig(**{"budget": ("latency=8ms",), "threads": 1, **options})
    return demo_size.with_demo_size(config, folder or Folder(), SilentListener()).imgsz


def test_a_slow_machine_gets_smaller_images(monkeypatch: pytest.MonkeyPatch) -> None:
    assert size_on(monkeypatch, 18.0) == DEMO_IMAGE_SIZE
    assert size_on(monkeypatch, 47.0) == 160
    assert size_on(monkeypatch, 5000.0) == demo_size.SMALLEST


def test_the_size_of_a_run_stays_on_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder()
    assert size_on(monkeypatch, 47.0, folder) == size_on(monkeypatch, 18.0, folder) == 160


@pytest.mark.parametrize(
    "options",
    [
        {"imgsz": 320},
        {"budget": ("flops=50%",)},
        {"budget": ("latency=60%",)},
        {"model": Path("a.pt"), "data": Path("b")},
    ],
)
def test_what_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    assert size_on(monkeypatch, 47.0, **options) == options.get("imgsz")
