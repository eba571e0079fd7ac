"""A process that ends itself at a chosen moment of a command: ``python -m tests.helpers.kills '{"words": [...]}'``.

A moment is the n-th time that a phase is reached. The phases are records of the journal, files that are put in place,
batches and ends of epochs of each training, short fine-tunes, and int8 files that are made.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import autoprune.workflows.netadapt_steps
from autoprune.cli.main import main
from autoprune.journal import Journal
from autoprune.runtimes import SubprocessBackend
from autoprune.training.extensions._base import Event
from autoprune.training.ultralytics.session import Session
from tests.helpers.world import quick_commands

Reached = Callable[[str], None]


@contextmanager
def watched(reached: Reached) -> Iterator[None]:
    """Call a function with the name of each phase of the commands in the block, whenever it is reached."""
    append, run_callbacks = Journal.append, Session.run_callbacks
    briefly, quantize = autoprune.workflows.netadapt_steps.train_briefly, SubprocessBackend.quantize

    def appended(self: Journal, kind: str, key: Any, value: Any) -> None:
        reached(f"record {kind}")
        append(self, kind, key, value)

    def placing(name: str) -> Callable[[Path, Path], Path]:
        place = getattr(Path, name)

        def placed(self: Path, target: Path) -> Path:
            reached(f"file {Path(target).name}")
            return Path(place(self, target))

        return placed

    def called(self: Session, event: str) -> None:
        folder = Path(self.save_dir).name
        if event == Event.GRADIENTS:
            reached(f"batch of {folder}, epoch {self.epoch + 1}")
        if event == "on_fit_epoch_end":
            reached(f"end of {folder}, epoch {self.epoch + 1}")
        run_callbacks(self, event)

    def trained_briefly(*args: Any, **options: Any) -> None:
        reached("short fine-tune")
        briefly(*args, **options)

    def quantized(*args: Any, **options: Any) -> Path:
        reached("int8 file")
        return quantize(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", appended)
        for name in ("replace", "rename"):
            patch.setattr(Path, name, placing(name))
        patch.setattr(Session, "run_callbacks", called)
        patch.setattr(autoprune.workflows.netadapt_steps, "train_briefly", trained_briefly)
        patch.setattr(SubprocessBackend, "quantize", quantized)
        yield


def run(words: list[str], cache: Path) -> tuple[int, list[str]]:
    """Run a command on the device in closed form; return its exit code and the phases that it went through."""
    phases: list[str] = []
    with quick_commands(cache), watched(phases.append):
        return main(words), phases


def _killing(phase: str, count: int, number: int, journal: Path) -> Reached:
    """Return what ends this process at a moment; SIGKILL in the middle of a record leaves its first half."""
    counts: Counter[str] = Counter()

    def reached(now: str) -> None:
        counts[now] += 1
        if (now, counts[now]) == (phase, count):
            if number == signal.SIGKILL and now.startswith("record "):
                with journal.open("ab") as file:
                    file.write(f'{{"kind": "{now.removeprefix("record ")}", "ke'.encode())
            os.kill(os.getpid(), number)

    return reached


def _main(order: dict[str, Any]) -> int:
    killing = _killing(order["phase"], order["count"], order["signal"], Path(order["journal"]))
    with quick_commands(Path(order["cache"])), watched(killing):
        return main(order["words"])


if __name__ == "__main__":
    sys.exit(_main(json.loads(sys.argv[1])))
