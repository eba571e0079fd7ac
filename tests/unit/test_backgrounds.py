"""Real data with many images without labels: the score still says which network is the better one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr
from torch import nn

from autoprune.criteria.registry import make_criterion
from autoprune.evaluation.evaluator import WORST_SCORE, Evaluator
from autoprune.journal import Journal
from autoprune.models import open_adapter
from autoprune.models._base import Adapter
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation, Space
from tests.helpers.world import analysed

SIZE, IMAGES, CANDIDATES = 320, 60, 8
World = tuple[Adapter, Pruner, tuple[Allocation, ...], tuple[float, ...]]
"""The dense network, its pruner, random candidates, and the accuracy of each on the real validation split."""


def write_mixed(data: Path, folder: Path, *, every: int) -> Path:
    """Write BCCD with all training images but every so many replaced by drawn backgrounds; return its YAML file."""
    rng = np.random.default_rng(0)
    images, labels = folder / "images" / "train", folder / "labels" / "train"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index, image in enumerate(sorted((data / "images" / "train").iterdir())):
        label = labels / f"{image.stem}.txt"
        if index % every:
            clouds = cv2.resize(rng.normal(0, 12, (12, 16, 3)), (640, 480), interpolation=cv2.INTER_CUBIC)
            drawn = rng.integers(150, 230, 3) + clouds + rng.normal(0, 4, (480, 640, 3))
            cv2.imwrite(str(images / image.name), np.clip(drawn, 0, 255).astype(np.uint8))
            label.touch()
        else:
            (images / image.name).symlink_to(image.resolve())
            label.write_text((data / "labels" / "train" / label.name).read_text())
    names = yaml.safe_load((data / "bccd.yaml").read_text())["names"]
    described = {"train": str(images), "val": str((data / "images" / "val").resolve()), "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(described))
    return folder / "data.yaml"


def random_allocations(space: Space) -> tuple[Allocation, ...]:
    """Return candidates that keep different shares of the network, and different ones of its units."""
    rng = np.random.default_rng(5)
    ratios = [rng.normal(rng.uniform(0.55, 0.95), 0.12, len(space)).clip(0.2, 1) for _ in range(CANDIDATES)]
    return tuple(space.allocation(space.round_down(ratio)) for ratio in ratios)


@pytest.fixture(scope="module")
def mixed(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], World]:
    """Return what there is to score with 1 labelled training image in so many."""

    @lru_cache
    def world(every: int) -> World:
        folder = tmp_path_factory.mktemp("mixed")
        data = write_mixed(shared / "data" / "bccd", folder, every=every)
        adapter = open_adapter(shared / "models" / "bccd-yolov5nu-320.pt", data=data, image_size=SIZE)
        graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
        space = Space(graph)
        pruner = Pruner(adapter.module, space, make_criterion("l1").order(adapter.module, graph))
        candidates = random_allocations(space)
        evaluator = evaluator_of(adapter, pruner, folder, batch=16)
        found = [adapter.validate(evaluator.repaired(one)).primary for one in candidates]
        return adapter, pruner, candidates, tuple(found)

    return world


def evaluator_of(adapter: Adapter, pruner: Pruner, folder: Path, *, batch: int) -> Evaluator:
    journal = Journal.create(folder / f"journal-{batch}.jsonl", {})
    return Evaluator(adapter, pruner, images=IMAGES, batch=batch, seed=0, journal=journal)


def with_classes(module: nn.Module, change: Callable[[Any], None]) -> nn.Module:
    """Return a copy with the last layer of every class branch changed."""
    copied: Any = copy.deepcopy(module)
    for branch in copied.model[-1].cv3:
        change(branch[-1])
    return copied  # type: ignore[no-any-return]


def constant(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, -10.0)  # type: ignore[arg-type]


def lowered(by: float) -> Callable[[Any], None]:
    return lambda layer: layer.bias.data.sub_(by)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("batch", [16, 4])
@pytest.mark.parametrize("every", [1, 2, 5, 20])
def test_the_score_ranks_networks_where_few_images_have_labels(
    mixed: Callable[[int], World], tmp_path: Path, every: int, batch: int
) -> None:
    adapter, pruner, candidates, accuracies = mixed(every)
    evaluator = evaluator_of(adapter, pruner, tmp_path, batch=batch)
    for change in (constant, lowered(20.0)):
        assert WORST_SCORE < evaluator.score(with_classes(adapter.module, change)) < -0.5
    assert evaluator.score(with_classes(adapter.module, lowered(1000.0))) == WORST_SCORE
    scores = [evaluation.score for evaluation in evaluator(candidates)]
    assert spearmanr(scores, accuracies).statistic >= 0.7
