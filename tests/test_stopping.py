"""Signals that ask to stop: a sentence, the command to go on with, an exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoprune.cli import main
from autoprune.stopping import stoppable
from tests.world import arguments, one_sentence

TIMEOUT = 120.0
"""Seconds that a busy machine may take to get to where a process is stopped."""


# -- the handlers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_interrupts_once(number: signal.Signals, code: int) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with stoppable() as stop:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
            for again in before:
                os.kill(os.getpid(), again)  # while it cleans up
        assert stop.exit_code == code
        os.kill(os.getpid(), number)  # and at the process's exit
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_a_stop_that_takes_too_long_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.stopping.GRACE", -1.0)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGINT)
    try:
        with stoppable() as stop:
            for number in (signal.SIGTERM, signal.SIGINT):
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
        assert stop.exit_code == 143, "of the first one"
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGHUP, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


def test_what_is_ignored_stays_so_and_the_handlers_are_put_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM]
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])


def test_another_thread_leaves_the_handlers_alone() -> None:
    found: list[int] = []

    def work() -> None:
        with stoppable() as stop:
            found.append(stop.exit_code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [130]


# -- a command's process ---------------------------------------------------------------------------


class Command:
    """A command in a process group of its own, with a private folder for temporary files."""

    def __init__(
        self, words: list[str], folder: Path, root: Path, *, ignoring: tuple[signal.Signals, ...] = ()
    ) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(self.temporary)}
        environment.pop("YOLO_CONFIG_DIR", None)  # so that a private folder is made, which must go too
        before = [(number, signal.signal(number, signal.SIG_IGN)) for number in ignoring]  # as nohup … & does
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "autoprune", *words],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
            )  # fmt: skip
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def wait_for(self, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not there():
            assert self.process.poll() is None, self.process.stderr.read() if self.process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ended(self) -> tuple[int, str]:
        """Return the exit code and what was said on standard error; nothing of the process may be left."""
        _, said = self.process.communicate(timeout=TIMEOUT)
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)
        assert list(self.temporary.iterdir()) == []
        return self.process.returncode, said


def has(run: Path, kind: str) -> Callable[[], bool]:
    journal = run / "journal.jsonl"
    return lambda: journal.exists() and f'"kind": "{kind}"'.encode() in journal.read_bytes()


def test_sigterm_stops_a_run_started_in_the_background(tiny: Path, tmp_path: Path, root: Path) -> None:
    out = tmp_path / "run"
    words = arguments("search", tiny, out, "--budget", "flops=60%", "--no-tensorboard", "--episodes", "9999")
    command = Command(words, tmp_path, root, ignoring=(signal.SIGINT, signal.SIGHUP))
    command.wait_for(has(out, "evaluation"))
    for number in (signal.SIGINT, signal.SIGHUP):
        command.process.send_signal(number)
    time.sleep(0.2)
    assert command.process.poll() is None
    for _ in range(3):
        command.process.send_signal(signal.SIGTERM)
    code, said = command.ended()
    assert code == 143
    assert one_sentence(said) == (
        f"autoprune: stopped; everything so far is kept, go on with: autoprune search --resume {out}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True], ids=["the process", "its group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_processes_of_runtimes_are_ended(
    tiny: Path, tmp_path: Path, root: Path, number: signal.Signals, whole_group: bool
) -> None:
    out = tmp_path / "run"
    words = arguments(
        "search", tiny, out, "--budget", "latency=70%", "--runtime", "onnxruntime", "--no-tensorboard",
        "--episodes", "9999",
    )  # fmt: skip
    command = Command(words, tmp_path, root)
    command.wait_for(has(out, "latency"))
    if whole_group:
        os.killpg(command.process.pid, number)
    else:
        command.process.send_signal(number)
    code, said = command.ended()
    assert code == 128 + number
    assert f"autoprune search --resume {out}" in one_sentence(said)


@pytest.mark.slow
def test_a_fine_tune_is_stopped_and_goes_on(tiny: Path, tmp_path: Path, root: Path) -> None:
    out = tmp_path / "run"
    words = arguments("search", tiny, out, "--budget", "flops=60%", "--strategy", "uniform", "--finetune-epochs", "400")
    command = Command(words, tmp_path, root)
    command.wait_for((out / "finetune" / "weights" / "state.pt").exists)
    command.process.send_signal(signal.SIGHUP)
    code, said = command.ended()
    assert code == 129
    assert f"autoprune search --resume {out}" in one_sentence(said)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_a_command_that_cannot_be_resumed_says_that_it_was_interrupted(tiny: Path, tmp_path: Path, root: Path) -> None:
    words = ["export", "--model", str(tiny / "best.pt"), "--out", str(tmp_path / "out"), "--imgsz", "64"]
    command = Command(words, tmp_path, root)
    command.wait_for(lambda: (tmp_path / "out").exists())
    command.process.send_signal(signal.SIGTERM)
    code, said = command.ended()
    assert (code, one_sentence(said)) == (143, "autoprune: interrupted")
    assert not list((tmp_path / "out").iterdir())


def test_the_exit_code_tells_the_signal(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(
        "autoprune.commands.search.open_network", lambda *_, **__: os.kill(os.getpid(), 15), raising=False
    )
    monkeypatch.setattr("autoprune.commands.run.open_network", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert main(arguments("search", tiny, tmp_path / "run", "--budget", "flops=60%")) == 143
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "stopped; everything so far is kept" in one_sentence(capsys.readouterr().err)
