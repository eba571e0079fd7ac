"""The timing loop on a scripted clock: alternation, spread, bounds."""

from __future__ import annotations

import gc
import json
import time

import numpy as np
import pytest

from autoprune.latency.timing import (
    MeasurementConfig,
    PairedTiming,
    Timing,
    ratio_spread,
    time_alone,
    time_interleaved,
    time_pair,
    warm_up,
)
from autoprune.runtimes import Runner
from tests.helpers.fake_backend import Scripted


def test_networks_run_in_turn() -> None:
    log: list[str] = []
    runners = [Scripted([1.0], log, "dense"), Scripted([2.0], log, "candidate")]
    times = time_interleaved(runners, 3)
    assert log == ["dense", "candidate"] * 3
    np.testing.assert_array_equal(times, [[1.0, 2.0]] * 3)


def test_the_ratio_is_that_of_medians() -> None:
    timing = time_pair(Scripted([6.0, 6.0, 30.0]), Scripted([12.0, 12.0, 12.0, 99.0]), MeasurementConfig())
    assert timing.ratio == 0.5
    assert (timing.candidate.median, timing.dense.median) == (6.0, 12.0)
    assert timing.candidate.runs == timing.dense.runs == 40


def test_drift_meets_both_alike() -> None:
    slow = 1 + 0.4 * np.sin(np.arange(60) / 5)
    timing = time_pair(Scripted(list(8.0 * slow)), Scripted(list(10.0 * slow)), MeasurementConfig())
    assert timing.ratio == pytest.approx(0.8)


def test_a_noisy_machine_gets_more_runs_and_then_a_note() -> None:
    noise = np.random.default_rng(0).lognormal(0.0, 0.8, 500)
    timing = time_pair(Scripted(list(5.0 * noise)), Scripted(list(10.0 * noise[::-1])), MeasurementConfig(max_runs=70))
    assert timing.candidate.runs == 70
    assert timing.spread > 0.025
    assert timing.note is not None
    assert "70 pairs" in timing.note


def test_outliers_count_and_are_told() -> None:
    timing = time_pair(
        Scripted([5.0, 5.1, 5.2, 4.9]), Scripted([*[10.0, 10.2, 9.9, 10.1] * 2, 35.0]), MeasurementConfig()
    )
    assert timing.candidate.outliers == 0
    assert timing.dense.outliers == len(range(8, 46, 9)), "the warm-up took six, every ninth run is slow"
    assert timing.dense.p90 > 10.2, "they are not left out"
    assert timing.dense.scaled(2.0).outliers == timing.dense.outliers
    assert Timing.of(np.full(40, 3.0)).outliers == 0
    slow = np.random.default_rng(0).lognormal(0.0, 0.8, 500)
    noisy = time_pair(Scripted(list(5.0 * slow)), Scripted(list(10.0 * slow[::-1])), MeasurementConfig(max_runs=70))
    outliers = noisy.candidate.outliers + noisy.dense.outliers
    assert outliers > 0
    assert noisy.note is not None
    assert f"({outliers} outliers among them)" in noisy.note


def test_a_network_that_does_not_run_as_asked_is_told_with_its_time() -> None:
    candidate = Scripted([6.0])
    candidate.note = "the network runs eagerly"
    assert time_pair(candidate, Scripted([12.0]), MeasurementConfig()).note == "the network runs eagerly"
    noise = list(np.random.default_rng(0).lognormal(0.0, 0.8, 500))
    candidate = Scripted(noise)
    candidate.note = "the network runs eagerly"
    note = time_pair(candidate, Scripted(noise[::-1]), MeasurementConfig(max_runs=70)).note
    assert note is not None
    assert note.startswith("the network runs eagerly; the machine is noisy")


def test_more_runs_stop_once_the_ratio_is_known() -> None:
    noise = np.random.default_rng(0).lognormal(0.0, 0.2, 997)
    timing = time_pair(Scripted(list(0.5 * noise)), Scripted(list(noise[::-1])), MeasurementConfig(max_runs=2000))
    assert 40 < timing.candidate.runs < 2000
    assert timing.spread <= 0.025
    assert timing.note is None


def test_slow_networks_are_bounded_in_seconds() -> None:
    timing = time_pair(Scripted([2000.0]), Scripted([3000.0]), MeasurementConfig(seconds=6.0))
    assert timing.candidate.runs == MeasurementConfig().least


