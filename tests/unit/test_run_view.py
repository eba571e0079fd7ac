"""What the command line tells of where a run stands."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from autoprune.cli import terminal
from autoprune.cli.run_view import Bar, RunView, about
from autoprune.cli.terminal import Terminal
from autoprune.config import SearchConfig
from autoprune.listener import Relay, SilentListener, hearing, step_bar, tracked
from autoprune.workflows.run_log import RunListener


class Clock:
    """Tells the time that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bar_of_long_steps_tells_the_time_left() -> None:
    clock = Clock()
    bar = Bar("Fine-tuning", 4, clock)
    clock.now = 100.0
    assert bar.left() is None
    assert bar.left(0.5) == pytest.approx(700.0)  # half an epoch took 100 s
    bar(1)
    clock.now = 160.0
    assert bar.left() == pytest.approx(3 * 100 - 60)


def test_what_was_known_already_says_nothing_of_the_rest() -> None:
    clock = Clock()
    bar = Bar("Search", 10, clock)
    for done in range(1, 6):
        clock.now += 0.001
        bar(done)
    clock.now += 20
    bar(6)
    assert bar.left() == pytest.approx(80.0)


def test_the_time_left_of_the_run_follows_from_what_its_stages_took() -> None:
    clock = Clock()
    view = RunView(clock)
    view.stages({"open": 10.0, "search": 30.0, "train": 60.0})
    view.stage("open")
    clock.now = 20.0
    view.stage("search")
    assert view.title == "[2/3] search"
    view.bars.append(bar := Bar("Search", 10, clock))
    clock.now = 50.0
    bar(5)
    assert view.stage_left() == pytest.approx(30.0)
    assert view.run_left() == pytest.approx(30.0 + 60.0 * 50 / 25)


def test_a_first_unit_that_takes_long_makes_the_run_no_slower() -> None:
    clock = Clock()
    view = RunView(clock)
    view.stages({"open": 10.0, "choose": 30.0, "measure": 20.0})
    view.stage("open")
    clock.now = 20.0
    view.stage("choose")
    view.bars.append(Bar("int8", 46, clock))
    assert view.run_left() == pytest.approx(100.0)
    clock.now = 40.0
    assert view.run_left() == pytest.approx(80.0)
    clock.now = 120.0
    assert view.run_left() == pytest.approx(40.0), "the stage takes longer than was guessed"


def test_nothing_is_told_before_there_is_something_to_tell_it_from() -> None:
    view = RunView(Clock())
    view.stages({"open": 10.0, "search": 30.0})
    view.stage("open")
    assert (view.run_left(), about(None)) == (None, "")


def test_without_a_terminal_a_line_comes_while_nothing_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "PULSE", 0.2)
    shown = Terminal()
    shown.stage("Search")
    with shown.progress("Search", 7) as advance:
        advance(3, "best score +0.1")
        out, patience = "", time.monotonic() + 30
        while "3/7" not in out and time.monotonic() < patience:
            time.sleep(0.02)
            out += capsys.readouterr().out
    shown.close()
    assert "[1/1] Search 0:0" in out
    assert "Search 3/7 best score +0.1" in out


def test_quiet_leaves_warnings_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Terminal()
    shown.quiet = True
    shown.stage("Search")
    shown.note("a note")
    shown.debug("a detail")
    shown.warn("a warning")
    shown.table("results", ["", "dense"], [["FLOPs", "1 G"]])
    shown.close()
    out, err = capsys.readouterr()
    assert "note" not in out
    assert "Search" not in out
    assert "FLOPs" in out
    assert err == "a warning\n"


def test_names_from_files_do_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Terminal()
    shown.note("a\x1b]52;c;x\x07b")
    shown.warn("a\x1b[2Jb\x9b")
    shown.table("c\x1b[1m", ["", "d\r"], [["e\x00", "f"]])
    shown.close()
    out, err = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b", "\r", "\x00"} & set(out + err)
    assert err == "a\ufffd[2Jb\ufffd\n"


def test_the_log_has_everything_with_times_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    for number in (1, 2):
        with RunListener(SilentListener(), f"autoprune search {number}") as heard:
            heard.note(f"before the folder {number}")
            heard.opened(tmp_path, SearchConfig(budget=("flops=50%",), tensorboard=False))
            heard.debug("a detail")
            heard.stage("Search")
            heard.table("results", ["", "dense"], [["FLOPs", "1 G"]])
    text = (tmp_path / "run.log").read_text()
    assert text.index("autoprune search 1") < text.index("before the folder 1") < text.index("autoprune search 2")
    assert text.count("debug: a detail") == text.count("stage: Search") == text.count("FLOPs") == 2
    assert all(line[:4].isdigit() for line in text.splitlines() if "detail" in line)


def test_a_warning_that_holds_for_every_iteration_is_heard_once() -> None:
    class Warnings(SilentListener):
        heard: list[str] = []  # noqa: RUF012 (one run)

        def warn(self, text: str) -> None:
            self.heard.append(text)

    with RunListener(Warnings(), "autoprune netadapt") as heard:
        for text in ("a layer is left out", "the machine is noisy", "a layer is left out"):
            heard.warn(text)
    assert Warnings.heard == ["a layer is left out", "the machine is noisy"]


def test_listeners_without_the_later_methods_still_hear_the_others() -> None:
    class Old:
        heard: list[str]

        def note(self, text: str) -> None:
            self.heard = [text]

    old = Old()
    relay = Relay(old)  # type: ignore[arg-type]
    for call in (
        lambda: relay.debug("x"),
        lambda: relay.stage("x"),
        lambda: relay.log(1, {}),
        lambda: relay.stages({}),
    ):
        call()
    relay.note("heard")
    assert old.heard == ["heard"]


def test_bars_deep_inside_reach_the_listener_of_the_command() -> None:
    shown = Terminal()
    shown.quiet = True
    with hearing(shown), step_bar("Outer", 2):
        for item in tracked((one for one in "ab"), "Inner"):
            assert [bar.label for bar in shown._view.bars] == ["Outer", "Inner"], item
    assert shown._view.bars == []
