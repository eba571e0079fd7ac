"""Build layers from the sections of a cfg, with every number checked; check image size and classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from autoprune.errors import DataError
from autoprune.image_size import ImageSize, SizeLike
from autoprune.models.darknet.cfg import Cfg, Section
from autoprune.models.darknet.layers import ACTIVATIONS, Convolutional, MaxPool, Route, Shortcut, Yolo
from autoprune.models.detection.data_set import DataSet

IMAGES = -1
"""The source of a layer that reads the network's input."""

_NEUTRAL: Mapping[str, Mapping[str, str]] = {
    "convolutional": {
        **dict.fromkeys(("antialiasing", "binary", "xnor", "flipped", "cbn", "coordconv"), "0"),
        **dict.fromkeys(("sway", "rotate", "stretch", "stretch_sway"), "0"),
        "dilation": "1",
        "share_index": "none",
    },
    "maxpool": {"maxpool_depth": "0", "antialiasing": "0", "maxpool_zero_nonmax": "0"},
    "shortcut": {"weights_type": "none"},
    "upsample": {"scale": "1"},
    "yolo": {"new_coords": "0"},
}
"""Unsupported options that would change a layer's computation, with the value that has no effect."""


@dataclass(frozen=True)
class Shape:
    """Channels, height and width of a layer's output."""

    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.channels}×{self.height}×{self.width}"


@dataclass(frozen=True)
class BuiltLayer:
    """A layer.

    Attributes:
        module: its computation.
        sources: numbers of the layers that it reads, ``IMAGES`` for the network's input.
        shape: of its output at the cfg's own image size.
    """

    module: nn.Module
    sources: tuple[int, ...]
    shape: Shape


def input_shape(cfg: Cfg) -> Shape:
    """Return the shape of the images in ``[net]``."""
    channels, height, width = (cfg.net.integer(key, least=1) for key in ("channels", "height", "width"))
    return Shape(channels, height, width)


def build_layers(cfg: Cfg) -> list[BuiltLayer]:
    """Build all layers, untrained.

    Raises:
        ModelError: an option is malformed, not supported or does not fit the layers before; the message has its line.
    """
    built: list[BuiltLayer] = []
    for index, section in enumerate(cfg.layers):
        _check_supported(section)
        sources = _sources(cfg, index)
        shapes = [input_shape(cfg) if source == IMAGES else built[source].shape for source in sources]
        module, shape = _BUILDERS[section.name](section, shapes)
        if min(shape.height, shape.width) < 1:
            raise section.error(f"[{section.name}] leaves nothing of an image of {shapes[0]}; enlarge width and height")
        built.append(BuiltLayer(module, sources, shape))
    if not any(section.name == "yolo" for section in cfg.layers):
        raise cfg.net.error("a detector needs a section [yolo], and there is none")
    return built


def _check_supported(section: Section) -> None:
    for key, neutral in _NEUTRAL.get(section.name, {}).items():
        text = section.text(key, neutral)
        if text != neutral and (neutral == "none" or section.number(key, 0.0) != float(neutral)):
            raise section.error(f"{key}={text} is not supported in [{section.name}]", key)


def _sources(cfg: Cfg, index: int) -> tuple[int, ...]:
    """Return the layers that a layer reads (``parser.c``: negative numbers count back from the layer itself)."""
    section = cfg.layers[index]
    key = {"route": "layers", "shortcut": "from"}.get(section.name)
    given = section.integers(key) if key is not None else ()
    if key is not None and not given:
        raise section.error(f"[{section.name}] needs {key}=")
    named = [number if number >= 0 else index + number for number in given]
    for number, source in zip(given, named, strict=True):
        if not 0 <= source < index:
            raise section.error(f"{key} must name layers before this one, which is number {index}; got {number}", key)
    sources = named if section.name == "route" else [index - 1, *named]
    if any(source >= 0 and cfg.layers[source].name == "yolo" for source in sources):
        raise section.error(f"[{section.name}] reads a [yolo] layer, whose boxes no layer can read")
    return tuple(sources)


def _activation(section: Section, default: str) -> nn.Module:
    name = section.text("activation", default)
    if name not in ACTIVATIONS:
        raise section.error(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name}", "activation")
    return ACTIVATIONS[name]()


def _convolutional(section: Section, shapes: Sequence[Shape]) -> tuple[nn.Module, Shape]:
    (shape,) = shapes
    filters, size, groups = (section.integer(key, 1, least=1) for key in ("filters", "size", "groups"))
    stride = section.integer("stride", 1, least=1)
    across, down = (section.integer(key, stride, least=1) for key in ("stride_x", "stride_y"))
    padding = size // 2 if section.integer("pad", 0) else section.integer("padding", 0)
    if shape.channels % groups or filters % groups:
        raise section.error(
            f"groups must divide the {shape.channels} channels that come in and the {filters} filters, got {groups}",
            "groups",
        )
    normalized = section.integer("batch_normalize", 0) > 0
    conv = nn.Conv2d(shape.channels, filters, size, (down, across), padding, groups=groups, bias=not normalized)
    module = Convolutional(conv, batch_normalize=normalized, activation=_activation(section, "logistic"))
    height = (shape.height + 2 * padding - size) // down + 1
    width = (shape.width + 2 * padding - size) // across + 1
    return module, Shape(filters, height, width)


