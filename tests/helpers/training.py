"""What tests of trainings share: a dense detector with data, one that was pruned, and a kill."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.statistics.layers import recalibrate
from tests.helpers.detectors import build, write_data, write_detector


class Stop(Exception):
    """Stands for a kill."""


def stop(_: object) -> None:
    """Kill the training at the end of an epoch."""
    raise Stop


def write_training(folder: Path, **extra: object) -> UltralyticsAdapter:
    """Write ``tiny.pt``, ``pruned.pt`` and a data set of 6 training images; return the dense network's adapter."""
    data = write_data(folder)
    write_detector(folder / "pruned.pt", pruned(**extra))
    return UltralyticsAdapter.load(write_detector(folder / "tiny.pt", build(**extra)), data=data)


def pruned(**extra: object) -> Any:
    """Stand in for a pruned network: narrower than its YAML says."""
    network = build(8, seed=1, **extra)
    network.yaml = build(16, **extra).yaml
    return network


def teach(adapter: UltralyticsAdapter, *, steps: int = 40) -> Any:
    """Return a copy of the dense network that has learnt its validation images by heart, in a second or two."""
    network, batches = deepcopy(adapter.module).train(), adapter.batches("val", images=16, batch=16, seed=0)
    optimizer = torch.optim.AdamW([one for one in network.parameters() if one.requires_grad], lr=0.01)
    for _ in range(steps):
        for batch in batches:
            optimizer.zero_grad()
            adapter.loss(network, batch).backward()
            optimizer.step()
    recalibrate(network, [adapter.inputs(batch) for batch in batches])
    return network.eval()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


PRUNED, DENSE = parameters(pruned()), parameters(build())
