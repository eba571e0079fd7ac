"""Build untrained networks from a stock YAML, unchanged or with another width multiple."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ModelError, first_line
from autoprune.io.plain_yaml import read_values
from autoprune.models import stock
from autoprune.models.detection.channels import input_channels
from autoprune.models.ultralytics.building import OWN, build, check_description
from autoprune.models.ultralytics.plain import shown
from autoprune.models.ultralytics.tasks import HEADS


def scaled(module: nn.Module, width: float) -> nn.Module | None:
    """Return an untrained network of a detector's YAML whose widths are its own times ``width``.

    Args:
        module: a network that Ultralytics built from a YAML.
        width: factor on the width multiple, above 0; Ultralytics rounds the widths up to multiples of 8.

    Returns:
        The network, on the CPU; None if the YAML names no scale.

    Raises:
        ModelError: Ultralytics cannot build the YAML's network.
    """
    source: Any = module
    check_description(source.yaml, OWN)
    description: dict[str, Any] = dict(source.yaml)
    scales = description.get("scales")
    if not scales:
        return None
    scale = description.get("scale") or next(iter(scales))
    if scale not in scales:
        raise ModelError(f"{OWN} has no scale {shown(scale)}")
    depth, multiple, most = scales[scale]
    description["scales"] = {scale: [depth, multiple * width, most]}
    description["scale"] = scale
    network: Any = build(type(module), description, name=OWN, ch=input_channels(source), nc=description.get("nc"))
    network.names = deepcopy(source.names)
    smaller: nn.Module = network
    return smaller


def build_untrained(description: Mapping[str, Any], data: Mapping[str, Any], *, seed: int) -> nn.Module:
    """Return a network as its YAML describes it, with fresh weights, on the CPU.

    Args:
        description: of `describe`.
        data: the data set's description, with its classes, image channels and shape of keypoints.
        seed: of the weights; torch's random state is restored.

    Raises:
        ModelError: it is malformed, or Ultralytics cannot build it.
    """
    kind = kind_of(description)
    extra = {"data_kpt_shape": data.get("kpt_shape", (None, None))} if kind is stock.PoseModel else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = build(
            kind, description, name=description["yaml_file"], ch=data["channels"], nc=len(data["names"]), **extra
        )
    network.names = dict(data["names"])
    fresh: nn.Module = network
    return fresh


def describe(architecture: str) -> dict[str, Any]:
    """Read a YAML of a network; nothing is downloaded.

    Args:
        architecture: the name of a YAML of Ultralytics, or the path of one.

    Raises:
        ModelError: there is no such YAML, it cannot be read, or its network's task is not supported.
    """
    if os.path.exists(architecture):
        try:
            read_values(Path(architecture))  # refuses endless nesting, unlike Ultralytics
        except ValueError as error:
            raise ModelError(f"{architecture} {error}") from error
    try:
        if "://" in architecture or Path(architecture).suffix not in (".yaml", ".yml"):
            raise FileNotFoundError(architecture)
        with stock.quiet():
            description: dict[str, Any] = stock.tasks.yaml_model_load(architecture)
    except FileNotFoundError as error:
        raise ModelError(
            f"There is no architecture {architecture}; name a YAML that Ultralytics brings, such as yolov3-tiny.yaml, "
            "or a file of your own"
        ) from error
    except Exception as error:  # the content is no YAML, or no mapping
        raise ModelError(f"{architecture} is not a readable YAML mapping: {first_line(error)}") from error
    if _head_of(description) not in HEADS:
        raise ModelError(
            f"{architecture} describes a network with the head {_head_of(description)}; supported are "
            f"{', '.join(HEADS)}"
        )
    return description


def kind_of(description: Mapping[str, Any]) -> type:
    """Return the class of the network that a YAML describes."""
    return HEADS[_head_of(description)]


def _head_of(description: Mapping[str, Any]) -> str:
    """Return the class of a YAML's last layer."""
    try:
        name = description["head"][-1][2]
    except (KeyError, IndexError, TypeError):
        return "none"
    return name if isinstance(name, str) else "none"
