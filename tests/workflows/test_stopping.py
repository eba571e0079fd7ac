"""Signals that ask to stop: a sentence, the command to go on with, an exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autoprune.cli.main import main
from autoprune.cli.stopping import stoppable
from autoprune.evaluation.evaluator import Evaluator
from tests.helpers.world import arguments

TIMEOUT = 120.0
"""Seconds that a busy machine may take to get to where a process is stopped."""


# -- the handlers ----------------------------------------------------------------------------------


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handled(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Set handlers of signals for a while; the tests themselves may run in the background, where some are ignored."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


DEFAULT = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_interrupts_once(number: signal.Signals, code: int) -> None:
    with handled(DEFAULT):
        with stoppable() as stop:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
            for again in SIGNALS:
                os.kill(os.getpid(), again)  # while it cleans up
        assert stop.exit_code == code
        os.kill(os.getpid(), number)  # and at the process's exit


def test_a_stop_that_takes_too_long_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.cli.stopping.GRACE", -1.0)
    with handled(DEFAULT):
        with stoppable() as stop:
            for number in (signal.SIGTERM, signal.SIGINT):
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
        assert stop.exit_code == 143, "of the first one"


def test_what_is_ignored_stays_so_and_the_handlers_are_put_back() -> None:
    with handled({**DEFAULT, signal.SIGINT: signal.SIG_IGN}):
        with stoppable():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
        with handled({**DEFAULT, **dict.fromkeys(ignoring, signal.SIG_IGN)}):  # the process inherits what is ignored
            self.process = subprocess.Popen(
                [sys.executable, "-m", "autoprune", *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,
            )

    def wait_for(self, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not there():
            assert self.process.poll() is None, self.process.stderr.read() if self.process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ended(self) -> tuple[int, str]:
        """Return the exit code and the last line on standard error, after notes; nothing of the process may be left."""
        _, said = self.process.communicate(timeout=TIMEOUT)
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)
        others = ("torchinductor_", ".ses")  # torch and ONNX Runtime keep these from process to process
        assert [path for path in self.temporary.iterdir() if not path.name.startswith(others)] == []
        assert "Traceback" not in said
        return self.process.returncode, said.strip().splitlines()[-1]


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
    assert said == (f"autoprune: stopped; everything so far is kept, go on with: autoprune search --resume {out}")


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("netadapt", ("--initial-step", "0.3", "--short-term-steps", "0", "--budget", "flops=80%")),
        ("sensitivity", ("--ratios", "0.5,0.25")),
    ],
)
def test_ctrl_c_prints_the_command_that_resumes(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    options: tuple[str, ...],
) -> None:
    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "_score", interrupted)
    out = tmp_path / "run"
    assert main(arguments(command, tiny, out, *options)) == 130
    assert f"autoprune {command} --resume {out}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True], ids=["the process", "its group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_processes_of_runtimes_are_ended(
    tiny: Path, tmp_path: Path, root: Path, number: signal.Signals, whole_group: bool
) -> None:
    out = tmp_path / "run"
    words = arguments(
        "search",
        tiny,
        out,
        "--budget",
        "latency=70%",
        "--runtime",
        "onnxruntime",
        "--no-tensorboard",
        "--episodes",
        "9999",
    )
    command = Command(words, tmp_path, root)
    command.wait_for(has(out, "latency"))
    if whole_group:
        os.killpg(command.process.pid, number)
    else:
        command.process.send_signal(number)
    code, said = command.ended()
    assert code == 128 + number
    assert f"autoprune search --resume {out}" in said


@pytest.mark.slow
def test_a_fine_tune_is_stopped_and_goes_on(tiny: Path, tmp_path: Path, root: Path) -> None:
    out = tmp_path / "run"
    words = arguments("search", tiny, out, "--budget", "flops=60%", "--strategy", "uniform", "--finetune-epochs", "400")
    command = Command(words, tmp_path, root)
    command.wait_for((out / "finetune" / "weights" / "state.pt").exists)
    command.process.send_signal(signal.SIGHUP)
    code, said = command.ended()
    assert code == 129
    assert f"autoprune search --resume {out}" in said
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_a_command_that_cannot_be_resumed_says_that_it_was_interrupted(tiny: Path, tmp_path: Path, root: Path) -> None:
    words = ["export", "--model", str(tiny / "best.pt"), "--out", str(tmp_path / "out"), "--imgsz", "64"]
    command = Command(words, tmp_path, root)
    command.wait_for(lambda: (tmp_path / "out").exists())
    command.process.send_signal(signal.SIGTERM)
    code, said = command.ended()
    assert (code, said) == (143, "autoprune: interrupted")
    assert not (tmp_path / "out").exists()
