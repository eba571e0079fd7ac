"""Latency on a device in closed form: tables, fit, monotony, cache, replay."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.journal import Journal
from autoprune.latency import (
    LatencyCost,
    LatencyMeter,
    MeasurementConfig,
    PairedTiming,
    Sample,
    Timing,
    latency_predictor,
    spread_allocations,
)
from autoprune.latency.cache import ANCHOR, LatencyCache, look_up, measure_points
from autoprune.latency.features import LayerFeatures, deployed_layers
from autoprune.latency.predictor import RIDGE, _constrained, simplex_fit, spearman, uncertainty
from autoprune.latency.tables import Interpolation, Point, monotone, plan_grids
from autoprune.runtimes import MemoryFormat, Runner, Runtime
from autoprune.structure.graph import Layer, LayerKind
from autoprune.structure.space import Allocation, Space
from tests.contracts.costs import check_cost
from tests.helpers.fake_backend import SETTINGS, Chain, FakeBackend, opener
from tests.helpers.toy import chain_graph

SPACE = Space(chain_graph((64, 96, 128, 64, 192)), round_to=16)
EFFORT = MeasurementConfig(runs=20, max_runs=40)


def make_meter(backend: FakeBackend, folder: Path, **options: object) -> LatencyMeter:
    return LatencyMeter(
        Chain(SPACE, SPACE.dense), SETTINGS, config=EFFORT, cache=folder, opener=opener(backend), **options
    )  # type: ignore[arg-type]


def measured(meter: LatencyMeter, allocations: list[Allocation]) -> list[Sample]:
    return [
        Sample(allocation, meter.measure(lambda allocation=allocation: Chain(SPACE, np.array(allocation)), allocation))
        for allocation in allocations
    ]


def fitted(backend: FakeBackend, folder: Path, **options: object) -> tuple[LatencyCost, list[Sample]]:
    meter = make_meter(backend, folder, **options)
    tables = latency_predictor(SPACE, meter)
    samples = measured(meter, spread_allocations(SPACE, tables, number=24, seed=0, around=0.6))
    return tables.fit(samples[:10], focus=0.6), samples[10:]


def sample(ratio: float, allocation: Allocation, *, spread: float = 0.0, dense: float = 10.0) -> Sample:
    timing = PairedTiming(
        Timing(ratio * dense, 0, 0, 40), Timing(dense, 0, 0, 40), ratio=ratio, spread=spread, note=None
    )
    return Sample(allocation, timing)


# -- the whole chain ---------------------------------------------------------------------------------


def test_a_known_law_is_recovered(tmp_path: Path) -> None:
    predictor, held_out = fitted(FakeBackend(SETTINGS), tmp_path)
    error = predictor.error(held_out)
    assert error.n == 14
    assert error.median_abs_rel < 0.005
    assert error.spearman > 0.99


def test_a_runtime_that_runs_no_layers_alone_is_predicted_from_the_layers_work(tmp_path: Path) -> None:
    exported = replace(SETTINGS, runtime=Runtime.ONNXRUNTIME)
    backend = FakeBackend(exported)
    meter = LatencyMeter(Chain(SPACE, SPACE.dense), exported, config=EFFORT, cache=tmp_path, opener=opener(backend))
    work = latency_predictor(SPACE, meter)
    assert backend.prepared <= 1, "only the dense network was measured"
    samples = measured(meter, spread_allocations(SPACE, work, number=40, seed=0, around=0.6))
    error = work.fit(samples[:26], focus=0.6).error(samples[26:])
    assert error.median_abs_rel < 0.02
    assert error.spearman > 0.99


def test_a_noisy_drifting_machine_costs_little(tmp_path: Path) -> None:
    predictor, held_out = fitted(FakeBackend(SETTINGS, noise=0.05, drift=0.4), tmp_path)
    error = predictor.error(held_out)
    assert error.median_abs_rel < 0.03
    assert error.p90_abs_rel < 0.08
    assert error.spearman > 0.97


def test_predictions_keep_the_contract(tmp_path: Path) -> None:
    predictor, _ = fitted(FakeBackend(SETTINGS, noise=0.05), tmp_path)
    check_cost(predictor, SPACE)
    assert float(predictor(SPACE.dense)) == predictor.reference.median


def test_correcting_fits_the_neighbourhood_of_what_was_measured(tmp_path: Path) -> None:
    predictor, held_out = fitted(FakeBackend(SETTINGS), tmp_path)
    near = min(held_out, key=lambda one: abs(one.timing.ratio - 0.6))
    slower = replace(near.timing, ratio=near.timing.ratio * 1.1)
    corrected = predictor.correct([Sample(near.allocation, slower)] * 6)
    counts = np.array(near.allocation)
    assert predictor(counts) < corrected(counts) <= slower.ratio * predictor.reference.median * 1.02
    assert len(corrected.samples) == len(predictor.samples) + 6


def test_milliseconds_are_the_ratio_times_the_reference(tmp_path: Path) -> None:
    meter = make_meter(FakeBackend(SETTINGS, drift=0.4), tmp_path)
    timing = meter.measure(lambda: Chain(SPACE, SPACE.lower), "lower")
    assert meter.milliseconds(timing).median == pytest.approx(timing.ratio * meter.reference.median)


def test_in_turn_with_a_network_of_the_same_layers_nothing_is_left_of_a_load_that_came_in_between(
    tmp_path: Path,
) -> None:
    """Under load narrow networks lose more than the dense one; two that are alike lose alike."""

    class Loaded(FakeBackend):
        load = 0.0

        def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
            backend, milliseconds = self, self._law(module, shape)

            class Narrow(Runner):
                def elapsed(self) -> float:
                    return milliseconds + backend.load

            return Narrow()

    backend = Loaded(SETTINGS)
    meter = make_meter(backend, tmp_path)

    def network() -> nn.Module:
        return Chain(SPACE, SPACE.lower)

    known, calm = meter.measure(network, "calm"), meter.reference
    backend.load = 1.0
    assert meter.measure(network, "loaded").ratio > 1.2 * known.ratio
    paired_with = meter.measure(network, "beside", paired_with=network).chained(known)
    assert paired_with.ratio == pytest.approx(known.ratio)
    assert meter.milliseconds(paired_with).median == pytest.approx(known.ratio * calm.median)


def test_the_faster_memory_format_is_taken(tmp_path: Path) -> None:
    class Formats(FakeBackend):
        def slowness(self) -> float:
            return 1.0 if self.settings.memory_format is MemoryFormat.CHANNELS_LAST else 1.3

    asked = replace(SETTINGS, memory_format=MemoryFormat.AUTO)
    meter = LatencyMeter(Chain(SPACE, SPACE.dense), asked, opener=Formats, cache=tmp_path)
    assert meter.settings.memory_format is MemoryFormat.CHANNELS_LAST


# -- replay and cache --------------------------------------------------------------------------------


def test_a_replayed_run_measures_nothing_and_predicts_the_same(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.create(path, {}) as journal:
        first, held_out = fitted(FakeBackend(SETTINGS, noise=0.1), tmp_path / "one", recorder=journal)
    untouched = FakeBackend(SETTINGS)
    with Journal.open(path) as journal:
        again, replayed = fitted(untouched, tmp_path / "two", recorder=journal)
    assert untouched.prepared == 0
    assert replayed == held_out
    np.testing.assert_array_equal(again.weights, first.weights)
    assert again(SPACE.lower) == first(SPACE.lower)


def test_a_second_search_finds_the_layers_in_the_cache(tmp_path: Path) -> None:
    latency_predictor(SPACE, make_meter(FakeBackend(SETTINGS), tmp_path))
    backend = FakeBackend(SETTINGS)
    latency_predictor(SPACE, make_meter(backend, tmp_path))
    assert backend.prepared == 1  # the dense network, for the reference


@pytest.mark.parametrize(("noise", "prepared"), [(0.0, 1), (1.0, 4)])
def test_a_second_search_finds_the_networks_that_were_measured_in_calm(
    tmp_path: Path, noise: float, prepared: int
) -> None:
    allocations = [SPACE.allocation(SPACE.lower), SPACE.allocation(SPACE.dense), SPACE.allocation(SPACE.dense // 2)]

    def measured_with(noise: float) -> FakeBackend:
        backend = FakeBackend(SETTINGS, noise=noise)
        meter = make_meter(backend, tmp_path)
        assert meter.reference.median > 0
        for allocation in allocations:
            meter.sample(lambda allocation=allocation: Chain(SPACE, np.array(allocation)), allocation)
        return backend

    measured_with(noise)
    assert measured_with(0.0).prepared == prepared  # the dense network is always prepared, for the reference


def test_networks_of_the_same_weights_that_compute_something_else_share_no_measurements(tmp_path: Path) -> None:
    def path(activation: nn.Module, stride: int) -> Path:
        layers = nn.Conv2d(3, 8, 3, 2, 1), activation, nn.Conv2d(8, 8, 3, stride, 1), nn.Flatten()
        meter = LatencyMeter(nn.Sequential(*layers), SETTINGS, cache=tmp_path, opener=opener(FakeBackend(SETTINGS)))
        return meter._networks.path

    dense = path(nn.ReLU(), 1)
    assert path(nn.ReLU(), 1) == dense, "other weights change no latency"
    assert len({dense, path(nn.SiLU(), 1), path(nn.ReLU(), 2)}) == 3


def test_another_device_has_another_file(tmp_path: Path) -> None:
    here, there = LatencyCache(tmp_path, {"cpu": "here"}), LatencyCache(tmp_path, {"cpu": "there"})
    here.save({"layer": 1.0})
    assert here.load() == {"layer": 1.0}
    assert there.load() == {}
    here.path.rename(there.path)
    assert there.load() == {}, "a file that says that it is another device's is not used"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": 0}', "null"])
def test_a_broken_cache_counts_as_empty(tmp_path: Path, content: str) -> None:
    store = LatencyCache(tmp_path, {})
    store.path.write_text(content)
    assert store.load() == {}
    store.save({"layer": 2.0})
    assert store.load() == {"layer": 2.0}


def test_processes_that_save_at_once_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: LatencyCache(tmp_path, {}).save({f"layer {number}": 1.0}), range(40)))
    assert len(LatencyCache(tmp_path, {}).load()) == 40


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    times = look_up(LatencyCache(blocked, {}), FakeBackend(SETTINGS), [ANCHOR])
    assert times[ANCHOR] > 0


def test_times_of_different_days_are_scaled_to_one_anchor(tmp_path: Path) -> None:
    class Slower(FakeBackend):
        def slowness(self) -> float:
            return 2.0

    point = replace(ANCHOR, c_out=128)
    quick = measure_points(FakeBackend(SETTINGS), [point])
    slow = measure_points(Slower(SETTINGS), [point], anchor=quick[ANCHOR.key])
    assert slow == pytest.approx(quick)


def test_the_default_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path))
    store = LatencyCache(None, {"cpu": "x"})
    store.save({"layer": 1.0})
    assert json.loads(next((tmp_path / "latency").glob("*.json")).read_text())["fingerprint"] == {"cpu": "x"}


# -- tables ------------------------------------------------------------------------------------------

RATIOS = st.lists(st.floats(0, 1), min_size=len(SPACE), max_size=len(SPACE))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), RATIOS, RATIOS, st.sampled_from([1, 8, 16, 32]), st.booleans())
def test_predictions_never_fall_when_units_widen(
    seed: int, one: list[float], other: list[float], block: int, alone: bool
) -> None:
    generator = np.random.default_rng(seed)
    grids = plan_grids(SPACE, SPACE.graph.layers)
    times = {point: float(generator.lognormal()) for grid in grids for point in grid.points()}
    tables = Interpolation(SPACE, grids, times, block=block) if alone else None
    features = LayerFeatures(SPACE, SPACE.graph.layers, block=block, tables=tables)
    samples = [
        sample(float(generator.uniform(0.1, 1)), SPACE.allocation(SPACE.round_down(generator.uniform(size=len(SPACE)))))
        for _ in range(6)
    ]
    predictor = LatencyCost(features, Timing(10.0, 9.0, 11.0, 100), samples)
    narrow, wide = SPACE.round_down(np.minimum(one, other)), SPACE.round_down(np.maximum(one, other))
    assert predictor(narrow) <= predictor(wide) * (1 + 1e-12)
    assert 0 <= predictor(narrow) <= 10.0
    assert predictor(SPACE.dense) == 10.0


def test_interpolation_is_exact_on_the_grid_and_linear_between() -> None:
    grids = plan_grids(SPACE, SPACE.graph.layers)
    times = {point: 0.5 + 1e-3 * point.c_in * point.c_out for grid in grids for point in grid.points()}
    interpolation = Interpolation(SPACE, grids, times)
    counts = np.array([40, 60, 128, 16, 100])
    widths = SPACE.axis_widths(counts)
    expected = [0.5 + 1e-3 * widths[layer.in_axis] * widths[layer.out_axis] for layer in SPACE.graph.layers]
    np.testing.assert_allclose(interpolation(counts), expected)


def test_a_width_counts_as_the_next_multiple_of_the_block() -> None:
    grids = plan_grids(SPACE, SPACE.graph.layers)
    times = {point: float(point.c_in * point.c_out) for grid in grids for point in grid.points()}
    interpolation = Interpolation(SPACE, grids, times, block=32)
    np.testing.assert_allclose(interpolation(SPACE.dense - 5), interpolation(SPACE.dense))
    assert (interpolation(SPACE.dense - 40) < interpolation(SPACE.dense)).all()


def test_monotone_tables_stay_and_noise_is_not_turned_into_a_bias() -> None:
    rising = np.add.outer(np.arange(4.0), np.arange(3.0))
    np.testing.assert_array_equal(monotone(rising), rising)
    noisy = monotone(np.array([[1.0, 3.0, 2.0, 4.0]]))
    np.testing.assert_array_equal(noisy, [[1.0, 2.5, 2.5, 4.0]])


@pytest.mark.parametrize(
    "point",
    [
        Point(LayerKind.CONV, (3, 3), (2, 2), (160, 160), (80, 80), 1, 8, 16),
        Point(LayerKind.CONV, (1, 1), (1, 1), (20, 20), (20, 20), 1, 8, 16),
        Point(LayerKind.CONV, (6, 6), (2, 2), (64, 64), (32, 32), 1, 3, 16),
        Point(LayerKind.CONV, (3, 3), (1, 1), (20, 20), (18, 18), 1, 8, 16),
        Point(LayerKind.CONV, (3, 3), (1, 1), (20, 20), (20, 20), 4, 8, 16),
        Point(LayerKind.DEPTHWISE, (7, 7), (1, 1), (10, 10), (10, 10), 0, 24, 24),
        Point(LayerKind.TRANSPOSED, (2, 2), (2, 2), (20, 20), (40, 40), 1, 8, 16),
        Point(LayerKind.TRANSPOSED, (3, 3), (2, 2), (20, 20), (40, 40), 1, 8, 16),
        Point(LayerKind.LINEAR, (1, 1), (1, 1), (1, 1), (1, 1), 1, 8, 16),
    ],
    ids=lambda point: point.key,
)
def test_a_point_builds_its_layer(point: Point) -> None:
    import torch

    layer = point.build()
    output = layer(torch.zeros(point.shape(2)))
    expected = (2, point.c_out) if point.kind is LayerKind.LINEAR else (2, point.c_out, *point.out_hw)
    assert tuple(output.shape) == expected
    assert layer.get_parameter("weight").numel() == point.weights


def test_fused_and_dropped_layers_are_followed_into_the_deployed_network() -> None:
    names = ("stem", "rep.conv1.conv", "rep.conv2.conv", "training_head")
    kernels = ((3, 3), (3, 3), (1, 1), (1, 1))
    layers = [Layer(name, LayerKind.CONV, 0, 0, kernel=kernel) for name, kernel in zip(names, kernels, strict=True)]
    rep = nn.Module()
    rep.conv = nn.Conv2d(8, 8, 3, padding=1)
    rep.forward = lambda features: rep.conv(features)  # type: ignore[method-assign]
    module = nn.Sequential()
    module.add_module("stem", nn.Conv2d(3, 8, 3))
    module.add_module("rep", rep)
    kept = deployed_layers(layers, module, (1, 3, 16, 16))
    assert [layer.name for layer in kept] == ["stem", "rep.conv1.conv"]


# -- fit ---------------------------------------------------------------------------------------------


def test_a_mixture_is_recovered_exactly_where_data_say_so() -> None:
    generator = np.random.default_rng(0)
    design = np.column_stack([np.ones(200), generator.uniform(size=(200, 3))])
    truth = np.array([0.2, 0.5, 0.0, 0.3])
    weights = simplex_fit(design, design @ truth, trust=np.ones(200), prior=np.array([0.1, 0.9, 0.0, 0.0]))
    np.testing.assert_allclose(weights, truth, atol=0.02)


def test_one_measurement_gone_wrong_does_not_bend_the_fit() -> None:
    share = np.linspace(0.2, 1, 10)
    design = np.column_stack([np.ones(10), share])
    target = 0.3 + 0.7 * share
    target[4] -= 0.4
    weights = simplex_fit(design, target, trust=np.ones(10), prior=np.array([0.1, 0.9]))
    np.testing.assert_allclose(weights, [0.3, 0.7], atol=0.02)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_weights_are_a_mixture_whatever_the_data(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    weights = simplex_fit(
        generator.normal(size=(count, 4)),
        generator.normal(size=count),
        trust=generator.uniform(0.1, 1, count),
        prior=np.array([0.1, 0.9, 0.0, 0.0]),
    )
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_no_other_mixture_fits_better(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    design, target = generator.normal(size=(count, 4)), generator.normal(size=count)
    trust, prior = generator.uniform(0.1, 1, count), generator.dirichlet(np.ones(4))
    weights = _constrained(design, target, trust, prior)
    slope = design.T @ (trust * (design @ weights - target)) + RIDGE * (weights - prior)
    # Karush, Kuhn and Tucker: the slope is the same for all weights above 0, and not below that for the others.
    assert slope @ weights == pytest.approx(slope.min(), abs=1e-9)


def test_a_pair_in_which_the_dense_network_was_slow_is_trusted_less() -> None:
    timings = [sample(0.5, (1,), dense=dense).timing for dense in (10.0, 10.0, 10.0, 15.0)]
    off = uncertainty(timings)
    assert off[3] > 5 * off[0]
    assert uncertainty([sample(0.5, (1,), spread=0.1).timing])[0] > 0.1


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([1, 2, 3], [2, 4, 9], 1.0), ([1, 2, 3], [3, 2, 1], -1.0), ([1, 1, 2], [5, 5, 7], 1.0), ([1, 2], [3, 3], 0.0)],
)
def test_rank_correlation(one: list[float], other: list[float], expected: float) -> None:
    assert spearman(np.array(one, dtype=float), np.array(other, dtype=float)) == pytest.approx(expected)


def test_samples_are_spread_and_half_of_them_lie_near_the_budget(tmp_path: Path) -> None:
    tables = latency_predictor(SPACE, make_meter(FakeBackend(SETTINGS), tmp_path))
    allocations = spread_allocations(SPACE, tables, number=20, seed=3, around=0.5)
    assert allocations == spread_allocations(SPACE, tables, number=20, seed=3, around=0.5)
    shares = tables(np.array(allocations)) / tables(SPACE.dense)
    assert np.count_nonzero(np.abs(shares - 0.5) < 0.15) >= 10
    assert shares.max() > 0.85
    assert shares.min() < 0.35


class Disturbed:
    """Sees other processes disturb so many measurements, from the first on."""

    def __init__(self, measurements: int) -> None:
        self.left = measurements

    def disturbs(self, threads: int) -> bool:
        assert threads == SETTINGS.threads
        self.left -= 1
        return self.left >= 0


@pytest.mark.parametrize(("measurements", "taken"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_a_disturbed_reference_is_measured_again_and_marked_if_it_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measurements: int, taken: int
) -> None:
    watch = Disturbed(measurements)
    monkeypatch.setattr("autoprune.latency.timing.LoadWatch", lambda: watch)
    meter = make_meter(FakeBackend(SETTINGS, noise=0.05), tmp_path)
    assert meter.reference.under_load is (measurements >= 3)
    assert measurements - watch.left == taken
    timing = meter.measure(lambda: Chain(SPACE, SPACE.lower), "lower")
    assert meter.milliseconds(timing).under_load is (measurements >= 3)


def test_networks_measured_under_load_are_not_kept_for_later_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(disturbed: int) -> int:
        backend, watch = FakeBackend(SETTINGS), Disturbed(disturbed)
        monkeypatch.setattr("autoprune.latency.timing.LoadWatch", lambda: watch)
        make_meter(backend, tmp_path).sample(lambda: Chain(SPACE, SPACE.lower), [1, 2, 3])
        return backend.prepared

    first = prepared(9)
    assert prepared(0) == first, "the disturbed one was not kept"
    assert prepared(0) < first


def test_layers_measured_under_load_are_not_kept_for_later_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for disturbed, kept in ((1, False), (0, True)):
        watch = Disturbed(disturbed)
        monkeypatch.setattr("autoprune.latency.cache.LoadWatch", lambda watch=watch: watch)
        cache = LatencyCache(tmp_path, {"device": "fake"})
        assert look_up(cache, FakeBackend(SETTINGS), [ANCHOR])[ANCHOR] > 0
        assert bool(cache.load()) is kept


def test_a_tail_is_predicted_as_the_dense_networks_multiple_of_its_median(tmp_path: Path) -> None:
    meter = make_meter(FakeBackend(SETTINGS, noise=0.2), tmp_path)
    median, tail = (latency_predictor(SPACE, meter, metric) for metric in ("latency", "latency@p95"))
    assert tail(SPACE.dense) == meter.reference.p95 > meter.reference.median == median(SPACE.dense)
    samples = measured(meter, spread_allocations(SPACE, median, number=4, seed=0))
    ratio = tail.fit(samples)(SPACE.lower) / median.fit(samples)(SPACE.lower)
    assert ratio == pytest.approx(meter.reference.p95 / meter.reference.median)


def test_a_sample_is_measured_anew_at_a_later_attempt(tmp_path: Path) -> None:
    backend = FakeBackend(SETTINGS)
    meter = make_meter(backend, tmp_path)
    allocation = SPACE.allocation(SPACE.lower)
    first = meter.sample(lambda: Chain(SPACE, SPACE.lower), allocation)
    prepared = backend.prepared
    assert meter.sample(lambda: Chain(SPACE, SPACE.lower), allocation) == first
    assert backend.prepared == prepared, "it is recorded"
    meter.sample(lambda: Chain(SPACE, SPACE.lower), allocation, attempt=1)
    assert backend.prepared == prepared + 1
