"""Channel groups of torchvision's networks, ours and Torch-Pruning's: which layers lose channels together.

``python -m tests.helpers.torch_pruning_groups`` prints the table; it needs the package torch-pruning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torchvision
from torch import nn

from autoprune.structure.graph import ChannelGraph
from autoprune.structure.validation import analyse

Members: TypeAlias = frozenset[tuple[str, str]]
"""The layers of a group: name, and whether the channels are those it makes (``out``) or reads (``in``)."""

LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)

MODELS = torchvision.models
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": partial(MODELS.resnet18, num_classes=10),
    "resnet50": partial(MODELS.resnet50, num_classes=10),
    "mobilenet_v2": partial(MODELS.mobilenet_v2, num_classes=10),
    "mobilenet_v3_small": partial(MODELS.mobilenet_v3_small, num_classes=10),
    "vgg16_bn": partial(MODELS.vgg16_bn, num_classes=10),
    "densenet121": partial(MODELS.densenet121, num_classes=10),
    "regnet_y_400mf": partial(MODELS.regnet_y_400mf, num_classes=10),
    "efficientnet_b0": partial(MODELS.efficientnet_b0, num_classes=10),
    "squeezenet1_1": partial(MODELS.squeezenet1_1, num_classes=10),
    "googlenet": partial(MODELS.googlenet, num_classes=10, aux_logits=False, init_weights=False),
}


def example() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def ours(module: nn.Module) -> tuple[set[Members], dict[Members, str]]:
    """Return the layers of the groups that can be pruned, and of those that are pinned with the reason."""
    graph = analyse(module, example())
    prunable: set[Members] = set()
    pinned: dict[Members, str] = {}
    layers = {name: child for name, child in module.named_modules() if isinstance(child, LAYERS)}
    for group in graph.groups:
        members = _members(graph, layers, range(group.offset, group.offset + group.size))
        if not members:
            continue
        if group.pinned is None:
            prunable.add(members)
        else:
            pinned[members] = group.pinned
    return prunable, pinned


def _members(graph: ChannelGraph, layers: dict[str, nn.Module], channels: range) -> Members:
    wanted = np.array(channels)
    found = set()
    for layer in graph.layers:
        child = layers.get(layer.name)
        if child is None:
            continue
        makes = np.isin(wanted, graph.axes[layer.out_axis]).any()
        reads = layer.in_axis is not None and np.isin(wanted, graph.axes[layer.in_axis]).any()
        same = makes and reads and _keeps_channels(child)
        if makes:
            found.add((layer.name, "out"))
        if reads and not same:
            found.add((layer.name, "in"))
    return frozenset(found)


def _keeps_channels(layer: nn.Module) -> bool:
    """Return whether a layer's channels are those that it reads: a batch norm, a depthwise convolution."""
    return isinstance(layer, nn.BatchNorm2d) or (isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1)


def theirs(module: nn.Module) -> set[Members]:
    """Return the layers of the groups that Torch-Pruning finds."""
    import torch_pruning

    names: dict[Any, str] = {child: name for name, child in module.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own: parameters that it wraps, deprecated calls
        graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example())
        groups = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    found = set()
    for group in groups:
        members = set()
        for dependency, _ in group:
            layer = dependency.target.module
            if isinstance(layer, LAYERS):
                makes = _keeps_channels(layer) or graph.is_out_channel_pruning_fn(dependency.handler)
                members.add((names[layer], "out" if makes else "in"))
        found.add(frozenset(members))
    return found


def compared(name: str) -> tuple[int, set[Members], set[Members], dict[Members, str]]:
    """Return how many prunable groups are equal, those only here, those only there, and what is pinned here and why."""
    module = build(name)
    here, pinned = ours(module)
    there = theirs(module)
    return len(here & there), here - there, there - here, pinned


def main() -> None:
    print("| network | equal | only here | only in Torch-Pruning |")  # noqa: T201
    for name in NETWORKS:
        equal, here, there, pinned = compared(name)
        print(f"| {name} | {equal} | {len(here)} | {len(there)} |", flush=True)  # noqa: T201
        for label, groups in (("here", here), ("there", there)):
            for group in sorted(map(sorted, groups))[:4]:
                print("   ", label, group[:6], "…" if len(group) > 6 else "", pinned.get(frozenset(group), ""))  # noqa: T201


if __name__ == "__main__":
    main()
