"""What a candidate costs next to its bare forward passes, and next to the usual way. Needs ``../shared``.

The usual way: Torch-Pruning builds its dependency graph and prunes a copy, the same recalibration, Ultralytics' ``val``
on the same images. All are taken in turn in one process, and medians are compared.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from autoprune.criteria.registry import make_criterion
from autoprune.evaluation.evaluator import Evaluator
from autoprune.journal import Journal
from autoprune.models import open_adapter
from autoprune.statistics.layers import recalibrate
from autoprune.statistics.moments import collect_moments
from autoprune.strategies.regrowth import GAINS_COST
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse

IMAGES, BATCH, ROUNDS = 60, 20, 5


@pytest.fixture(scope="module")
def seconds(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, float]]:
    """Median seconds of bare passes, of our candidate, of all units' gains, and of the usual way, taken in turn."""
    pruning = pytest.importorskip("torch_pruning", reason="pip install torch-pruning")
    folder = tmp_path_factory.mktemp("evaluation")
    adapter = open_adapter(
        shared / "models" / "bccd-yolov5nu-320.pt", data=shared / "data" / "bccd" / "bccd.yaml", image_size=320
    )
    graph = analyse(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    space = Space(graph)
    pruner = Pruner(adapter.module, space, make_criterion("l1").order(adapter.module, graph))

    def made(name: str, *, bf16: bool) -> Evaluator:
        journal = Journal.create(folder / f"{name}.jsonl", {})
        return Evaluator(
            adapter, pruner, images=IMAGES, batch=BATCH, seed=0, journal=journal, compensate=True, bf16=bf16
        )

    evaluator, searching = made("evaluator", bf16=False), made("searching", bf16=True)
    allocation = space.allocation(space.round_down(np.full(len(space), 0.7)))
    data = _data_set(evaluator, folder)
    ready = evaluator.materialise(allocation).train()
    dense = copy.deepcopy(adapter.module).train()
    ways: dict[str, Callable[[], Any]] = {
        "dense": lambda: _passes(dense, evaluator),
        "bare": lambda: _passes(ready, evaluator),
        "ours": lambda: evaluator._score(allocation),
        "bare, bf16": lambda: _passes(ready, searching),
        "ours, bf16": lambda: searching._score(allocation),
        "gains, bf16": lambda: searching._slopes(allocation),
        "moments": lambda: collect_moments(adapter.module, graph, evaluator._calibration.plain),
        "usual": lambda: _usual(pruning, adapter, evaluator, data),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several compute a candidate's batches at once, but not the other ways
    yield _in_turn(ways)
    torch.set_num_threads(threads)


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
def test_a_candidate_beside_its_bare_passes(seconds: dict[str, float], capsys: Any) -> None:
    """In bfloat16, where that pays, passes take less, and what is not a pass as long as before: no aim is set there."""
    candidate, in_bf16 = (seconds[f"ours{numbers}"] / seconds[f"bare{numbers}"] for numbers in ("", ", bf16"))
    with capsys.disabled():
        print({name: round(value, 3) for name, value in seconds.items()})
        print(f"candidate = {candidate:.2f} × its bare passes, {in_bf16:.2f} × in bfloat16")
    assert candidate <= 1.25


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
def test_the_gains_of_all_units_beside_a_candidate(seconds: dict[str, float], capsys: Any) -> None:
    """What `regrowth.GAINS_COST` says, in the numbers of a search; covariances are collected once, in float32."""
    gains, moments = seconds["gains, bf16"] / seconds["ours, bf16"], seconds["moments"] / seconds["dense"]
    with capsys.disabled():
        print(f"gains = {gains:.1f} candidates, covariances = {moments:.1f} × passes of the dense network")
    assert gains <= GAINS_COST + 1
    assert moments <= 5


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
@pytest.mark.xfail(strict=True, reason="the aim is missed at 2.4 to 3.2 ×: most of a candidate is its bare passes")
def test_the_usual_way_beside_a_candidate(seconds: dict[str, float], capsys: Any) -> None:
    usual = seconds["usual"] / seconds["ours"]
    with capsys.disabled():
        print(f"the usual way = {usual:.1f} × a candidate")
    assert usual >= 4


def _in_turn(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _passes(module: nn.Module, evaluator: Evaluator) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=evaluator._in_bf16):
        for batch in evaluator._batches:
            module(evaluator.adapter.inputs(batch))


def _usual(pruning: Any, adapter: Any, evaluator: Evaluator, data: Path) -> None:
    from ultralytics import YOLO

    module = copy.deepcopy(adapter.module).train()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    head = module.model[-1]
    pruner = pruning.pruner.MagnitudePruner(
        module,
        torch.rand(1, 3, 320, 320),
        importance=pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.3,
        ignored_layers=[head.dfl, *(branch[-1] for branch in (*head.cv2, *head.cv3))],
        round_to=8,
    )
    pruner.step()
    recalibrate(module, [evaluator.adapter.inputs(batch) for batch in evaluator._batches])
    yolo = YOLO("yolov5nu.yaml")
    yolo.model = module
    yolo.val(
        data=str(data), imgsz=320, batch=BATCH, workers=0, plots=False, verbose=False, rect=False, project=data.parent
    )


def _data_set(evaluator: Evaluator, folder: Path) -> Path:
    """Write a data set whose validation split is the scoring images."""
    files: Sequence[str] = [file for batch in evaluator._batches for file in batch["im_file"]]
    listing = folder / "images.txt"
    listing.write_text("\n".join(files) + "\n")
    path = folder / "data.yaml"
    names = dict(enumerate(evaluator.adapter.module.names.values()))
    path.write_text(yaml.safe_dump({"train": str(listing), "val": str(listing), "names": names}))
    return path