def _maxpool(section: Section, shapes: Sequence[Shape]) -> tuple[nn.Module, Shape]:
    (shape,) = shapes
    stride = section.integer("stride", 1, least=1)
    for key in ("stride_x", "stride_y"):
        if section.integer(key, stride) != stride:
            raise section.error(f"{key} must equal stride in [maxpool], which is {stride}", key)
    size = section.integer("size", stride, least=1)
    padding = section.integer("padding", size - 1)
    if padding > 2 * (size - 1):
        raise section.error(f"padding must leave something in every window of {size}, got {padding}", "padding")
    height, width = ((side + padding - size) // stride + 1 for side in (shape.height, shape.width))
    return MaxPool(size, stride, padding), Shape(shape.channels, height, width)


def _route(section: Section, shapes: Sequence[Shape]) -> tuple[nn.Module, Shape]:
    groups, part = section.integer("groups", 1, least=1), section.integer("group_id", 0)
    first = shapes[0]
    if part >= groups:
        raise section.error(f"group_id must be below groups, which is {groups}, got {part}", "group_id")
    if any((shape.height, shape.width) != (first.height, first.width) for shape in shapes):
        raise section.error(
            f"[route] joins layers of one height and width, got {', '.join(map(str, shapes))}", "layers"
        )
    if any(shape.channels % groups for shape in shapes):
        raise section.error(f"groups must divide the channels of every layer, got {groups}", "groups")
    channels = sum(shape.channels for shape in shapes) // groups
    return Route(groups, part), Shape(channels, first.height, first.width)


def _shortcut(section: Section, shapes: Sequence[Shape]) -> tuple[nn.Module, Shape]:
    if any(shape != shapes[0] for shape in shapes):
        raise section.error(f"[shortcut] adds layers of one shape, got {', '.join(map(str, shapes))}", "from")
    return Shortcut(_activation(section, "linear")), shapes[0]


def _upsample(section: Section, shapes: Sequence[Shape]) -> tuple[nn.Module, Shape]:
    (shape,) = shapes
    stride = section.integer("stride", 2, least=1)
    larger = Shape(shape.channels, shape.height * stride, shape.width * stride)
    return nn.Upsample(scale_factor=stride, mode="nearest"), larger


def _yolo(section: Section, shapes: Sequence[Shape]) -> tuple[nn.Module, Shape]:
    (shape,) = shapes
    classes, total = section.integer("classes", 20, least=1), section.integer("num", 1, least=1)
    mask = section.integers("mask") or tuple(range(total))
    sides = section.numbers("anchors")
    if len(sides) % 2:
        raise section.error(f"anchors must be pairs of width and height, got {len(sides)} numbers", "anchors")
    anchors = list(zip(sides[::2], sides[1::2], strict=True))[:total]
    if not all(0 <= index < len(anchors) for index in mask):
        raise section.error(
            f"mask must name some of the {len(anchors)} anchors, from 0, got {', '.join(map(str, mask))}", "mask"
        )
    if shape.channels != len(mask) * (5 + classes):
        raise section.error(
            f"[yolo] with {len(mask)} anchors and {classes} classes reads {len(mask) * (5 + classes)} channels, "
            f"the layer before gives {shape.channels}; set its filters"
        )
    return Yolo([anchors[index] for index in mask], classes, section.number("scale_x_y", 1.0)), shape


_BUILDERS: Mapping[str, Callable[[Section, Sequence[Shape]], tuple[nn.Module, Shape]]] = {
    "convolutional": _convolutional,
    "maxpool": _maxpool,
    "route": _route,
    "shortcut": _shortcut,
    "upsample": _upsample,
    "yolo": _yolo,
}


def stride_of(cfg: Cfg) -> int:
    """Return the stride of the coarsest map in pixels."""
    with torch.device("meta"):
        layers = build_layers(cfg)
    heads = [layer.shape for layer, section in zip(layers, cfg.layers, strict=True) if section.name == "yolo"]
    return input_shape(cfg).width // min(shape.width for shape in heads)


def classes_of(cfg: Cfg) -> int:
    """Return the number of classes of a network.

    Raises:
        ModelError: its heads disagree.
    """
    heads = [section for section in cfg.layers if section.name == "yolo"]
    classes = heads[0].integer("classes", 20)
    for head in heads:
        if head.integer("classes", 20) != classes:
            raise head.error(f"all [yolo] must have the same classes, {classes} as the first one", "classes")
    return classes


def choose_image_size(cfg: Cfg, asked: SizeLike | None) -> ImageSize:
    """Return the input size: the one asked for, or the cfg's own.

    Raises:
        ModelError: it is not a positive multiple of the stride.
    """
    classes_of(cfg)
    shape = input_shape(cfg)
    size = ImageSize(shape.height, shape.width) if asked is None else ImageSize.of(asked)
    size.check_stride(stride_of(cfg))
    return size


def check_classes(cfg: Cfg, data: DataSet) -> None:
    """Raise ``DataError`` if the data set has another number of classes than the network; a cfg has no class names."""
    if classes_of(cfg) != len(data.names):
        raise DataError(
            f"{cfg.file} detects {classes_of(cfg)} classes (classes= of its [yolo] sections), but {data.file} names "
            f"{len(data.names)}"
        )
