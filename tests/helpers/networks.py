"""Networks that the structure tests run on, built without weights: stock Ultralytics YAMLs and torchvision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
import torchvision
from torch import nn
from ultralytics.nn.tasks import DetectionModel, PoseModel, SegmentationModel

from autoprune.structure.graph import MIXING, ChannelGraph
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space

FREE_OUTPUTS = frozenset({"feats"})

DETECTORS = ("yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
"""The smallest detector of every family of Ultralytics'."""

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(DetectionModel, f"{name}.yaml", verbose=False) for name in ("yolov3", *DETECTORS)},
    "yolov8n-seg": partial(SegmentationModel, "yolov8n-seg.yaml", verbose=False),
    "yolov8n-pose": partial(PoseModel, "yolov8n-pose.yaml", verbose=False),
    "resnet18": partial(torchvision.models.resnet18, num_classes=10),
    "mobilenet_v2": partial(torchvision.models.mobilenet_v2, num_classes=10),
}


def build(name: str) -> nn.Module:
    """Return a network in float64 whose batch norms are far from neutral, so that mistakes show."""
    torch.manual_seed(0)
    return shaken(NETWORKS[name]())


def shaken(network: nn.Module) -> nn.Module:
    """Put a network into float64 and its batch norms far from neutral; torch's random state says how far."""
    module = network.double().eval()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.normal_(child.bias, std=0.3)
            nn.init.normal_(child.running_mean, std=0.3)
            nn.init.uniform_(child.running_var, 0.5, 1.5)
    return module


def example(size: int = 64) -> torch.Tensor:
    """Return two images in float64."""
    return torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def compared(output: object) -> list[torch.Tensor]:
    """Return the tensors of an eval-mode output that pruning must not change in shape.

    A detector returns (decoded, raw): the raw ones are compared where there are any, since decoding end-to-end heads
    ends in a top-k whose order may flip on equal scores.
    """
    if isinstance(output, tuple) and isinstance(output[-1], dict):
        output = output[-1]
    if isinstance(output, dict):
        return [tensor for key, value in output.items() if key not in FREE_OUTPUTS for tensor in compared(value)]
    if isinstance(output, torch.Tensor):
        return [output]
    if output is None:  # RT-DETR's place for what it has in training only
        return []
    return [tensor for value in output for tensor in compared(value)]  # type: ignore[attr-defined]


def random_keep(space: Space, seed: int) -> np.ndarray:
    """Keep a random count of every unit, and random channels of it: nothing like the orderly choices of a search."""
    rng = np.random.default_rng(seed)
    counts = [int(rng.integers(1, unit.width + 1)) for unit in space.units]
    return space.kept_channels(counts, [rng.permutation(group.size) for group in space.graph.groups])


def zeroed(module: nn.Module, graph: ChannelGraph, keep: np.ndarray) -> nn.Module:
    """Return the dense network with the outputs of every removed channel zero (all its activations map 0 to 0)."""
    masked = copy.deepcopy(module)
    state = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    transposed = {f"{path}.weight" for path, child in masked.named_modules() if isinstance(child, nn.ConvTranspose2d)}
    with torch.no_grad():
        for name, pairs in graph.tensors.items():
            if name.endswith(("running_mean", "running_var")):
                continue
            for dimension, axis in pairs:
                if dimension == (1 if name in transposed else 0):
                    removed = torch.from_numpy(np.flatnonzero(~keep[graph.axes[axis]]))
                    state[name].index_fill_(dimension, removed, 0.0)
    return masked


@contextmanager
def reading_only(module: nn.Module, graph: ChannelGraph, keep: np.ndarray) -> Iterator[None]:
    """Give every convolution and linear layer of the dense network zeros in place of removed channels."""
    axes = {
        layer.name: torch.from_numpy(np.flatnonzero(~keep[graph.axes[layer.in_axis]]))
        for layer in graph.layers
        if layer.kind in MIXING
    }
    with ExitStack() as hooks:
        for name, removed in axes.items():
            hooks.enter_context(
                module.get_submodule(name).register_forward_pre_hook(
                    lambda _, inputs, removed=removed: (inputs[0].index_fill(1, removed, 0.0),)
                )
            )
        yield


def check_exact(module: nn.Module, graph: ChannelGraph, keep: np.ndarray, images: torch.Tensor) -> nn.Module:
    """Check that a network pruned in float64 computes what the dense one does without reading what was removed."""
    module = module.double().eval()
    pruned = Slicer(module, graph).materialise(keep)
    with torch.no_grad(), reading_only(module, graph, keep):
        expected = module(images.double())
    with torch.no_grad():
        torch.testing.assert_close(pruned(images.double()), expected, rtol=1e-9, atol=1e-9)
    return pruned
