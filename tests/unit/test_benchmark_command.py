"""A program of the user's as a runtime: its words, its output, its faults, and a search's measurements on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import nn

from autoprune.benchmark_command import BenchmarkCommand, placed
from autoprune.budget import Budget
from autoprune.choices import Runtime
from autoprune.config import ProfileConfig, SearchConfig
from autoprune.errors import ConfigError, DeviceError
from autoprune.latency import LatencyMeter
from autoprune.runtimes import RuntimeSettings, fingerprint, open_backend, runtime_settings
from autoprune.runtimes.command import CommandBackend
from autoprune.runtimes.hosts import BoardLostError, LocalHost, Output, SshHost, board_at
from autoprune.runtimes.settings import fingerprint_key
from autoprune.workflows.measuring import settings_of as settings_on
from tests.helpers.board import FakeBoard, fake_board
from tests.helpers.packages import need
from tests.helpers.processes import ended, wait_for

SHAPE = (1, 3, 32, 48)


def network(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.SiLU(), nn.Conv2d(width, 8, 1)).eval()


def settings_of(text: str, pattern: str = "", timeout: float = 20.0) -> RuntimeSettings:
    command = BenchmarkCommand.parse(text, pattern, timeout)
    return runtime_settings("cpu", image_size=SHAPE[1:], runtime=command, threads=2)


class FakeHost(LocalHost):
    """This machine, whose programs are a function."""

    def __init__(self, run: Callable[[Sequence[str]], Output]) -> None:
        self._run = run

    def run(self, argv: Sequence[str], timeout: float) -> Output:
        return self._run(argv)


def script(folder: Path, *lines: str) -> str:
    """Return the command line of a Python script, without its arguments."""
    file = folder / "bench it.py"
    file.write_text("\n".join(["import os, sys, time", *lines]))
    return f"{sys.executable} '{file}'"


# -- words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bench {onxx}", r"knows the placeholders \{onnx\}, .*\{threads\}, got \{onxx\}"),
        ("bench --size {imgsz}", "must name the network's file, one of {onnx}"),
        ("bench '{onnx}", "must be words as a shell has them"),
    ],
)
def test_a_malformed_command_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchmarkCommand.parse(text)


@pytest.mark.parametrize("pattern", ["(", "no group", "(two) (groups)"])
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="`runtime_pattern` must"):
        BenchmarkCommand.parse("bench {onnx}", pattern)


@pytest.mark.parametrize(
    ("output", "pattern", "found"),
    [
        ("1\n2.5 ms\n", "", 2.5),
        ("took 7ms", "", 7.0),
        ("mean = 1.25e1", "", 12.5),
        ("[ INFO ]    Median:        4.64 ms\n[ INFO ]    Max: 9 ms", r"Median:\s+([\d.]+)", 4.64),
        ("12.5 ms.", "", 12.5),
        ("mean 12.5, done", "", 12.5),
        ("mean 3.2ms (312.5fps)", "", 3.2),
        ("mean 3.2 ms, 312.5 fps", "", 3.2),
        ("p50 3.2 msec\np95 4.5 milliseconds\n100 runs", "", 4.5),
        ("0.0 ms of 12.5", "", 12.5),
        ("850.25us", "", None),
        ("12.5s", "", None),
        ("loaded in 3 s, mean 12,5 ms", "", None),
        ("1,234.5 ms", "", None),
        ("mean 3.2 ms, onnxruntime 1.17.0", "", 3.2),
        ("model-v8n.onnx", "", None),
        ("0", "", None),
        ("Median: fast", r"Median: (\w+)", None),
    ],
)
def test_the_last_number_or_the_patterns_last_match_is_read(output: str, pattern: str, found: float | None) -> None:
    assert BenchmarkCommand.parse("bench {onnx}", pattern).milliseconds(output) == found


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (("mean 12.5 ms\nerrors: 0\n", "WARNING: 2 nodes fell back"), 12.5),
        (("mean 12.5 ms\nerrors: 0.0\n", ""), 12.5),
        (("mean 12,5 ms\n", "using 4 threads\n"), None),
        (("errors: 0\n", "mean 4 ms\n"), 4.0),
        (("done\n", "mean 4 ms\n"), 4.0),
    ],
)
def test_errors_are_read_only_where_the_output_has_no_number(outputs: tuple[str, ...], found: float | None) -> None:
    assert BenchmarkCommand.parse("bench {onnx}").milliseconds(*outputs) == found


def test_files_named_in_a_command_are_found_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "bench.py").touch()
    assert placed("python bench.py {onnx}", tmp_path) == f"python {tmp_path / 'bench.py'} '{{onnx}}'"
    assert placed("./bench.py {onnx}", tmp_path) == f"{tmp_path / 'bench.py'} '{{onnx}}'"


def test_a_program_on_the_path_is_not_replaced_by_a_file_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").touch()
    monkeypatch.chdir(tmp_path)
    assert placed("python bench.py {onnx}", tmp_path) == "python bench.py {onnx}"
    assert BenchmarkCommand.parse("python bench.py {onnx}").files == ()


# -- options -----------------------------------------------------------------------------------------


def test_a_command_is_what_latency_is_measured_on() -> None:
    config = ProfileConfig(runtime_command="bench {onnx}", runtime_pattern="([0-9]+) ms", runtime_timeout=3)
    assert config.measured_on == BenchmarkCommand("bench {onnx}", "([0-9]+) ms", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": Runtime.OPENVINO, "runtime_command": "bench {onnx}"}, "and so is `runtime` openvino"),
        ({"runtime": Runtime.COMMAND}, "say which with `runtime_command`"),
        ({"runtime_pattern": "(.*)"}, "`runtime_pattern` belongs to `runtime_command`"),
        ({"runtime_timeout": 3.0}, "`runtime_timeout` belongs to `runtime_command`"),
        ({"runtime_command": "bench {onnx}", "runtime_timeout": 0.0}, "`runtime_timeout` must be above 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig(budget=("latency=60%",), **options)  # type: ignore[arg-type]


def test_a_command_has_a_fingerprint_of_its_own() -> None:
    settings = settings_of("bench {onnx}", "(.*)")
    others = [settings_of("bench {onnx} -t 1", "(.*)"), settings_of("bench {onnx}", "x(.*)")]
    assert len({fingerprint_key(fingerprint(one)) for one in (settings, *others)}) == 3
    assert fingerprint(settings) == fingerprint(settings_of("bench {onnx}", "(.*)", timeout=9.0))
    assert "command" not in runtime_settings("cpu", image_size=32).to_json(), "kept measurements stay valid"


@pytest.mark.parametrize("where", ["cpu", "board"])
def test_times_depend_on_what_writes_the_files_here(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a board, and of a command, which are given files that this machine has written."""
    with fake_board(tmp_path / "board", monkeypatch) as board:
        device = board.url if where == "board" else "cpu"
        runtime = BenchmarkCommand.parse("bench {ncnn_param} {pte}") if where == "cpu" else Runtime("ncnn")
        settings = runtime_settings(device, image_size=32, runtime=runtime)
        before = fingerprint(settings)
        monkeypatch.setattr("autoprune.runtimes.settings.version", lambda package: "99.0")
        assert fingerprint_key(fingerprint(settings)) != fingerprint_key(before)


