"""The loss that scores candidates: it does not depend on the batches, and rewards no network that finds nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import reduce
from itertools import cycle
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.criteria.registry import make_criterion
from autoprune.evaluation.evaluator import Evaluator
from autoprune.evaluation.pruning import evidence_of
from autoprune.journal import Journal
from autoprune.models._base import Batch, LossSum
from autoprune.models.ultralytics import UltralyticsAdapter, loss_sums, stock
from autoprune.models.ultralytics.checkpoint import write_checkpoint
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Space
from tests.contracts.adapters import with_frozen_statistics
from tests.helpers.detectors import tiny_yaml
from tests.helpers.task_data import KEYPOINTS, NAMES, add_backgrounds, write_task_data
from tests.helpers.world import analysed

SIZE = 64
NETWORKS: Mapping[str, tuple[str, type, list[Any], dict[str, Any]]] = {
    "detect": ("detect", stock.DetectionModel, ["Detect", ["nc"]], {}),
    "segment": ("segment", stock.SegmentationModel, ["Segment", ["nc", 8, 16]], {}),
    "pose": ("pose", stock.PoseModel, ["Pose", ["nc", KEYPOINTS]], {}),
    "obb": ("obb", stock.OBBModel, ["OBB", ["nc", 1]], {}),
    "end-to-end": ("detect", stock.DetectionModel, ["Detect", ["nc"]], {"end2end": True}),
    "segment26": ("segment", stock.SegmentationModel, ["Segment26", ["nc", 8, 16]], {"end2end": True, "reg_max": 1}),
    "pose26": ("pose", stock.PoseModel, ["Pose26", ["nc", KEYPOINTS]], {"end2end": True, "reg_max": 1}),
    "obb26": ("obb", stock.OBBModel, ["OBB26", ["nc", 1]], {"end2end": True, "reg_max": 1}),
}
"""By name: the task, the network's class, its head, and what else its description says."""
LABELLED, BACKGROUNDS = 6, 114


def build(name: str) -> nn.Module:
    _, kind, head, extra = NETWORKS[name]
    description = tiny_yaml(kpt_shape=KEYPOINTS, **extra)
    description["head"][-1] = [[8, 5], 1, *head]
    with torch.random.fork_rng(), stock.quiet():
        torch.manual_seed(0)
        network: Any = kind(description, ch=3, verbose=False)
    network.names = dict(enumerate(NAMES))
    return network.eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold a data set per task, of 1 labelled image in 20."""
    folder = tmp_path_factory.mktemp("sums")
    for task in ("detect", "segment", "pose", "obb"):
        write_task_data(folder / task, task, images=LABELLED)
        add_backgrounds(folder / task, BACKGROUNDS)
    return folder


def opened(folder: Path, name: str) -> UltralyticsAdapter:
    task, network = NETWORKS[name][0], build(name)
    write_checkpoint(network, folder / f"{name}.pt", train_args={"imgsz": SIZE, "task": task})
    return UltralyticsAdapter.load(folder / f"{name}.pt", data=folder / task / "data.yaml")


def rt_detr(folder: Path) -> UltralyticsAdapter:
    return UltralyticsAdapter.untrained("yolov8n-rtdetr.yaml", data=folder / "detect" / "data.yaml", image_size=SIZE)


def total(adapter: UltralyticsAdapter, module: nn.Module, batches: Iterable[Batch]) -> LossSum:
    with torch.no_grad():
        return reduce(add, [adapter.loss_sum(module, batch) for batch in batches])


def check_batches_do_not_matter(adapter: UltralyticsAdapter) -> None:
    module = with_frozen_statistics(adapter.module)
    images = LABELLED * 2
    whole, *parts = [
        total(adapter, module, adapter.batches("train", images=images, batch=batch, seed=0)) for batch in (images, 4, 1)
    ]
    for part in parts:
        torch.testing.assert_close(part.weights, whole.weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part.totals, whole.totals, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_does_not_depend_on_how_images_fall_into_batches(folder: Path, name: str) -> None:
    check_batches_do_not_matter(opened(folder, name))


def test_nor_does_that_of_an_rt_detr(folder: Path) -> None:
    check_batches_do_not_matter(rt_detr(folder))


@pytest.fixture
def epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let assignment have Ultralytics' own small number, which tells in networks that have learnt nothing."""
    monkeypatch.setattr(loss_sums, "NO_EPSILON", 1e-9)


