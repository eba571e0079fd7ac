"""The YAML from which stock Ultralytics builds a pruned network, and which widths such a YAML can express.

Ultralytics rebuilds a network from its YAML in ``train``, ``resume`` and ``tune`` and copies the weights with matching
shapes: all of them if the YAML expresses the pruned network. Each row of a YAML has one free width, its output's, a
multiple of 8; blocks have a second one, the hidden width, through the factor ``e``.

Source: Ultralytics 8.4, ``nn/tasks.py`` (``parse_model``) and ``nn/modules`` (the constructors of ``block.py``,
``conv.py`` and ``head.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.models import stock
from autoprune.models._base import Description
from autoprune.models.ultralytics.building import OWN, build, check_description
from autoprune.models.ultralytics.tasks import TASKS, TaskSpec
from autoprune.structure.graph import Tie

Row = list[Any]
"""One layer of a YAML: sources of its input, repeats, class, arguments."""

_SCALING = frozenset({"scales", "scale", "depth_multiple", "width_multiple"})
"""Entries that scale the widths and repeats of all rows."""

_WIDTHLESS = frozenset({"Upsample", "Concat", "MaxPool2d", "ZeroPad2d", "Detect"})
"""Layers whose arguments name no width of theirs."""

_HEAD_FLOOR, _CLASSES_FLOOR = 16, 100


_INSTEAD = ", or search with `stock_yaml`, which considers only networks that stock training keeps."


class StockYaml(Description):
    """Ultralytics' YAML, for detectors of the families v5, v8 and 11 and others of the same layers."""

    suffix = ".yaml"
    kept = (
        "Stock Ultralytics keeps this network pruned: the checkpoints carry the YAML that builds it (pruned.yaml), so "
        "that train, resume, val, predict and export need nothing of autoprune."
    )

    def __init__(self, task: TaskSpec = TASKS[stock.DetectionModel]) -> None:
        self.lost = (
            "Stock Ultralytics predicts with these checkpoints, validates and exports them as they are. Its train, "
            "resume and tune do NOT keep the network pruned: they build the dense one anew from the YAML inside and "
            "copy only the weights whose shapes match; all that they say is 'Transferred n/m items'. Train on with the "
            f"trainer of autoprune, {task.opener}('model.pt').train(trainer=autoprune.training.{task.trainer}, ...)"
        )
        self.lost += _INSTEAD if task is TASKS[stock.DetectionModel] else "."

    def ties(self, module: nn.Module) -> Sequence[Tie]:
        """Return the width constraints within the blocks and the head; see `Description`."""
        _verify(module, _description(module))  # if the dense network is not expressible, no pruned one is
        return [tie for number, layer in enumerate(_layers(module)) for tie in _ties(f"model.{number}", layer)]

    def described(self, module: nn.Module) -> tuple[nn.Module, str]:
        """Return a copy with its own ``yaml``, which is verified; see `Description`."""
        description = _description(module)
        _verify(module, description)
        copy: Any = deepcopy(module)
        copy.yaml = description
        return copy, _text(description)


# -- which widths depend on each other ---------------------------------------------------------------------------------


def _ties(path: str, layer: nn.Module) -> Iterator[Tie]:
    """Yield the width constraints of one row."""
    kind = type(layer).__name__
    if kind in ("C2f", "C3k2", "C3"):
        last = "cv3" if kind == "C3" else "cv2"  # every other width of the block is a fixed share of its hidden one
        yield Tie(tuple(_outputs(path, layer, but=f"{last}.conv")))
    elif kind == "SPPF":
        yield Tie(((f"{path}.cv1.conv.weight", 0), (f"{path}.cv1.conv.weight", 1)))  # hidden = input // 2
    elif kind == "C2PSA":
        yield Tie(((f"{path}.cv1.conv.weight", 1), (f"{path}.cv2.conv.weight", 0)))  # output = input
        # Its number of heads is a step function of the hidden width.
        yield Tie(tuple(_outputs(path, layer, but="cv2.conv")), pinned="heads of attention follow from the width")
    elif kind == "Detect":
        yield from _head_ties(path, layer)


def _head_ties(path: str, head: Any) -> Iterator[Tie]:
    """Yield the width constraints of the head: inner widths follow from that of its first input, P3.

    They are max(16, P3 // 4, 4 · reg_max) for boxes and max(P3, min(nc, 100)) for classes (``Detect.__init__``).
    """
    first = (f"{path}.cv2.0.0.conv.weight", 1)
    width = head.cv2[0][0].conv.in_channels
    floors = {"cv2": (4, max(_HEAD_FLOOR, 4 * head.reg_max)), "cv3": (1, min(head.nc, _CLASSES_FLOOR))}
    for branch, (divisor, floor) in floors.items():
        places = [
            (f"{path}.{branch}.{level}.{name}.weight", 0)
            for level, tower in enumerate(getattr(head, branch))
            for name, conv in list(_convolutions(tower))[:-1]  # the last one's are the outputs
            if conv.groups == 1
        ]
        if width // divisor > floor:
            yield Tie((first, *places), least=divisor * floor)
        else:
            yield Tie(tuple(places), pinned="the narrowest that Detect has for its inputs and classes")


def _outputs(path: str, layer: nn.Module, *, but: str) -> Iterator[tuple[str, int]]:
    """Yield the output axes of all convolutions of a block except one."""
    for name, _ in _convolutions(layer):
        if name != but:
            yield f"{path}.{name}.weight", 0