@pytest.mark.parametrize(("metric", "runtime"), [("latency", "openvino"), ("latency@openvino", None)])
def test_a_runtime_of_cpus_is_measured_there_beside_a_gpu(metric: str, runtime: str | None) -> None:
    config = ProfileConfig(device="cuda:0", threads=1, runtime=Runtime(runtime) if runtime else None)
    assert settings_on(metric, config, (3, 32, 32)).device == "cpu"


def test_a_script_that_was_changed_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    settings = settings_of(f"{script(tmp_path, 'print(1)')} {{onnx}}")
    before = fingerprint(settings)
    assert fingerprint(settings) == before
    script(tmp_path, "print(2)")
    assert fingerprint(settings) != before


# -- running -----------------------------------------------------------------------------------------


def test_the_network_is_written_and_the_command_told_of_it(tmp_path: Path) -> None:
    need("onnx")
    lines = ("print(sys.argv[1:])", "print(os.path.getsize(sys.argv[1]) + os.path.getsize(sys.argv[2]))")
    numbers = "{imgsz} {height} {width} {batch} {threads}"
    seen: list[Sequence[str]] = []
    settings = settings_of(f"{script(tmp_path, *lines)} {{onnx}} {{torchscript}} {numbers}")
    backend = CommandBackend(settings, host=FakeHost(lambda argv: (seen.append(argv), LocalHost().run(argv, 20))[1]))
    with backend.session():
        runner = backend.prepare(network(), SHAPE)
        assert runner.elapsed() > 1000, "bytes of both files"
    onnx, traced, *told = seen[0][2:]
    assert told == ["32,48", "32", "48", "1", "2"]
    assert Path(onnx).name == "model.onnx"
    image = torch.rand(SHAPE)
    found = torch.jit.load(traced)(image)[0]  # type: ignore[no-untyped-call]
    assert found.shape == network()(image).shape
    del runner
    assert not Path(onnx).exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sys.exit('no such model')", "ended with exit code 1 .it last said: no such model."),
        ("os.kill(os.getpid(), 9)", "ended with signal 9 .it last said: nothing."),
        ("print('done')", "must print a number, milliseconds above 0, and did not .it last said: done."),
    ],
)
def test_a_command_that_fails_is_told_in_one_sentence(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message) as caught:
        CommandBackend(settings_of(f"{script(tmp_path, line)} {{torchscript}}")).prepare(network(), SHAPE).elapsed()
    assert len(str(caught.value).splitlines()) == 1


