"""The loss that scores candidates: it does not depend on the batches, and rewards no network that finds nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import lru_cache, reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.models._base import Batch, LossSum
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.models.ultralytics.checkpoint import write_checkpoint

from .contracts.adapters import with_frozen_statistics
from .detectors import tiny_yaml
from .task_data import KEYPOINTS, NAMES, add_backgrounds, write_task_data

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
LABELLED, STEPS = 6, 60


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
    """Hold a data set per task, of labelled images and half as many backgrounds."""
    folder = tmp_path_factory.mktemp("sums")
    for task in ("detect", "segment", "pose", "obb"):
        write_task_data(folder / task, task, images=LABELLED)
        add_backgrounds(folder / task, LABELLED // 2)
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


def trained(adapter: UltralyticsAdapter, *, steps: int = STEPS, lr: float = 1e-2) -> nn.Module:
    """Return a copy that has learnt the labelled images a little."""
    (batch,) = labelled(adapter)
    module = deepcopy(adapter.module).train()
    optimizer = torch.optim.Adam(module.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        adapter.loss(module, batch).backward()
        optimizer.step()
    return module


def labelled(adapter: UltralyticsAdapter) -> list[Batch]:
    """Return the labelled images as one batch."""
    return list(adapter.batches("val", images=LABELLED, batch=LABELLED, seed=0))


def check_batches_do_not_matter(adapter: UltralyticsAdapter) -> None:
    module = with_frozen_statistics(adapter.module)
    images = LABELLED + LABELLED // 2
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


if __name__ == "__main__":
    import sys, tempfile, time

    folder = Path(tempfile.mkdtemp())
    for task in ("detect", "segment", "pose", "obb"):
        write_task_data(folder / task, task, images=LABELLED)
        add_backgrounds(folder / task, LABELLED // 2)
    for name in (*NETWORKS, "rtdetr"):
        adapter = rt_detr(folder) if name == "rtdetr" else opened(folder, name)
        t = time.time()
        steps, lr = (30, 1e-3) if name == "rtdetr" else (60, 1e-2)
        m = trained(adapter, steps=steps, lr=lr)
        s = total(adapter, m, labelled(adapter))
        with torch.no_grad():
            l = adapter.loss(m, labelled(adapter)[0])
        print(
            name,
            round(time.time() - t, 1),
            float(l),
            s.mean(),
            [round(float(x), 3) for x in s.totals / s.weights],
            [round(float(x), 2) for x in s.weights],
            flush=True,
        )
