"""What a candidate costs that differs from the base network in one unit, with and without prefix reuse.

Needs ``../shared``. Every sixth unit at half its width, at 320 px with 60 images, both ways in turn; medians.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.criteria.registry import make_criterion
from autoprune.evaluation.evaluator import Evaluator
from autoprune.journal import Journal
from autoprune.models import open_adapter
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation, Space
from autoprune.structure.validation import analyse

IMAGES, BATCH, ROUNDS, EVERY = 60, 20, 3, 6


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["yolov5nu", "yolov8n"])
def test_one_unit_candidates_with_and_without(shared: Path, tmp_path: Path, capsys: Any, name: str) -> None:
    adapter = open_adapter(
        shared / "models" / f"bccd-{name}-320.pt", data=shared / "data" / "bccd" / "bccd.yaml", image_size=320
    )
    graph = analyse(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    space = Space(graph)
    pruner = Pruner(adapter.module, space, make_criterion("l1").order(adapter.module, graph))
    plain, reusing = (
        Evaluator(
            adapter, pruner, images=IMAGES, batch=BATCH, seed=0, journal=Journal.create(tmp_path / f"{way}.jsonl", {})
        )
        for way in ("plain", "reusing")
    )
    dense = space.allocation(space.dense)
    reusing.rebase(dense)
    recording, _ = _timed(reusing, dense)
    candidates = _halves(space, dense)[::EVERY]
    times: list[tuple[float, float]] = []
    for candidate in candidates:
        rounds = [(_timed(plain, candidate), _timed(reusing, candidate)) for _ in range(ROUNDS)]
        times.append((statistics.median(one[0] for one, _ in rounds), statistics.median(one[0] for _, one in rounds)))
        assert rounds[0][0][1] == pytest.approx(rounds[0][1][1], rel=1e-5, abs=1e-6)
    without, reused = np.mean(times, axis=0)
    assert reusing._prefix is not None
    with capsys.disabled():
        print(
            f"\n{name}: {without:.2f} s per one-unit candidate, {reused:.2f} s with prefix reuse "
            f"({without / reused:.2f} ×; {len(candidates)} of {len(space)} units), recording {recording:.2f} s, "
            f"{reusing._prefix.size / 2**20:.0f} MiB, {len(reusing._prefix.cuts)} cuts"
        )
        worst = max(reused / whole for whole, reused in times)
        print(f"from {min(reused / whole for whole, reused in times):.2f} to {worst:.2f} of a whole candidate")
    assert without / reused > 1.3


def _halves(space: Space, dense: Allocation) -> list[Allocation]:
    """Return the dense network with one unit at half its width, for every unit."""
    halves = space.round_down(np.full(len(space), 0.5)).tolist()
    return [(*dense[:index], half, *dense[index + 1 :]) for index, half in enumerate(halves) if half < dense[index]]


def _timed(evaluator: Evaluator, candidate: Allocation) -> tuple[float, float]:
    """Return seconds and score."""
    start = time.perf_counter()
    score = evaluator._score(candidate)
    return time.perf_counter() - start, score
