"""Energy as a budget: what counts it, what a network uses of it, and where it is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.budget import Budget, Limit
from autoprune.choices import COMMAND, Runtime
from autoprune.cli.main import main
from autoprune.errors import BudgetError, DeviceError
from autoprune.latency import LatencyMeter
from autoprune.latency.energy import WINDOW, EnergyMeter, EnergyRunner
from autoprune.metrics import format_amount
from autoprune.policy import Policy
from autoprune.runtimes import open_backend, runtime_settings
from autoprune.runtimes.energy import counter_of
from autoprune.runtimes.energy_counter import FOLDER, NoCounterError, PowerRails, find_counter
from autoprune.runtimes.load import LoadWatch
from autoprune.structure.space import Space
from tests.helpers.board import FakeBoard, fake_board
from tests.helpers.counters import RANGE, FakeRapl, overwrite, write_rails
from tests.helpers.fake_backend import SETTINGS, WATTS, Chain, FakeBackend, Scripted, opener
from tests.helpers.packages import need
from tests.helpers.toy import chain_graph
from tests.helpers.world import Device, arguments, one_sentence, records, summary

SPACE = Space(chain_graph((32, 32)), round_to=8)


@pytest.fixture
def sys_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which counters are looked for."""
    folder = tmp_path / "class"
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    return folder


# -- as it is written --------------------------------------------------------------------------------


def test_a_budget_names_energies() -> None:
    budget = Budget.parse(["energy=60%", "energy@openvino=0.025J", "ENERGY@ssh://Ann@nano1/OnnxRuntime=25mJ"])
    assert [limit.metric for limit in budget] == ["energy", "energy@openvino", "energy@ssh://Ann@nano1/onnxruntime"]
    assert [limit.value for limit in budget] == [0.6, 25.0, 25.0]
    assert format_amount("energy@openvino", 25) == "25.00 mJ"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy@p95=2J", "has no 95th percentile; write energy=60% or latency@p95=20ms"),
        ("energy@openvino@p95=60%", "has no 95th percentile"),
        ("energy=8ms", "unknown unit 'ms'; write energy= with 25mJ, 0.025J or 60%"),
        ("energy@tensorflow=60%", "Energy is measured on a runtime .torch, "),
    ],
)
def test_an_energy_that_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Limit.parse(text)


# -- counters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, RANGE - 1_000_000], ids=["plain", "starting again meanwhile"])
def test_rapl_counts_its_packages_only(sys_class: Path, start: int) -> None:
    rapl = FakeRapl(sys_class, start)
    assert find_counter().joules(lambda: rapl.spend(2.5)) == pytest.approx(2.5)


def test_all_packages_are_counted(sys_class: Path) -> None:
    first, second = FakeRapl(sys_class), FakeRapl(sys_class / "other")
    moved = sys_class / "powercap" / "intel-rapl:2"
    second.file.parent.rename(moved)
    second.files = [moved / "energy_uj"]
    assert find_counter().joules(lambda: (first.spend(1), second.spend(2))) == pytest.approx(3)  # type: ignore[func-returns-value,arg-type]


@pytest.mark.parametrize(
    ("rails", "watts"),
    [
        ({"VDD_IN": 10.0, "VDD_CPU_GPU_CV": 4.0, "VDD_SOC": 3.0}, 10.0),
        ({"VDD_GPU_SOC": 6.0, "VDD_CPU_CV": 4.0, "NC": 9.0}, 10.0),
    ],
    ids=["a rail of the whole module", "rails side by side"],
)
def test_power_is_integrated(sys_class: Path, rails: dict[str, float], watts: float) -> None:
    write_rails(sys_class, rails)
    now = [0.0]
    counter = find_counter(gpu=True)
    assert isinstance(counter, PowerRails)
    counter = PowerRails(counter._rails, clock=lambda: now[0])
    assert counter.joules(lambda: now.__setitem__(0, 0.5)) == pytest.approx(watts * 0.5)


def test_power_is_sampled_meanwhile(sys_class: Path) -> None:
    monitor = write_rails(sys_class, {"VDD_IN": 0.0})

    def act() -> None:
        overwrite(monitor / "curr1_input", "2000")
        time.sleep(0.1)
        overwrite(monitor / "curr1_input", "0")

    assert find_counter().joules(act) > 0.5 * 10 * 0.1, "it is 0 at both ends"


