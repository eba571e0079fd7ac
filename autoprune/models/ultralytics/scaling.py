"""The same family, smaller: a stock YAML with another width multiple."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

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
