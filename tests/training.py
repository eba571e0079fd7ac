"""What tests of trainings share: a dense detector with data, one that was pruned, and a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from autoprune.models.ultralytics import UltralyticsAdapter
from tests.detectors import build, write_data, write_detector


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


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


PRUNED, DENSE = parameters(pruned()), parameters(build())