def test_without_a_counter_it_says_where_it_looked(sys_class: Path) -> None:
    write_rails(sys_class, {"VDD_IN": 1.0}, monitor="coretemp")
    with pytest.raises(NoCounterError, match=f"neither RAPL .{sys_class}/powercap/intel-rapl:.*limit latency or flops"):
        find_counter()


def test_a_processors_counter_knows_nothing_of_a_gpu(sys_class: Path) -> None:
    FakeRapl(sys_class)
    with pytest.raises(NoCounterError, match="that of a GPU is read on a Jetson only"):
        find_counter(gpu=True)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that everybody sees, and the rights of nobody in particular."""
    if not hasattr(os, "geteuid"):
        pytest.skip("rights are those of POSIX")
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o777)
        FakeRapl(folder).file.chmod(0o400 if root else 0)
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)


def test_a_counter_for_root_only_says_what_to_do(unprivileged: Path) -> None:
    with pytest.raises(NoCounterError) as caught:
        find_counter(folder=str(unprivileged))
    zones = f"{unprivileged}/powercap/intel-rapl:"
    assert str(caught.value) == (
        f"only root may read {zones}0/energy_uj; let others read it (sudo chmod a+r {zones}*/energy_uj)"
    )


def test_a_broken_counter_is_refused(sys_class: Path) -> None:
    FakeRapl(sys_class).file.write_text("?")
    with pytest.raises(NoCounterError, match="cannot be read"):
        find_counter()


# -- networks ----------------------------------------------------------------------------------------


class Counted(Scripted):
    """Takes a time, and remembers how often it ran between two readings."""

    def joules(self, runs: int) -> float:
        self.windows = [*getattr(self, "windows", []), runs]
        return 0.003 * runs


def test_a_network_runs_for_a_window_that_the_counter_resolves() -> None:
    network = Counted([2.0])
    runner = EnergyRunner(network)
    assert [runner.elapsed(), runner.elapsed()] == pytest.approx([3.0, 3.0]), "millijoules of one run"
    assert network.windows == [WINDOW / 0.002] * 2
    slow = Counted([5000.0])
    assert EnergyRunner(slow).elapsed() == pytest.approx(3.0)
    assert slow.windows == [1]


def test_a_counter_that_stands_still_is_refused(sys_class: Path) -> None:
    FakeRapl(sys_class)
    with pytest.raises(DeviceError, match=r"must rise while a network runs, and did not in 0\.4 s"):
        EnergyRunner(Scripted([2.0])).elapsed()


def test_a_counter_that_is_lost_ends_the_run(sys_class: Path) -> None:
    file = FakeRapl(sys_class).file
    runner = EnergyRunner(Scripted([2.0]))
    file.unlink()
    with pytest.raises(DeviceError, match=r"must be readable until the run is done, and is not .* go on with `resume`"):
        runner.elapsed()


def test_energies_and_times_of_a_network_do_not_mix(sys_class: Path, tmp_path: Path) -> None:
    backend = FakeBackend(SETTINGS)
    backend.rapl = FakeRapl(sys_class)
    dense, cache = Chain(SPACE, SPACE.dense), tmp_path / "cache"
    narrow = SPACE.allocation(SPACE.lower)
    times = LatencyMeter(dense, SETTINGS, cache=cache, opener=opener(backend))
    energies = EnergyMeter(dense, SETTINGS, cache=cache, opener=opener(backend), kind="energy")
    build = partial(Chain, SPACE, np.array(narrow))
    taken, used = times.sample(build, narrow), energies.sample(build, narrow)
    assert used.ratio == pytest.approx(taken.ratio, rel=1e-3)
    assert energies.reference.median == pytest.approx(WATTS * times.reference.median, rel=1e-3)
    assert len(list(cache.glob("*.json"))) == 2, "a file each"
    assert used.candidate.runs == 3, "a window is a mean of hundreds of runs"
    again = EnergyMeter(dense, SETTINGS, cache=cache, opener=opener(FakeBackend(SETTINGS)))
    assert again.sample(build, narrow) == used, "another search knows it"


def test_other_processes_on_free_cores_disturb_a_counter_of_the_whole_machine(
    sys_class: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HalfACoreOf64(LoadWatch):
        cores = range(64)

        def __init__(self) -> None:
            pass

        def busy(self) -> float:
            return 0.5

    monkeypatch.setattr("autoprune.latency.timing.LoadWatch", HalfACoreOf64)
    backend = FakeBackend(SETTINGS)
    backend.rapl = FakeRapl(sys_class)
    for meter, under_load in ((LatencyMeter, False), (EnergyMeter, True)):
        made = meter(Chain(SPACE, SPACE.dense), SETTINGS, cache=tmp_path, opener=opener(backend))
        assert made.reference.under_load == under_load


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 4, 3, 2, 1)).eval()


class Burning(threading.Thread):
    """Spends energy as time goes by."""

    def __init__(self, rapl: FakeRapl) -> None:
        super().__init__(daemon=True)
        self.rapl, self.done = rapl, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.002):
            self.rapl.spend(0.05)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()


def test_networks_in_this_process_are_counted(sys_class: Path) -> None:
    rapl = FakeRapl(sys_class)

    class Spending(Scripted):
        def elapsed(self) -> float:
            rapl.spend(0.003)
            return super().elapsed()

    assert EnergyRunner(Spending([50.0])).elapsed() == pytest.approx(3.0)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBoard]:
    with fake_board(tmp_path / "board", monkeypatch) as made:
        yield made


def test_a_board_counts_where_the_network_runs(board: FakeBoard, sys_class: Path, tmp_path: Path) -> None:
    need("onnxruntime")
    there = tmp_path / "there"
    rapl = FakeRapl(there)
    board.program.write_text(board.program.read_text().replace("exec sh", f'{FOLDER}="{there}" exec sh'))
    settings = runtime_settings(board.url, image_size=64, runtime=Runtime("onnxruntime"), threads=1)
    assert counter_of(settings) == "RAPL (whole processor packages)"
    backend = open_backend(settings)
    with backend.session(), Burning(rapl):
        runner = EnergyRunner(backend.prepare(network(), (1, 3, 64, 64)))
        assert runner.elapsed() > 0
        assert runner.watch() is not None, "its load is watched there"
    for zone in there.glob("powercap/*"):
        (zone / "name").unlink()
    with pytest.raises(DeviceError, match=f"must be counted by {board.url}, and there is none: neither RAPL .{there}"):
        counter_of(settings)


def test_a_command_does_not_say_how_often_it_runs_the_network(sys_class: Path) -> None:
    FakeRapl(sys_class)
    with pytest.raises(DeviceError, match="how often `runtime_command` runs it is not known; name a runtime, as in"):
        counter_of(replace(SETTINGS, runtime=COMMAND))


def test_the_script_for_boards_says_what_it_finds(sys_class: Path, root: Path) -> None:
    script = [sys.executable, root / "autoprune" / "runtimes" / "energy_counter.py"]
    assert '"missing": "there is none' in subprocess.run(script, capture_output=True, text=True, check=True).stdout
    write_rails(sys_class, {"VDD_IN": 1.0})
    assert '"name": "the board' in subprocess.run(script, capture_output=True, text=True, check=True).stdout


# -- in a search -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_search_holds_an_energy_next_to_a_latency(
    tiny: Path, tmp_path: Path, sys_class: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Device, "rapl", FakeRapl(sys_class, RANGE - 1))
    out = tmp_path / "run"
    budget = ("--budget", "energy=75%", "--budget", "latency=90%")
    assert main(arguments("search", tiny, out, "--episodes", "4", *budget)) == 0
    found = summary(out)
    assert [(row["metric"], row["satisfied"]) for row in found["budget"]] == [("energy", True), ("latency", True)]
    dense, pruned = (found.stages[name].latencies for name in ("dense", "pruned"))
    assert dense["energy"]["median"] == pytest.approx(WATTS * dense["latency"]["median"], rel=1e-3)
    assert 0.65 < pruned["energy"]["median"] / dense["energy"]["median"] <= 0.75
    assert set(found["search"]["latency_prediction_error"]) == {"energy", "latency"}
    assert Policy.load(out / "policy.json").costs["energy"].unit == "mJ"
    assert {record["kind"] for record in records(out, "energy")} == {"energy"}
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if "energy" in line and "%)" in line)
    assert row.count(" mJ") == 2
    assert "Energy on torch is predicted with" in (out / "run.log").read_text()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("command", ["search", "netadapt", "compare"])
def test_without_a_counter_a_run_is_refused_and_leaves_nothing(
    tiny: Path, tmp_path: Path, sys_class: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = tmp_path / "run"
    assert main(arguments(command, tiny, out, "--budget", "latency=60%", "--budget", "energy=60%")) == 2
    said = capsys.readouterr()
    assert "Energy must be counted by this machine, and there is none: neither RAPL" in one_sentence(said.err)
    assert not said.out, "nothing has begun"
    assert not out.exists()
