"""Whether a cfg suits autoprune, the image size asked for, and the data set."""

from __future__ import annotations

import torch

from autoprune.errors import DataError, ModelError
from autoprune.models.darknet.build import build_layers, input_shape
from autoprune.models.darknet.cfg import Cfg
from autoprune.models.detection.data_set import DataSet


def stride_of(cfg: Cfg) -> int:
    """Return how many pixels a cell of the coarsest map has."""
    with torch.device("meta"):
        layers = build_layers(cfg)
    heads = [layer.shape for layer, section in zip(layers, cfg.layers, strict=True) if section.name == "yolo"]
    return input_shape(cfg).width // min(shape.width for shape in heads)


def classes_of(cfg: Cfg) -> int:
    """Return how many classes a network detects.

    Raises:
        ModelError: its heads disagree.
    """
    heads = [section for section in cfg.layers if section.name == "yolo"]
    classes = heads[0].integer("classes", 20)
    for head in heads:
        if head.integer("classes", 20) != classes:
            raise head.error(f"all [yolo] must have the same classes, {classes} as the first one", "classes")
    return classes


def choose_image_size(cfg: Cfg, asked: int | None) -> int:
    """Return the input size: the one asked for, or the cfg's own.

    Raises:
        ModelError: it is not a positive multiple of the stride, or the cfg's own is no square.
    """
    classes_of(cfg)
    shape = input_shape(cfg)
    if asked is None and shape.width != shape.height:
        raise cfg.net.error(f"images must be squares, got {shape.width}×{shape.height}; choose a size with `imgsz`")
    size, stride = asked or shape.width, stride_of(cfg)
    if size < 1 or size % stride:
        near = max(1, round(size / stride)) * stride
        raise ModelError(
            f"the image size must be a positive multiple of the network's stride {stride}, got {size}; try {near}"
        )
    return size


def check_classes(cfg: Cfg, data: DataSet) -> None:
    """Raise ``DataError`` where a data set has another number of classes than the network; a cfg does not name them."""
    if classes_of(cfg) != len(data.names):
        raise DataError(
            f"{cfg.file} detects {classes_of(cfg)} classes (classes= of its [yolo] sections), but {data.file} names "
            f"{len(data.names)}"
        )