def check_division_gives_ultralytics_own_loss(adapter: UltralyticsAdapter) -> None:
    (batch,) = adapter.batches("train", images=LABELLED, batch=LABELLED, seed=0)
    module = with_frozen_statistics(adapter.module)
    found = total(adapter, module, [batch])
    divided = (found.totals / found.weights.clamp(min=1)).sum()
    torch.testing.assert_close(divided, adapter.loss(module, batch).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("epsilon")
@pytest.mark.parametrize("name", NETWORKS)
def test_divided_by_its_weights_it_is_ultralytics_own_loss(folder: Path, name: str) -> None:
    check_division_gives_ultralytics_own_loss(opened(folder, name))


def test_so_is_that_of_an_rt_detr(folder: Path) -> None:
    check_division_gives_ultralytics_own_loss(rt_detr(folder))


# -- networks that find nothing --------------------------------------------------------------------


def trained(adapter: UltralyticsAdapter, *, steps: int, lr: float) -> nn.Module:
    """Return a copy that has learnt the labelled images, and as many backgrounds, a little.

    In batches as large and as small as it is then scored in: what only knows the statistics of one is bad in the other.
    """
    large, small = (adapter.batches("train", images=LABELLED * 2, batch=batch, seed=0) for batch in (16, 4))
    module = deepcopy(adapter.module).train()
    optimizer = torch.optim.Adam(module.parameters(), lr)
    for _, batch in zip(range(steps), cycle([*large, *small]), strict=False):
        optimizer.zero_grad()
        adapter.loss(module, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module


def silent(module: nn.Module, logit: float) -> nn.Module:
    """Return a copy all of whose class outputs are this logit."""
    copied: Any = deepcopy(module)
    head = copied.model[-1]
    if isinstance(head, stock.RTDETRDecoder):
        layers = [head.enc_score_head, *head.dec_score_head]
    else:
        layers = [branch[-1] for branch in (*head.cv3, *getattr(head, "one2one_cv3", ()))]
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, logit)
    return copied  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["detect", "segment", "end-to-end"])
def test_a_silent_network_is_asked_for_as_much_as_one_that_is_not(folder: Path, name: str) -> None:
    adapter = opened(folder, name)
    batches = adapter.batches("train", images=LABELLED, batch=LABELLED, seed=0)
    module = with_frozen_statistics(adapter.module)
    loud, quiet = (total(adapter, silent(module, logit), batches) for logit in (-1.0, -300.0))
    torch.testing.assert_close(quiet.weights, loud.weights, rtol=1e-4, atol=0)


def check_finding_nothing_is_no_gain(adapter: UltralyticsAdapter, dense: nn.Module) -> None:
    for batch in (16, 4):
        batches = adapter.batches("train", images=LABELLED + BACKGROUNDS, batch=batch, seed=0, balanced=True)
        loss = total(adapter, dense, batches).mean()
        for logit in (-12.0, -300.0):
            score = 1 - total(adapter, silent(dense, logit), batches).mean() / loss
            assert not score >= -0.5, (batch, logit)  # one that is not a number is the worst


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "segment" else pytest.mark.slow) for name in NETWORKS]
)
def test_finding_nothing_is_no_gain(folder: Path, name: str) -> None:
    adapter = opened(folder, name)
    check_finding_nothing_is_no_gain(adapter, trained(adapter, steps=60, lr=1e-2))


@pytest.mark.slow
def test_nor_is_it_for_an_rt_detr(folder: Path) -> None:
    adapter = rt_detr(folder)
    check_finding_nothing_is_no_gain(adapter, trained(adapter, steps=30, lr=1e-3))


def check_gains(adapter: UltralyticsAdapter, journal: Path) -> None:
    """Assert that the covariance criterion ranks, and that widening gains finite amounts, somewhere not 0."""
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    space = Space(graph)
    order = make_criterion("covariance", lambda: evidence_of(adapter)).order(adapter.module, graph)
    assert [sorted(one) for one in order] == [list(range(group.size)) for group in graph.groups]
    evaluator = Evaluator(
        adapter,
        Pruner(adapter.module, space, order),
        images=LABELLED,
        batch=3,
        seed=0,
        journal=Journal.create(journal, {}),
        compensate=True,
        bf16=True,
    )
    base = space.allocation(space.round_down(np.full(len(space), 0.5)))
    widths = [[int(dense)] if kept < dense else [] for kept, dense in zip(base, space.dense, strict=True)]
    gains = [gain for several in evaluator.gains(base, widths) for gain in several]
    assert np.isfinite(gains).all()
    assert np.abs(gains).max() > 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_gains_are_numbers_in_every_task(folder: Path, name: str, tmp_path: Path) -> None:
    check_gains(opened(folder, name), tmp_path / "journal.jsonl")


@pytest.mark.slow
def test_gains_are_numbers_for_an_rt_detr(folder: Path, tmp_path: Path) -> None:
    check_gains(rt_detr(folder), tmp_path / "journal.jsonl")