def test_a_reference_takes_all_runs_it_may() -> None:
    assert time_alone(Scripted([1.0]), MeasurementConfig(max_runs=100)).runs == 100
    assert time_alone(Scripted([1000.0]), MeasurementConfig(seconds=25.0, max_runs=100)).runs == 30


def test_warm_up_stops_when_times_are_stable() -> None:
    falling = Scripted([50.0, 40.0, 30.0, 20.0, 15.0, 12.0, *[10.0] * 50])
    assert 8 <= warm_up(falling, 30) <= 12
    assert warm_up(Scripted([10.0]), 30) == 6
    assert warm_up(Scripted([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]), 8) == 8


def test_spread_is_zero_without_noise_and_the_same_every_time() -> None:
    assert ratio_spread(np.tile([[4.0, 2.0]], (40, 1))) == 0.0
    times = np.random.default_rng(1).lognormal(size=(40, 2))
    assert ratio_spread(times) == ratio_spread(times) > 0


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_during_runs(enabled: bool) -> None:
    class Watching(Runner):
        def elapsed(self) -> float:
            assert not gc.isenabled()
            return 1.0

    (gc.enable if enabled else gc.disable)()
    try:
        time_interleaved([Watching()], 2)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_timings_survive_json() -> None:
    timing = time_pair(Scripted([1.0, 1.1, 1.3]), Scripted([3.0, 3.1]), MeasurementConfig())
    assert PairedTiming.from_json(json.loads(json.dumps(timing.to_json()))) == timing
    assert Timing.from_json(json.loads(json.dumps(timing.dense.to_json()))) == timing.dense


class Watch:
    """Sees other processes disturb every measurement."""

    def disturbs(self, threads: int) -> bool:
        return True


def test_under_load_the_runs_that_did_not_wait_count_and_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [0.0, 40.0, 25.0, 60.0, 33.0, 18.0]  # the median run waits for a core
    candidate, dense = [6.0 + wait for wait in waits], [12.0 + wait for wait in waits[1:] + waits[:1]]
    idle = time_pair(Scripted(candidate), Scripted(dense), MeasurementConfig(warm_up=6))
    monkeypatch.setattr("autoprune.latency.timing.LoadWatch", Watch)
    loaded = time_pair(Scripted(candidate), Scripted(dense), MeasurementConfig(warm_up=6))
    assert not idle.under_load
    assert idle.ratio > 0.7
    assert loaded.under_load
    assert loaded.ratio == 0.5
    assert loaded.candidate.median == loaded.candidate.p10 == 6.0
    assert PairedTiming.from_json(json.loads(json.dumps(loaded.to_json()))) == loaded
    assert time_alone(Scripted(dense), MeasurementConfig()).under_load


class InThread(Scripted):
    """Computes in this thread for a while, and says that it waited long for that."""

    in_thread = True

    def elapsed(self) -> float:
        start = time.thread_time()
        while time.thread_time() < start + 1e-3 * self.times[0]:
            pass
        return 100.0


def test_under_load_a_single_thread_is_timed_by_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MeasurementConfig(runs=10, max_runs=10, warm_up=2)
    assert time_alone(InThread([1.0]), config).median == 100.0
    monkeypatch.setattr("autoprune.latency.timing.LoadWatch", Watch)
    assert 1.0 <= time_alone(InThread([1.0]), config).median < 5.0
    assert 0.2 < time_pair(InThread([1.0]), InThread([2.0]), config).ratio < 0.9
    mixed = time_pair(InThread([1.0]), Scripted([50.0]), config)
    assert (mixed.candidate.median, mixed.dense.median) == (100.0, 50.0), "both by one clock"


def test_the_slow_runs_are_kept_as_a_percentile() -> None:
    timing = Timing.of(np.arange(1.0, 101.0))
    assert (timing.median, timing.p95) == pytest.approx((50.5, 95.05))
    assert timing.scaled(2.0).p95 == pytest.approx(190.1)
    assert Timing.from_json(timing.to_json()) == timing


def test_a_command_is_run_a_few_times_only() -> None:
    assert MeasurementConfig().of_means() == MeasurementConfig(runs=3, least=3, max_runs=6, warm_up=0)
    stage = MeasurementConfig(runs=80, max_runs=240).of_means()
    assert stage.runs == 4
    assert time_pair(Scripted([1.0]), Scripted([2.0]), stage).candidate.runs == 4
    assert time_pair(Scripted([1.0, 3.0]), Scripted([2.0]), stage).candidate.runs == 12
