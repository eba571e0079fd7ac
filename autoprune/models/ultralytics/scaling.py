"""Networks that have learnt nothing yet, from a stock YAML: as it stands, or with another width multiple."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.models import stock
from autoprune.models.detection.channels import input_channels


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
        network: Any = type(module)(description, ch=input_channels(source), nc=description["nc"], verbose=False)
    network.names = deepcopy(source.names)
    smaller: nn.Module = network
    return smaller


def build_untrained(description: Mapping[str, Any], data: Mapping[str, Any], *, seed: int) -> nn.Module:
    """Return a network as its YAML describes it, with fresh weights, on the CPU.

    Args:
        description: of `describe`.
        data: the data set's description, which has the classes, the channels of images and the shape of keypoints.
        seed: of the weights; torch's random state stays as it is.

    Raises:
        ModelError: Ultralytics cannot build it.
    """
    name = description["yaml_file"]
    with stock.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extra = {"data_kpt_shape": data.get("kpt_shape", (None, None))} if kind_of(description) is _POSE else {}
        try:
            network: Any = kind_of(description)(
                dict(description), ch=data["channels"], nc=len(data["names"]), verbose=False, **extra
            )
        except Exception as error:  # whatever a wrong entry leads to
            raise ModelError(f"{name} describes no network that Ultralytics can build: {error}") from error
    network.names = dict(data["names"])
    fresh: nn.Module = network
    return fresh


def describe(architecture: str) -> dict[str, Any]:
    """Read a YAML of a network; nothing is downloaded.

    Args:
        architecture: the name of a YAML that Ultralytics brings, or of one's own file.

    Raises:
        ModelError: there is no such YAML, or its network's task is not supported.
    """
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
    if _head_of(description) not in _NETWORKS:
        raise ModelError(
            f"{architecture} describes a network with the head {_head_of(description)}; supported are "
            f"{', '.join(_NETWORKS)}"
        )
    return description


def kind_of(description: Mapping[str, Any]) -> type:
    """Return the class of the network that a YAML describes."""
    return _NETWORKS[_head_of(description)]


def _head_of(description: Mapping[str, Any]) -> str:
    """Return the class of a YAML's last layer."""
    try:
        return str(description["head"][-1][2])
    except (KeyError, IndexError, TypeError):
        return "none"


_POSE = stock.PoseModel

_NETWORKS: Mapping[str, type] = {
    **dict.fromkeys(("Detect", "v10Detect"), stock.DetectionModel),
    **dict.fromkeys(("Segment", "Segment26"), stock.SegmentationModel),
    **dict.fromkeys(("Pose", "Pose26"), _POSE),
    **dict.fromkeys(("OBB", "OBB26"), stock.OBBModel),
    "Classify": stock.ClassificationModel,
    "RTDETRDecoder": stock.RTDETRDetectionModel,
}
"""Class of a network by that of its head."""