def test_a_program_that_is_not_there_is_told() -> None:
    runner = open_backend(settings_of("/nowhere/bench {torchscript}")).prepare(network(), SHAPE)
    with pytest.raises(DeviceError, match=r"/nowhere/bench must start on this machine, and does not .No such file"):
        runner.elapsed()


def test_a_command_that_takes_too_long_is_told() -> None:
    late = FakeHost(lambda _: Output(None, "loading", ""))
    backend = CommandBackend(settings_of("bench {torchscript}"), host=late)
    with pytest.raises(DeviceError, match=r"must end within 20 s and did not, .*it last said: loading"):
        backend.prepare(network(), SHAPE).elapsed()


def test_candidates_alternate_with_the_dense_network(tmp_path: Path) -> None:
    """The command takes as long as a network's file is large, on a machine that gets slower with every run."""
    order: list[int] = []

    def fake(argv: Sequence[str]) -> Output:
        order.append(Path(argv[1]).stat().st_size)
        return Output(0, f"{order[-1] * (1 + 0.001 * len(order))}\n", "")

    settings = settings_of("bench {torchscript}")
    backend = CommandBackend(settings, host=FakeHost(fake))
    meter = LatencyMeter(network(64), settings, cache=tmp_path, opener=lambda *_: backend)
    timing = meter.sample(lambda: network(8), [8])
    dense, candidate = order[0], order[1]
    assert order == [dense, candidate] * 3, "no run is spent on warming up"
    assert timing.ratio == pytest.approx(candidate / dense, rel=0.02)
    assert meter.reference.runs >= 3


# -- on a board --------------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBoard]:
    with fake_board(tmp_path / "board", monkeypatch) as made:
        yield made


def on(board: FakeBoard, text: str, timeout: float = 20.0) -> CommandBackend:
    command = BenchmarkCommand.parse(text, "", timeout)
    return CommandBackend(runtime_settings(board.url, image_size=32, runtime=command, threads=1))


def test_a_command_runs_on_the_board_with_the_networks_files(board: FakeBoard, tmp_path: Path) -> None:
    """The file is there once, its content is the network's, and no word is read by a shell."""
    lines = ("print(sys.argv[2], file=sys.stderr)", "print(os.path.getsize(sys.argv[1]), os.getcwd())", "print(3.5)")
    backend = on(board, f"{script(tmp_path, *lines)} {{torchscript}} '$(touch hacked); `id`' {{imgsz}}")
    runner = backend.prepare(network(), (1, 3, 32, 32))
    assert [runner.elapsed() for _ in range(3)] == [3.5] * 3
    (there,) = board.temporary.rglob("*.torchscript")
    assert there.read_bytes() == next(runner.folder.glob("*.torchscript")).read_bytes()
    assert not [*board.temporary.rglob("hacked")]
    assert "since" in SshHost(board.url).holder()
    del runner, backend
    assert SshHost(board.url).holder() == "", "other searches may go on"


