"""Staircases of widths and shares of layers, on a device in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.latency import LatencyMeter, Sample, Timing, latency_predictor, spread_allocations
from autoprune.latency.features import LayerFeatures
from autoprune.latency.layers import (
    MeasuredStaircases,
    ShareSource,
    Staircase,
    layer_milliseconds,
    layer_shares,
    layer_work,
    predicted_staircases,
    shares_alone,
)
from autoprune.latency.predictor import LatencyCost
from autoprune.runtimes import Backend, Runner, RuntimeSettings
from autoprune.structure.graph import trace
from autoprune.structure.space import Space
from tests.helpers.fake_backend import OVERHEAD, SETTINGS, Chain, FakeBackend, opener
from tests.helpers.toy import chain_graph

SPACE = Space(chain_graph((64, 96, 128, 64, 192)), round_to=16)
LAYERS = SPACE.graph.layers


def make_meter(folder: Path, backend: Backend) -> LatencyMeter:
    return LatencyMeter(Chain(SPACE, SPACE.dense), SETTINGS, cache=folder, opener=opener(backend))


def fitted(meter: LatencyMeter) -> LatencyCost:
    plain = latency_predictor(SPACE, meter)
    samples = [
        Sample(kept, meter.measure(lambda kept=kept: Chain(SPACE, np.array(kept)), kept))  # type: ignore[misc]
        for kept in spread_allocations(SPACE, plain, number=12, seed=0)
    ]
    return plain.fit(samples)


# -- which widths are free ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "worth"),
    [
        ((1.0, 2.0, 3.0, 4.0), (8, 16, 24, 32)),  # a slope: every width saves
        ((1.0, 1.0, 3.0, 3.0), (16, 32)),  # a device that computes 16 channels together
        ((1.0, 1.0, 1.0, 3.0), (24, 32)),
        ((2.0, 2.95, 3.0, 3.0), (8, 32)),  # 24 saves nothing, 16 next to nothing
        ((3.0, 3.0, 3.0, 3.0), (32,)),  # it does not matter at all
        ((1e4, 1e4 + 0.1, 1e4 + 0.2, 1e4 + 0.3), (32,)),  # what it saves is lost in the noise
    ],
)
def test_the_widest_of_each_step_is_worth_choosing(times: tuple[float, ...], worth: tuple[int, ...]) -> None:
    staircase = Staircase("unit", (8, 16, 24, 32), times)
    assert staircase.worth == worth
    assert sorted({*staircase.worth, *staircase.free}) == [8, 16, 24, 32]
    assert not set(staircase.worth) & set(staircase.free)


def test_small_steps_add_up() -> None:
    """No width saves much against the one above it, the narrow ones do against the dense one."""
    slow = Staircase("unit", (8, 16, 24, 32, 40), (0.0, 10.0, 10.2, 10.4, 10.6))
    assert slow.worth == (8, 16, 40) or slow.worth == (8, 40)
    gentle = Staircase("unit", tuple(range(8, 88, 8)), (0.0, 20.0, *np.linspace(20.3, 22.4, 8)))
    assert len(gentle.worth) > 3


def test_what_was_measured_counts_before_what_was_predicted() -> None:
    staircase = Staircase("unit", (8, 16, 24, 32), (1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 2.0, 2.0))
    assert staircase.worth == (16, 32)
    assert staircase.range == 1.0


# -- measured and predicted --------------------------------------------------------------------------


def test_measured_staircases_are_those_of_the_whole_network(tmp_path: Path) -> None:
    meter = make_meter(tmp_path, FakeBackend(SETTINGS))
    predicted = predicted_staircases(SPACE, fitted(meter))
    plan = MeasuredStaircases(SPACE, LAYERS, predicted)
    times = meter.measured_shares(plan.points)
    shares = shares_alone(layer_work(SPACE, LAYERS, SPACE.dense, batch=1, width=4), times)
    numbers = {unit.name: index for index, unit in enumerate(SPACE.units)}
    measured = plan.of(times, shares, meter.reference.median)
    assert {one.unit for one in measured} == set(numbers)
    for one in measured:
        assert one.measured is not None
        for width, time in zip(one.widths, one.measured, strict=True):
            counts = SPACE.dense.copy()
            counts[numbers[one.unit]] = width
            timing = meter.measure(lambda counts=counts: Chain(SPACE, counts), [one.unit, width])  # type: ignore[misc]
            assert time == pytest.approx(timing.ratio * meter.reference.median, rel=1e-6)


def test_staircases_rise_and_end_at_the_dense_network(tmp_path: Path) -> None:
    meter = make_meter(tmp_path, FakeBackend(SETTINGS, noise=0.05))
    predicted = predicted_staircases(SPACE, fitted(meter))
    plan = MeasuredStaircases(SPACE, LAYERS, predicted)
    times = meter.measured_shares(plan.points)
    shares = shares_alone(layer_work(SPACE, LAYERS, SPACE.dense, batch=1, width=4), times)
    for one in plan.of(times, shares, meter.reference.median):
        assert one.measured is not None
        for curve in (one.predicted, one.measured):
            assert (np.diff(curve) >= 0).all()
            assert curve[-1] == pytest.approx(meter.reference.median)


def test_a_large_network_has_its_first_staircases_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.latency.layers.MOST_POINTS", 20)
    meter = make_meter(tmp_path, FakeBackend(SETTINGS))
    predicted = predicted_staircases(SPACE, fitted(meter))
    plan = MeasuredStaircases(SPACE, LAYERS, predicted)
    assert len(LAYERS) <= len(plan.points) <= 20
    times = meter.measured_shares(plan.points)
    shares = shares_alone(layer_work(SPACE, LAYERS, SPACE.dense, batch=1, width=4), times)
    found = {one.unit: one for one in plan.of(times, shares, meter.reference.median)}
    assert found[predicted[0].unit].measured is not None
    assert found[predicted[-1].unit] == predicted[-1]


# -- shares ------------------------------------------------------------------------------------------


def test_shares_of_layers_alone_leave_the_overhead(tmp_path: Path) -> None:
    meter = make_meter(tmp_path, FakeBackend(SETTINGS, drift=0.3))
    works = layer_work(SPACE, LAYERS, SPACE.dense, batch=1, width=4)
    shares = shares_alone(works, meter.measured_shares([work.point for work in works]))
    (rest,) = shares.rest.values()
    assert shares.layers.sum() + rest == pytest.approx(1.0)
    assert rest * meter.reference.median == pytest.approx(OVERHEAD, rel=0.35)  # the reference drifts, shares do not
    assert shares.source is ShareSource.ALONE
    assert shares.scale == 1.0


class SlowStart(FakeBackend):
    """A device on which every run has a start of its own, as a kernel launch."""

    def prepare(self, module: object, shape: tuple[int, ...]) -> Runner:
        runner = super().prepare(module, shape)  # type: ignore[arg-type]
        runner.milliseconds += 5.0  # type: ignore[attr-defined]
        return runner

    def __init__(self, settings: RuntimeSettings) -> None:
        super().__init__(settings)


def test_layers_that_alone_take_longer_than_the_whole_are_scaled_to_it(tmp_path: Path) -> None:
    meter = make_meter(tmp_path, SlowStart(SETTINGS))
    works = layer_work(SPACE, LAYERS, SPACE.dense, batch=1, width=4)
    times = meter.measured_shares([work.point for work in works])
    shares = shares_alone(works, times)
    assert sum(times.values()) > 1
    assert shares.scale == pytest.approx(1 / sum(times.values()))
    assert shares.layers.sum() == pytest.approx(1.0)
    assert list(shares.rest.values()) == [pytest.approx(0.0, abs=1e-12)]


def test_shares_of_the_predictor_sum_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatencyMeter, "layers_alone", property(lambda _: False))
    meter = make_meter(tmp_path, FakeBackend(SETTINGS))
    shares = layer_shares(fitted(meter))
    assert shares.source is ShareSource.MODEL
    assert shares.layers.sum() + sum(shares.rest.values()) == pytest.approx(1.0)
    assert (shares.layers >= 0).all()
    works = layer_work(SPACE, LAYERS, SPACE.dense, batch=1, width=4)
    law = np.array([0.01 + 1e-7 * work.flops for work in works])
    assert shares.layers == pytest.approx(law / (law.sum() + OVERHEAD), abs=0.05)


def test_work_counts_the_batch_in_activations_and_not_in_weights() -> None:
    one, four = (layer_work(SPACE, LAYERS, SPACE.dense, batch=batch, width=4)[0] for batch in (1, 4))
    layer = LAYERS[0]
    area_in, area_out = (height * width for height, width in (layer.in_hw, layer.out_hw))
    assert (one.c_in, one.c_out) == (3, 64)
    assert one.flops == 2 * 9 * 3 * 64 * area_out
    assert four.flops == 4 * one.flops
    assert one.traffic == 4 * (9 * 3 * 64 + 3 * area_in + 64 * area_out)
    assert four.traffic == 4 * (9 * 3 * 64 + 4 * (3 * area_in + 64 * area_out))
    assert one.operation == "conv 3×3"


def test_the_milliseconds_of_a_layer_are_those_of_all_its_runs() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
            self.head = nn.Conv2d(16, 4, 1)

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            large = self.stem(image)
            return [self.head(large), self.head(self.down(large))]

    space = Space(trace(Shared(), torch.rand(1, 3, 32, 32)), round_to=1)
    cost = LatencyCost(LayerFeatures(space, space.graph.layers), Timing(10.0, 10.0, 10.0, 10))
    found = layer_milliseconds(cost, space.dense)
    assert list(found) == ["stem", "head", "down"]
    assert sum(found.values()) == pytest.approx(10.0 * float(layer_shares(cost).layers.sum()))
