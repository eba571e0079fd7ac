"""Latency on boards: how they are named and refused, and measuring on a real sshd with a Python of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, active_count, current_thread, main_thread
from typing import Any

import pytest
import torch
from torch import nn

import autoprune as ap
from autoprune.benchmark_command import BenchmarkCommand
from autoprune.budget import Budget
from autoprune.choices import RUNTIMES, Precision, Runtime, is_board, split_target
from autoprune.cli.main import main
from autoprune.config import ProfileConfig, SearchConfig, SensitivityConfig
from autoprune.errors import BudgetError, ConfigError, DeviceError
from autoprune.latency.meter import MOST_LOSSES, LatencyMeter
from autoprune.latency.timing import MeasurementConfig
from autoprune.metrics import is_measured
from autoprune.runtimes import Runner, RuntimeSettings, runtime_settings
from autoprune.runtimes.hosts import BoardLostError, board_at
from autoprune.runtimes.settings import fingerprint
from autoprune.workflows.measuring import settings_of
from autoprune.workflows.network import choose_device
from tests.helpers.board import SSHD, Board, running_board
from tests.helpers.fake_backend import SETTINGS, FakeBackend, opener
from tests.helpers.packages import need

SHORT = MeasurementConfig(runs=10, max_runs=10, warm_up=6)


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 4, 3, 2, 1)).eval()


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ssh://cam1", "ssh://pi@cam1", "ssh://a.b-c@10.0.0.7:2222", "ssh://pi@[fe80::1]:22"])
def test_addresses_of_boards(name: str) -> None:
    assert is_board(name)
    assert SearchConfig(device=f"{name}/", budget=("flops=50%",)).device == name
    assert choose_device(name) == choose_device("auto"), "the board only measures"


@pytest.mark.parametrize(
    "name", ["ssh://", "ssh://-oProxyCommand=x", "ssh://pi@-h", "ssh://a b", "ssh://h:x", "ssh://a;b", "ssh://h/x/y"]
)
def test_other_addresses_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="`device` must be auto"):
        SearchConfig(device=name, budget=("flops=50%",))
    with pytest.raises(BudgetError, match=r"or on a board \(ssh://"):
        Budget.parse([f"latency@{name}=8ms"])
    with pytest.raises(ConfigError, match=r"`board` must be ssh://"):
        ap.doctor(name)


def test_a_command_that_measures_nothing_refuses_a_board() -> None:
    with pytest.raises(ConfigError, match="commands that measure latency with a `runtime`"):
        SensitivityConfig(device="ssh://pi@cam1")
    with pytest.raises(ConfigError, match="`device` must be auto"):
        ap.train(model="m.pt", data="d.yaml", policy="p.json", device="ssh://pi@cam1")


def test_a_budget_names_boards_and_runtimes_there() -> None:
    texts = ["LATENCY@SSH://Ann@cam1/OpenVINO=20ms", "latency@ssh://pi@cam2:22=60%", "latency=50%"]
    budget = Budget.parse([*texts, "Latency@ssh://Ann@cam1@P95=9ms"])
    assert [limit.metric for limit in budget] == [
        "latency@ssh://Ann@cam1/openvino",
        "latency@ssh://pi@cam2:22",
        "latency",
        "latency@ssh://Ann@cam1@p95",
    ]
    assert all(is_measured(limit.metric) for limit in budget)
    assert Budget.parse(budget.texts) == budget
    assert split_target("ssh://Ann@cam1/openvino") == ("ssh://Ann@cam1", "openvino")


@pytest.mark.parametrize("runtime", [spec.name for spec in RUNTIMES if not spec.on_boards])
def test_runtimes_that_need_torch_are_refused_before_anything_is_connected(runtime: str) -> None:
    with pytest.raises(DeviceError, match=rf"runtime {runtime} does not run on a board \(ssh://x\), where there are"):
        runtime_settings("ssh://x", image_size=32, runtime=Runtime(runtime))


# -- losses ------------------------------------------------------------------------------------------


class Losing(FakeBackend):
    """Loses the board in the middle of its first runs."""

    losses = 1

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        runner = super().prepare(module, shape)
        elapsed, runs = runner.elapsed, iter(range(20))

        def lost() -> float:
            if next(runs, 20) == 12 and self.losses:
                self.losses -= 1
                raise BoardLostError("The connection to ssh://x was lost")
            return elapsed()

        runner.elapsed = lost  # type: ignore[method-assign]
        return runner


def test_a_measurement_is_repeated_from_its_start() -> None:
    backend = Losing(SETTINGS)
    meter = LatencyMeter(network(), SETTINGS, opener=opener(backend), config=SHORT)
    timing = meter.measure(lambda: network(4), "half")
    assert (timing.candidate.runs, backend.losses) == (10, 0)
    assert backend.prepared == 4, "both networks are loaded anew"


def test_a_board_that_is_lost_again_and_again_ends_the_run() -> None:
    backend = Losing(SETTINGS)
    backend.losses = MOST_LOSSES
    with pytest.raises(BoardLostError):
        LatencyMeter(network(), SETTINGS, opener=opener(backend), config=SHORT).measure(lambda: network(4), "half")


# -- the next network is exported while this one is measured ---------------------------------------------


class Overlapping(FakeBackend):
    """Notes what happens; the first run of a network waits for the export that should go on meanwhile."""

    def __init__(self, settings: RuntimeSettings) -> None:
        super().__init__(settings)
        self.log: list[str] = []
        self.exported = Event()

    def export(self, module: nn.Module, shape: tuple[int, ...]) -> Callable[[], Runner]:
        here = current_thread() is main_thread()
        self.log.append(f"export {module[0].out_channels} {'now' if here else 'ahead'}")  # type: ignore[index]
        self.exported.set()
        return super().export(module, shape)

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        runner, width = super().prepare(module, shape), module[0].out_channels  # type: ignore[index]
        self.log.append(f"load {width}")
        elapsed = runner.elapsed

        def run() -> float:
            if (measured := f"measure {width}") not in self.log:
                self.log.append(measured)
            return elapsed()

        runner.elapsed = run  # type: ignore[method-assign]
        return runner


ON_BOARD = replace(SETTINGS, device="ssh://cam1")


def steps(device: RuntimeSettings, *, fails: int = 0) -> tuple[list[str], list[float | str]]:
    """Measure networks of 4, 5 and 6 channels one after the other; return what happened, and the ratios or errors."""

    def build(width: int) -> nn.Module:
        if width == fails:
            raise DeviceError(f"no network of {width}")
        return network(width)

    backend = Overlapping(device)
    meter = LatencyMeter(network(8), device, opener=opener(backend), config=SHORT)
    builds = [partial(build, width) for width in (4, 5, 6)]
    found: list[float | str] = []
    for one, following in zip(builds, [*builds[1:], None], strict=True):
        try:
            found.append(meter.measure(one, one.args, following=following).ratio)
        except DeviceError as error:
            found.append(str(error))
    return [line for line in backend.log if not line.endswith(" 8")], found


def test_a_board_measures_while_the_next_network_is_exported() -> None:
    log, ratios = steps(ON_BOARD)
    assert [line for line in log if line.startswith("export")] == ["export 4 now", "export 5 ahead", "export 6 ahead"]
    assert log.index("export 5 ahead") < log.index("load 5"), "it is loaded in its turn"
    assert log.index("measure 4") < log.index("load 5")
    assert ratios == steps(SETTINGS)[1], "the same networks in the same order"


def test_this_machine_is_not_disturbed_by_an_export_while_it_measures() -> None:
    log, _ = steps(SETTINGS)
    assert [line for width in (4, 5, 6) for line in (f"export {width} now", f"load {width}", f"measure {width}")] == log


def test_after_a_loss_the_next_network_is_exported_for_the_new_connection() -> None:
    """What was exported ahead belongs to the connection that is lost."""
    backends: list[Overlapping] = []

    class Lost(Overlapping):
        def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
            assert self is backends[-1], "loaded over a connection that is lost"
            runner = super().prepare(module, shape)
            elapsed, first = runner.elapsed, self is backends[0]

            def run() -> float:
                milliseconds = elapsed()
                if first and "measure 4" in self.log:
                    self.exported.wait(10)
                    raise BoardLostError("The connection to ssh://cam1 was lost")
                return milliseconds

            runner.elapsed = run  # type: ignore[method-assign]
            return runner

    def opened(settings: RuntimeSettings, _: Any) -> Lost:
        backends.append(Lost(settings))
        return backends[-1]

    meter = LatencyMeter(network(8), ON_BOARD, opener=opened, config=SHORT)
    builds = [partial(network, width) for width in (4, 5)]
    for build, following in zip(builds, [builds[1], None], strict=True):
        assert meter.measure(build, build.args, following=following).candidate.runs == 10
    assert len(backends) == 2


def test_an_export_that_fails_ahead_is_raised_for_its_own_network() -> None:
    _, found = steps(ON_BOARD, fails=5)
    assert [isinstance(one, float) for one in found] == [True, False, True]
    assert found[1] == "no network of 5"


def test_an_interrupted_measurement_leaves_no_thread() -> None:
    backend = Overlapping(ON_BOARD)
    meter = LatencyMeter(network(8), ON_BOARD, opener=opener(backend), config=SHORT)
    assert meter.reference
    started = active_count()

    def interrupt() -> None:
        backend.exported.wait(10)
        raise KeyboardInterrupt

    backend.slowness = interrupt  # type: ignore[assignment]
    backend.exported.clear()
    with pytest.raises(KeyboardInterrupt):
        meter.measure(lambda: network(4), "first", following=lambda: network(5))
    assert active_count() == started


# -- a real sshd -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    if SSHD is None:
        pytest.skip("needs sshd (Debian: openssh-server)")
    pytest.importorskip("onnxruntime")
    with running_board(tmp_path_factory.mktemp("board")) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(running.client), prepend=os.pathsep)
        yield running


@pytest.fixture
def board(running: Board) -> Iterator[Board]:
    """Lend the board, and leave nothing there for the next test."""
    yield running
    board_at(running.url).close()
    running.wait_until_left()


def test_networks_are_measured_there_and_a_cut_connection_is_survived(board: Board, tmp_path: Path) -> None:
    settings = runtime_settings(board.url, image_size=32)
    assert (settings.runtime.value, settings.threads) == ("onnxruntime", board_at(board.url).description["cores"])
    meter = LatencyMeter(network(32), settings, config=SHORT, cache=tmp_path)
    assert meter.reference.median > 0
    assert meter.measure(lambda: network(4), "first").candidate.runs == 10
    there = {process.name() for process in board.processes()}
    assert there, "the agent and the worker"
    board.cut()
    assert meter.measure(lambda: network(4), "second").candidate.runs == 10
    (worker,) = [process for process in board.processes() if "worker.py" in " ".join(process.cmdline())]
    worker.kill()
    assert meter.measure(lambda: network(4), "third").candidate.runs == 10
    assert meter.sample(lambda: network(4), [4]).ratio > 0


@pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: openssh-server)")
@pytest.mark.parametrize("package", ["ncnn", "ai_edge_litert"])
def test_a_board_needs_one_runtime_alone(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package)
    runtime = Runtime("ncnn" if package == "ncnn" else "litert")
    need("pnnx", "onnxruntime")
    with running_board(tmp_path, ("numpy", package, "backports")) as board:
        monkeypatch.setenv("PATH", str(board.client), prepend=os.pathsep)
        settings = runtime_settings(board.url, image_size=32, runtime=runtime, threads=1)
        meter = LatencyMeter(network(32), settings, config=SHORT, cache=tmp_path / "cache")
        assert meter.measure(lambda: network(4), "half").candidate.runs == 10
        with pytest.raises(DeviceError, match=r"needs the package onnxruntime on .*not installed there"):
            LatencyMeter(network(), runtime_settings(board.url, image_size=32), config=SHORT).reference  # noqa: B018
        board_at(board.url).close()
        board.wait_until_left()


def test_a_command_measures_there_and_a_cut_connection_is_survived(board: Board, tmp_path: Path) -> None:
    """The board's own Python runs the user's script; the network's file is there until the connection ends."""
    script, counter = tmp_path / "bench.py", tmp_path / "runs"
    script.write_text(f"import os, sys\nopen({str(counter)!r}, 'a').write('.')\nprint(os.path.getsize(sys.argv[1]))")
    command = BenchmarkCommand.parse(f"{board.home}/.autoprune/bin/python3 {script} {{torchscript}}")
    settings = runtime_settings(board.url, image_size=32, runtime=command)
    meter = LatencyMeter(network(32), settings, cache=tmp_path / "cache")
    assert 0 < meter.measure(lambda: network(4), "first").ratio < 1
    assert {path.suffix for path in board.files()} == {".torchscript"}
    board.cut()
    assert 0 < meter.measure(lambda: network(4), "second").ratio < 1
    assert len(counter.read_text()) == 12, "three pairs each"


