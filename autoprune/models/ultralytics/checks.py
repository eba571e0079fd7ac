"""Whether a loaded network suits autoprune, the image size asked for, and the data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import DataError, ModelError
from autoprune.models.detection.data_set import DataSet
from autoprune.models.ultralytics.plain import shown
from autoprune.models.ultralytics.tasks import TASKS, classes_of

DEFAULT_SIZE, LEAST_SIZE = 640, 32
"""Pixels of Ultralytics' images where a training names no size, and of the smallest that are sensible."""


def stride_of(module: nn.Module) -> int:
    """Return the network's largest stride in pixels."""
    stride: Any = module.stride
    return int(stride.max())


def check_task(weights: Path, module: nn.Module) -> None:
    """Raise ``ModelError`` for a network whose task is not supported."""
    if type(module) in TASKS:
        return
    kind = type(module).__name__
    raise ModelError(
        f"{weights} holds a {kind}, and only networks of the YOLOv3 to YOLO26 and RT-DETR families "
        f"({', '.join(sorted(cls.__name__ for cls in TASKS))}) are supported"
    )


def check_unfused(weights: Path, module: nn.Module) -> None:
    """Raise ``ModelError`` for a network whose batch norms were folded into its convolutions."""
    network: Any = module
    if network.is_fused():
        raise ModelError(
            f"{weights} was fused already, its batch norms folded into its convolutions as an export does it, and can "
            "be neither pruned nor exported; give the checkpoint from before, such as the model.pt of a run"
        )


def choose_image_size(module: nn.Module, asked: int | None, train_args: Mapping[str, Any]) -> int:
    """Return the input size: the one asked for, or the trained one rounded up to the stride.

    Raises:
        ModelError: the size asked for is not a positive multiple of the stride, or the trained one is no size.
    """
    stride = stride_of(module)
    if asked is None:
        given = train_args.get("imgsz")
        trained = list(given) if isinstance(given, (list, tuple)) and given else [given or DEFAULT_SIZE]
        if not all(type(side) is int and side > 0 for side in trained):
            raise ModelError(f"the checkpoint was trained at imgsz {shown(given)}, no image size; give `imgsz`")
        return -(-max(LEAST_SIZE, *trained) // stride) * stride  # rounded up, as Ultralytics does itself
    if asked < 1 or asked % stride:
        near = max(1, round(asked / stride)) * stride
        raise ModelError(
            f"the image size must be a positive multiple of the network's stride {stride}, got {asked}; try {near}"
        )
    return asked


def check_classes(weights: Path, module: nn.Module, data: DataSet) -> None:
    """Raise ``DataError`` where a data set's classes are not the network's, in number or order."""
    count = classes_of(module)
    if count != len(data.names):
        raise DataError(f"{weights} tells {count} classes apart, but {data.file} names {len(data.names)}")
    names: Any = module.names
    known = tuple(str(names[index]) for index in range(count))
    if known != data.names and sorted(known) == sorted(data.names):
        raise DataError(
            f"{data.file} lists the classes in another order than {weights}: {list(data.names)}, not {list(known)}"
        )
    head: Any = module.get_submodule("model")[-1]  # type: ignore[index]
    wanted = list(getattr(head, "kpt_shape", ()))
    if wanted and list(data.settings.get("kpt_shape", ())) != wanted:
        raise DataError(
            f"{weights} finds keypoints of the shape {wanted}, but {data.file} has kpt_shape "
            f"{data.settings.get('kpt_shape')}"
        )


def name_of(module: nn.Module, weights: Path) -> str:
    """Name the architecture, e.g. ``yolov8n``, from the YAML that the network was built from."""
    described: Any = getattr(module, "yaml", None) or {}
    stem = Path(str(described.get("yaml_file") or "")).stem
    scale = str(described.get("scale") or "")
    if not stem:
        return weights.stem
    return (
        stem
        if not scale or re.match(rf"yolo[ve]?\d+{scale}", stem)
        else re.sub(r"^(yolo[ve]?\d+)", rf"\g<1>{scale}", stem)
    )