def test_the_files_of_a_folder_stay_together(board: FakeBoard, tmp_path: Path) -> None:
    need("onnx", "openvino")
    lines = ("import glob", "weights = os.path.splitext(sys.argv[1])[0] + '.bin'", "print(os.path.getsize(weights))")
    runner = on(board, f"{script(tmp_path, *lines)} {{openvino_xml}}").prepare(network(), (1, 3, 32, 32))
    assert runner.elapsed() > 100


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sys.exit('no such model')", "must succeed on ssh://.* ended with exit code 1 .it last said: no such model."),
        ("print('done')", "must print on ssh://.* a number, milliseconds above 0, and did not .it last said: done."),
    ],
)
def test_a_command_that_fails_there_is_told(board: FakeBoard, tmp_path: Path, line: str, message: str) -> None:
    runner = on(board, f"{script(tmp_path, line)} {{torchscript}}").prepare(network(), (1, 3, 32, 32))
    with pytest.raises(DeviceError, match=message):
        runner.elapsed()


def test_a_program_that_is_not_there_is_told_with_the_board(board: FakeBoard) -> None:
    runner = on(board, "no-such-bench {torchscript}").prepare(network(), (1, 3, 32, 32))
    with pytest.raises(DeviceError, match=r"no-such-bench must start on ssh://.*, and does not .*No such file"):
        runner.elapsed()


@pytest.mark.parametrize("how", ["timeout", "lost"])
def test_a_command_that_hangs_there_is_killed_with_its_children(board: FakeBoard, tmp_path: Path, how: str) -> None:
    note = tmp_path / "pid"
    lines = ("import subprocess", f"open({str(note)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid) + ' ')")
    backend = on(
        board, f"{script(tmp_path, *lines, 'time.sleep(60)')} {{torchscript}}", 1.0 if how == "timeout" else 60
    )
    runner = backend.prepare(network(), (1, 3, 32, 32))
    if how == "timeout":
        with pytest.raises(DeviceError, match=r"must end on ssh://.* within 1 s and did not, so it was killed"):
            runner.elapsed()
    else:
        connection = board_at(board.url)._connection
        assert connection is not None

        def cut() -> None:
            wait_for(lambda: note.is_file() and note.read_text().endswith(" "))
            connection._process.terminate()

        cutter = Thread(target=cut)
        cutter.start()
        with pytest.raises(BoardLostError, match=r"The connection to ssh://.* was lost"):
            runner.elapsed()
        cutter.join()
    wait_for(lambda: ended(int(note.read_text())))


def test_a_lost_board_is_measured_again(board: FakeBoard, tmp_path: Path) -> None:
    """The connection is lost while the third run goes on; the network is sent anew over the next one."""
    counter = tmp_path / "runs"
    lines = (
        f"counter = {str(counter)!r}",
        "open(counter, 'a').write('.')",
        "len(open(counter).read()) == 3 and time.sleep(60)",
        "print(os.path.getsize(sys.argv[1]))",
    )
    settings = on(board, f"{script(tmp_path, *lines)} {{torchscript}}").settings
    meter = LatencyMeter(network(64), settings, cache=tmp_path / "cache")

    def cut() -> None:
        wait_for(lambda: counter.is_file() and len(counter.read_text()) == 3)
        board_at(board.url)._connection._process.terminate()  # type: ignore[union-attr]

    cutter = Thread(target=cut)
    cutter.start()
    assert meter.measure(lambda: network(8), "half").ratio < 1
    cutter.join()
    assert len(counter.read_text()) == 3 + 6


def test_words_of_a_board_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench.py").touch()
    monkeypatch.chdir(tmp_path)
    text = "python bench.py {onnx}"
    assert ProfileConfig(device="ssh://cam1", runtime_command=text).runtime_command == text
    assert str(tmp_path) in ProfileConfig(runtime_command=text).runtime_command


def test_a_budget_names_the_command_on_a_board(board: FakeBoard) -> None:
    config = ProfileConfig(runtime_command="bench {onnx}", threads=1)
    settings = settings_on(f"latency@{board.url}/command", config, (3, 32, 32))
    assert (settings.device, settings.command) == (board.url, config.command)
    assert Budget.parse([f"latency@{board.url}/command=60%"]).texts