def test_int8_is_quantised_here(board: Board) -> None:
    settings = runtime_settings(board.url, image_size=32, precision=Precision.INT8)
    assert LatencyMeter(network(), settings, config=SHORT).measure(lambda: network(4), "half").ratio > 0


def test_the_cache_knows_the_board_by_what_it_is(board: Board) -> None:
    values = fingerprint(runtime_settings(board.url, image_size=32))
    assert {"board", "cpu", "governor", "kernel", "onnxruntime", "torch"} <= set(values)
    assert board.url not in json.dumps(values)


def test_a_metric_of_a_board_is_measured_there(board: Board) -> None:
    config = ProfileConfig(device="cpu", threads=1)
    settings = settings_of(f"latency@{board.url}/onnxruntime", config, (3, 32, 32))
    assert (settings.device, settings.on_cpu, str(settings.computing)) == (board.url, True, "cpu")
    with pytest.raises(DeviceError, match=r"`threads` must be at most \d+, the CPU cores of ssh://"):
        runtime_settings(board.url, image_size=32, threads=5000)


def test_an_unknown_and_a_changed_key_are_never_accepted(board: Board, tmp_path: Path) -> None:
    known, url = board.configuration.parent / "known", board.url
    kept = known.read_text()
    board_at(url).close()
    try:
        for text, said in (("", "its host key is not known"), (_another_key(kept, tmp_path), "host key has changed")):
            known.write_text(text)
            with pytest.raises(DeviceError, match=said):
                board_at(url).round_trip()
            assert known.read_text() == text
    finally:
        known.write_text(kept)


def _another_key(line: str, folder: Path) -> str:
    import subprocess

    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "other"], check=True)
    return f"{line.split()[0]} {(folder / 'other.pub').read_text()}"


def test_the_doctor_looks_at_a_board(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", board.url, "--json"]) == 0
    (checks,) = json.loads(capsys.readouterr().out)["sections"].values()
    found: Mapping[str, Any] = {check["name"]: check for check in checks}
    assert found["onnxruntime"]["found"].endswith(": fp32, int8")
    assert found["openvino"]["state"] == "missing"
    assert "pip install openvino" in found["openvino"]["hint"]
    assert found["used by"]["found"] == "nobody"
    assert {"connection", "Python", "CPU", "governor", "temperature"} <= set(found)


def test_the_doctor_says_that_a_board_is_not_there(board: Board) -> None:
    (broken,) = ap.doctor("ssh://nobody@127.0.0.1:1").broken
    assert "must be reachable over SSH" in broken.found
