"""How long a cost takes: ``pytest tests/benchmarks/test_bench_cost.py``."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from ultralytics.nn.tasks import DetectionModel

from autoprune.costs import Cost, FlopsCost, ParamsCost, SizeCost, parameter_shapes, state_shapes
from autoprune.latency import LatencyCost, Timing
from autoprune.latency.features import LayerFeatures
from autoprune.latency.tables import TIMED, Interpolation, plan_grids
from autoprune.structure.graph import trace
from autoprune.structure.space import Space
from tests.helpers.networks import FREE_OUTPUTS, example


@pytest.fixture(scope="module")
def costs() -> dict[str, tuple[Cost, Space]]:
    module = DetectionModel("yolov8n.yaml", verbose=False).eval()
    space = Space(trace(module, example().float(), free_outputs=FREE_OUTPUTS))
    grids = plan_grids(space, space.graph.layers)
    times = {point: 0.01 + 1e-6 * point.c_in * point.c_out for grid in grids for point in grid.points()}
    layers = [layer for layer in space.graph.layers if layer.kind in TIMED]
    features = LayerFeatures(space, layers, block=16, tables=Interpolation(space, grids, times, block=16))
    latency = LatencyCost(features, Timing(12.0, 11.0, 13.0, 100))
    made = (
        FlopsCost(space),
        ParamsCost(space, parameter_shapes(module)),
        SizeCost(space, state_shapes(module), dense_bytes=10_000_000),
        latency,
    )
    return {cost.metric: (cost, space) for cost in made}


@pytest.mark.parametrize(("metric", "microseconds"), [("flops", 30), ("params", 30), ("size", 30), ("latency", 200)])
def test_one_allocation(
    benchmark: BenchmarkFixture, costs: dict[str, tuple[Cost, Space]], metric: str, microseconds: float
) -> None:
    cost, space = costs[metric]
    counts = space.round_down(np.full(len(space), 0.5))
    benchmark(cost, counts)
    assert benchmark.stats.stats.median * 1e6 <= microseconds


def test_a_thousand_allocations(benchmark: BenchmarkFixture, costs: dict[str, tuple[Cost, Space]]) -> None:
    cost, space = costs["latency"]
    counts = np.tile(space.round_down(np.full(len(space), 0.5)), (1000, 1))
    benchmark(cost, counts)
    assert benchmark.stats.stats.median <= 0.1