def _convolutions(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            yield name, child


# -- the YAML ----------------------------------------------------------------------------------------------------------


def _description(module: nn.Module) -> dict[str, Any]:
    """Return the YAML of a network, with its current widths."""
    source: Any = module
    if type(module) is not stock.DetectionModel:
        raise ModelError(
            f"A stock YAML is written for detectors, got a {type(module).__name__}; leave `stock_yaml` out"
        )
    check_description(source.yaml, OWN)
    given: dict[str, Any] = deepcopy(source.yaml)
    layers = _layers(module)
    if len(layers) != len(given["backbone"]) + len(given["head"]):
        raise ModelError(f"{OWN} must have the {len(layers)} layers that the network has; leave `stock_yaml` out")
    rows = [
        _row(number, row, layer)
        for number, (row, layer) in enumerate(zip([*given["backbone"], *given["head"]], layers, strict=True))
    ]
    split = len(given["backbone"])
    kept = {key: value for key, value in given.items() if key not in _SCALING}
    return {**kept, "backbone": rows[:split], "head": rows[split:]}


def _row(number: int, row: Row, layer: nn.Module) -> Row:
    """Return the row that builds a layer with the widths it has."""
    source, _, name, args = row
    kind = type(layer).__name__
    if kind in _WIDTHLESS and not _end_to_end(layer):
        return [source, 1, name, list(args)]
    if kind not in _WRITERS:
        raise ModelError(
            f"A stock YAML is written for the layers {', '.join([*_WRITERS, *sorted(_WIDTHLESS)])} (YOLOv5, v8, 11), "
            f"but row {number} is a {_named(layer)}; leave `stock_yaml` out"
        )
    repeats = len(layer.m) if kind in _REPEATED else 1  # type: ignore[arg-type]
    return [source, repeats, name, _WRITERS[kind](layer, args)]


def _conv(layer: Any, args: Sequence[Any]) -> Row:
    return [layer.conv.out_channels, *args[1:]]


def _sppf(layer: Any, args: Sequence[Any]) -> Row:
    return [layer.cv2.conv.out_channels, *args[1:]]


def _c2f(layer: Any, args: Sequence[Any]) -> Row:
    """Return width, shortcut, groups and e."""
    width = layer.cv2.conv.out_channels
    return [width, *_filled(args[1:3], (False, 1)), _expansion(layer.c, width)]


def _c3(layer: Any, args: Sequence[Any]) -> Row:
    """Return width, shortcut, groups and e."""
    width = layer.cv3.conv.out_channels
    return [width, *_filled(args[1:3], (True, 1)), _expansion(layer.cv1.conv.out_channels, width)]


def _c3k2(layer: Any, args: Sequence[Any]) -> Row:
    """Return width, C3k inside, e, and further arguments; scales m, l and x always have C3k inside."""
    width = layer.cv2.conv.out_channels
    return [width, type(layer.m[0]).__name__ == "C3k", _expansion(layer.c, width), *args[3:]]


def _c2psa(layer: Any, args: Sequence[Any]) -> Row:
    """Return width and e."""
    width = layer.cv2.conv.out_channels
    return [width, _expansion(layer.c, width)]


_WRITERS: Mapping[str, Callable[[Any, Sequence[Any]], Row]] = {
    "Conv": _conv,
    "C2f": _c2f,
    "C3": _c3,
    "C3k2": _c3k2,
    "SPPF": _sppf,
    "C2PSA": _c2psa,
}
"""By class of layers with a width of their own, the function that returns their arguments."""

_REPEATED = frozenset({"C2f", "C3", "C3k2", "C2PSA"})
"""Layers that repeat their inner block."""


def _filled(args: Sequence[Any], defaults: Sequence[Any]) -> Row:
    return [*args, *defaults[len(args) :]]


def _expansion(hidden: int, width: int) -> float:
    """Return an ``e`` with ``int(width * e) == hidden``, robust against rounding."""
    return (hidden + 0.5) / width


def _verify(module: nn.Module, description: Mapping[str, Any]) -> None:
    """Build the network of a YAML and compare all shapes.

    Raises:
        ModelError: one differs.
    """
    channels = description.get("channels", description.get("ch", 3))
    with torch.random.fork_rng(devices=[]):
        built = build(stock.DetectionModel, description, name=OWN, ch=channels)
    ours, theirs = ({name: tuple(x.shape) for name, x in each.state_dict().items()} for each in (module, built))
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            number = int(name.split(".")[1])
            raise ModelError(
                f"No stock YAML expresses this network: row {number} ({_named(_layers(module)[number])}) has {name} of "
                f"shape {ours.get(name)}, and Ultralytics would build {theirs.get(name)}; search with `stock_yaml`"
            )


def _text(description: Mapping[str, Any]) -> str:
    """Return a YAML as a file's text, one row per line."""
    lines = ["# Written by autoprune: builds the pruned network that pruned.pt and model.pt hold."]
    for key, value in description.items():
        if key in ("backbone", "head"):
            lines += [f"{key}:", *(f"  - {json.dumps(row)}" for row in value)]
        elif key != "yaml_file":  # Ultralytics fills in the name of the file
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _layers(module: nn.Module) -> list[nn.Module]:
    return list(module.get_submodule("model").children())


def _named(layer: nn.Module) -> str:
    """Return a layer's name for messages; a sequence comes from one repeated row."""
    if isinstance(layer, nn.Sequential):
        return f"repeated {type(layer[0]).__name__}"
    return f"end-to-end {type(layer).__name__}" if _end_to_end(layer) else type(layer).__name__


def _end_to_end(layer: nn.Module) -> bool:
    return hasattr(layer, "one2one_cv2")
