"""The shapes of a network's tensors: what a checkpoint of it must hold, checked in the file itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import TrainingError

Shapes = Mapping[str, tuple[int, ...]]
"""State-dict name → shape. Two networks of the same classes with the same shapes have the same parameters and FLOPs."""


def shapes_of(module: nn.Module) -> Shapes:
    """Return the shapes of a network's parameters and buffers."""
    network: Any = getattr(module, "student_model", module)  # Ultralytics' own distillation wraps what it trains
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def check_shapes(found: Shapes, expected: Shapes, file: Path) -> None:
    """Make sure that a file holds the network that it should.

    Args:
        found: what the file holds.
        expected: what was to be saved.
        file: named in the message.

    Raises:
        TrainingError: they differ; the message names the first tensor that does.
    """
    for name in [*expected, *(set(found) - set(expected))]:
        if found.get(name) != expected.get(name):
            raise TrainingError(
                f"{file} does not hold the pruned network: {name} is {_text(found.get(name))} there and "
                f"{_text(expected.get(name))} in the pruned network; remove the file and train again"
            )


def check_saved(file: Path, expected: Shapes) -> None:
    """Make sure that the checkpoint that this process has just written holds the network that it should.

    The structure is read from the file, the weights are not: on the meta device tensors have shapes only.

    Raises:
        TrainingError: as `check_shapes`.
    """
    content = torch.load(file, map_location="meta", weights_only=False)
    check_shapes(shapes_of(content["ema"] if content["ema"] is not None else content["model"]), expected, file)


def _text(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "×".join(map(str, shape)) or "a scalar"
