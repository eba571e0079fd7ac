"""Check a loaded network against autoprune, the image size, the memory and the data set, and prepare it for use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import DataError, ModelError
from autoprune.image_size import ImageSize, SizeLike
from autoprune.listener import warn
from autoprune.models import stock
from autoprune.models._memory import check_memory
from autoprune.models.detection.channels import check_channels, input_channels
from autoprune.models.detection.data_set import DataSet
from autoprune.models.ultralytics.contents import usable
from autoprune.models.ultralytics.data import read_data
from autoprune.models.ultralytics.plain import shown
from autoprune.models.ultralytics.tasks import TASKS, classes_of, task_of
from autoprune.models.ultralytics.validation import VALIDATION_BATCH

DEFAULT_SIZE, LEAST_SIZE = 640, 32
"""Default and smallest image size in pixels."""

_EXAMPLES = 2
"""Images of one batch if there is no data set."""


def stride_of(module: nn.Module) -> int:
    """Return the network's largest stride in pixels."""
    stride: Any = module.stride
    return int(stride.max())


def check_network(weights: Path, module: nn.Module) -> None:
    """Raise ``ModelError`` for a network that is not supported, or can no longer be pruned."""
    check_task(weights, module)
    _check_unfused(weights, module)


def check_task(weights: Path, module: nn.Module) -> None:
    """Raise ``ModelError`` for a network whose task is not supported."""
    if type(module) in TASKS:
        return
    kind = type(module).__name__
    raise ModelError(
        f"{weights} holds a {kind}, and only networks of the YOLOv3 to YOLO26 and RT-DETR families "
        f"({', '.join(sorted(cls.__name__ for cls in TASKS))}) are supported"
    )


def _check_unfused(weights: Path, module: nn.Module) -> None:
    """Raise ``ModelError`` for a network whose batch norms were folded into its convolutions."""
    network: Any = module
    if network.is_fused():
        raise ModelError(
            f"{weights} was fused already, its batch norms folded into its convolutions as an export does it, and can "
            "be neither pruned nor exported; give the checkpoint from before, such as the model.pt of a run"
        )


def choose_image_size(module: nn.Module, asked: SizeLike | None, train_args: Mapping[str, Any]) -> ImageSize:
    """Return the input size: the one asked for, or the trained one rounded up to the stride.

    Raises:
        ModelError: the size asked for is not a positive multiple of the stride, or the trained one is no size.
    """
    stride = stride_of(module)
    if asked is not None:
        size = ImageSize.of(asked)
        size.check_stride(stride)
        return size
    given = train_args.get("imgsz")
    trained = list(given) if isinstance(given, (list, tuple)) and given else [given or DEFAULT_SIZE]
    if len(trained) > 2 or not all(type(side) is int and side > 0 for side in trained):
        raise ModelError(f"the checkpoint was trained at imgsz {shown(given)}, no image size; give `imgsz`")
    sides = (-(-max(LEAST_SIZE, side) // stride) * stride for side in (trained[0], trained[-1]))
    return ImageSize(*sides)  # rounded up, as Ultralytics does itself


def check_activations(module: nn.Module, size: ImageSize, *, name: str, validated: bool, device: torch.device) -> None:
    """Check that one batch fits into memory: of the validation if there is data, else of examples."""
    images = VALIDATION_BATCH if validated else _EXAMPLES
    check_memory(
        module, size, name=name, channels=input_channels(module), stride=stride_of(module), images=images, device=device
    )


def prepared(module: nn.Module, train_args: Mapping[str, Any]) -> nn.Module:
    """Return a loaded network in the form that training, loss and gradients need; it is changed in place."""
    network: Any = module.float().eval()
    with stock.quiet():
        network.args = stock.get_cfg(dict(train_args))  # the loss reads its gains as attributes
    network.criterion = None
    network.nc = classes_of(network)  # RT-DETR's loss reads it, and an untrained network has none
    for name, parameter in network.named_parameters():
        parameter.requires_grad = ".dfl." not in name  # the bins of the distribution are fixed
    return module


def data_for(module: nn.Module, weights: Path, data: Path, train_args: Mapping[str, Any]) -> DataSet:
    """Read a data set as a network's training did, and check that it has the network's channels and classes.

    Raises:
        DataError: it is missing or malformed, or its classes or channels are not the network's.
    """
    found = read_data(data, task_of(module).name, single_class=bool(train_args["single_cls"]))
    with usable(weights):
        check_channels(weights, input_channels(module), found.settings)
        check_classes(weights, module, found)
    return found


def check_classes(weights: Path, module: nn.Module, data: DataSet) -> None:
    """Raise ``DataError`` if a data set's classes differ from the network's in number or order; warn if all do."""
    count = classes_of(module)
    if count != len(data.names):
        raise DataError(f"{weights} tells {count} classes apart, but {data.file} names {len(data.names)}")
    names: Any = module.names
    known = tuple(str(names[index]) for index in range(count))
    if known != data.names and sorted(known) == sorted(data.names):
        raise DataError(
            f"{data.file} lists the classes in another order than {weights}: {list(data.names)}, not {list(known)}"
        )
    words = [{name.lower() for name in of if not name.isdecimal()} for of in (known, data.names)]  # others say nothing
    if all(words) and not words[0] & words[1]:
        warn(
            f"{data.file} names the classes {shown(list(data.names))}, and {weights} {shown(list(known))}: are they "
            "those that it was trained on?"
        )
    head: Any = module.get_submodule("model")[-1]  # type: ignore[index]
    wanted = list(getattr(head, "kpt_shape", ()))
    if wanted and list(data.settings.get("kpt_shape", ())) != wanted:
        raise DataError(
            f"{weights} finds keypoints of the shape {wanted}, but {data.file} has kpt_shape "
            f"{data.settings.get('kpt_shape')}"
        )


def name_of(module: nn.Module, weights: Path) -> str:
    """Return the name of the architecture, e.g. ``yolov8n``, from the network's YAML."""
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
