"""A program of the user's as a runtime: its words, its output, its faults, and a search's measurements on it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.benchmark_command import BenchmarkCommand, placed
from autoprune.choices import Runtime
from autoprune.config import ProfileConfig, SearchConfig
from autoprune.errors import ConfigError, DeviceError
from autoprune.latency import LatencyMeter
from autoprune.runtimes import RuntimeSettings, fingerprint, open_backend, runtime_settings
from autoprune.runtimes.command import CommandBackend
from autoprune.runtimes.execution import Execution, execute
from autoprune.runtimes.settings import fingerprint_key
from tests.helpers.packages import need
from tests.helpers.processes import ended, wait_for

SHAPE = (1, 3, 32, 48)


def network(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.SiLU(), nn.Conv2d(width, 8, 1)).eval()


def settings_of(text: str, pattern: str = "", timeout: float = 20.0) -> RuntimeSettings:
    command = BenchmarkCommand.parse(text, pattern, timeout)
    return runtime_settings("cpu", image_size=SHAPE[1:], runtime=command, threads=2)


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
        ("model-v8n.onnx", "", None),
        ("0", "", None),
        ("Median: fast", r"Median: (\w+)", None),
    ],
)
def test_the_last_number_or_the_patterns_last_match_is_read(output: str, pattern: str, found: float | None) -> None:
    assert BenchmarkCommand.parse("bench {onnx}", pattern).milliseconds(output) == found


def test_files_named_in_a_command_are_found_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "bench.py").touch()
    assert placed("python bench.py {onnx}", tmp_path) == f"python {tmp_path / 'bench.py'} '{{onnx}}'"


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


def test_settings_are_kept_and_a_command_has_a_fingerprint_of_its_own() -> None:
    settings = settings_of("bench {onnx}", "(.*)")
    assert RuntimeSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    others = [settings_of("bench {onnx} -t 1", "(.*)"), settings_of("bench {onnx}", "x(.*)")]
    assert len({fingerprint_key(fingerprint(one)) for one in (settings, *others)}) == 3
    assert fingerprint(settings) == fingerprint(settings_of("bench {onnx}", "(.*)", timeout=9.0))
    assert "command" not in runtime_settings("cpu", image_size=32).to_json(), "kept measurements stay valid"


# -- running -----------------------------------------------------------------------------------------


def test_the_network_is_written_and_the_command_told_of_it(tmp_path: Path) -> None:
    need("onnx")
    lines = ("print(sys.argv[1:])", "print(os.path.getsize(sys.argv[1]) + os.path.getsize(sys.argv[2]))")
    numbers = "{imgsz} {height} {width} {batch} {threads}"
    backend = CommandBackend(settings_of(f"{script(tmp_path, *lines)} {{onnx}} {{torchscript}} {numbers}"))
    seen: list[Sequence[str]] = []

    def noting(argv: Sequence[str], timeout: float) -> Execution:
        seen.append(argv)
        return execute(argv, timeout)

    backend.execute = noting
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
    with pytest.raises(DeviceError, match=r"/nowhere/bench does not .No such file"):
        runner.elapsed()


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_a_hung_command_is_killed_with_its_children() -> None:
    child = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    start = time.perf_counter()
    done = execute([sys.executable, "-c", f"import time; {child}"], 3.0)
    assert done.code is None
    assert time.perf_counter() - start < 30
    wait_for(lambda: ended(int(done.out)))
    late = replace(done, out="loading")
    backend = CommandBackend(settings_of("bench {torchscript}"), execute=lambda *_: late)
    with pytest.raises(DeviceError, match=r"must end within 20 s and did not, .*it last said: loading"):
        backend.prepare(network(), SHAPE).elapsed()


def test_candidates_alternate_with_the_dense_network(tmp_path: Path) -> None:
    """The command takes as long as a network's file is large, on a machine that gets slower with every run."""
    order: list[int] = []

    def fake(argv: Sequence[str], _: float) -> Execution:
        order.append(Path(argv[1]).stat().st_size)
        return Execution(0, f"{order[-1] * (1 + 0.001 * len(order))}\n", "")

    settings = settings_of("bench {torchscript}")
    backend = CommandBackend(settings, execute=fake)
    meter = LatencyMeter(network(64), settings, cache=tmp_path, opener=lambda *_: backend)
    timing = meter.sample(lambda: network(8), [8])
    dense, candidate = order[0], order[1]
    assert order == [dense, candidate] * 3, "no run is spent on warming up"
    assert timing.ratio == pytest.approx(candidate / dense, rel=0.02)
    assert meter.reference.runs >= 3
