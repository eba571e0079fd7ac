"""Networks that have learnt nothing yet, from a stock YAML: as it stands, or with another width multiple."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.models.ultralytics import stock


def scaled(module: nn.Module, width: float) -> nn.Module | None:
    """Return an untrained network of a detector's YAML whose widths are its own times ``width``.

    Args:
        module: a network that Ultralytics built from a YAML.
        width: factor on the width multiple, above 0; Ultralytics rounds the widths up to multiples of 8.

    Returns:
        The network, on the CPU; None where the YAML names no scale.
    """
    source: Any = module
    description: dict[str, Any] = deepcopy(source.yaml)
    scales = description.get("scales")
    if not scales:
        return None
    scale = description.get("scale") or next(iter(scales))
    depth, multiple, most = scales[scale]
    description["scales"] = {scale: [depth, multiple * width, most]}
    description["scale"] = scale
    with stock.quiet():
        network: Any = type(module)(description, ch=description.get("channels", 3), nc=description["nc"], verbose=False)
    network.names = deepcopy(source.names)
    smaller: nn.Module = network
    return smaller


def build_untrained(architecture: str, names: Sequence[str], *, seed: int) -> nn.Module:
    """Return a detector as its YAML describes it, with fresh weights, on the CPU.

    Args:
        architecture: the name of a YAML that Ultralytics brings, or of one's own file.
        names: the classes.
        seed: of the weights; torch's random state stays as it is.

    Raises:
        ModelError: there is no such YAML, or it describes no detector.
    """
    with stock.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        description = _described(architecture)
        try:
            network: Any = stock.DetectionModel(description, nc=len(names), verbose=False)
        except Exception as error:  # whatever a wrong entry leads to
            raise ModelError(f"{architecture} describes no network that Ultralytics can build: {error}") from error
    network.names = dict(enumerate(names))
    fresh: nn.Module = network
    return fresh


def _described(architecture: str) -> dict[str, Any]:
    """Read a YAML of a detector; nothing is downloaded."""
    try:
        if "://" in architecture or Path(architecture).suffix not in (".yaml", ".yml"):
            raise FileNotFoundError(architecture)
        description: dict[str, Any] = stock.tasks.yaml_model_load(architecture)
    except FileNotFoundError as error:
        raise ModelError(
            f"There is no architecture {architecture}; name a YAML that Ultralytics brings, such as yolov3-tiny.yaml, "
            "or a file of your own"
        ) from error
    task = stock.guess_model_task(description)
    if task != "detect":
        raise ModelError(f"{architecture} describes a network for the task {task}; only detectors can be trained")
    return description
