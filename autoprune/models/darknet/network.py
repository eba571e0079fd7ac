"""Darknet's networks in torch: as trained, as deployed (fused), and pruned in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from autoprune.arrays import Ids
from autoprune.errors import ConfigError
from autoprune.models.darknet.build import IMAGES, build_layers, input_shape
from autoprune.models.darknet.cfg import Cfg
from autoprune.models.darknet.layers import Convolutional, Yolo
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse

Order = Callable[[nn.Module, ChannelGraph], Sequence[Ids]]
"""(network, its channel groups) → per group its channels, most important first, as ``Importance.order``."""

_UNBOUNDED = 1e-6
"""A lower bound of keep ratios that excludes nothing."""


class DarknetNetwork(nn.Module):
    """The layers of a cfg in order; units have Darknet's layer numbers: ``layers.0``, ``layers.1`` and so on.

    Args:
        cfg: the description of the network.

    Attributes:
        cfg: as given. A pruned network keeps the cfg of its dense network; see ``current_cfg``.
        layers: one module per layer.

    Raises:
        ModelError: the cfg describes no network that is supported; the message has file and line.
    """

    def __init__(self, cfg: Cfg) -> None:
        super().__init__()
        built = build_layers(cfg)
        self.cfg = cfg
        self.layers = nn.ModuleList(layer.module for layer in built)
        self._sources = tuple(layer.sources for layer in built)
        last_reader = {source: index for index, sources in enumerate(self._sources) for source in sources}
        self._heads = tuple(index for index, layer in enumerate(self.layers) if isinstance(layer, Yolo))
        self._done = tuple(
            tuple(source for source in set(sources) - {IMAGES, *self._heads} if last_reader[source] == index)
            for index, sources in enumerate(self._sources)
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...] | torch.Tensor:
        """Return the heads' raw maps in train mode and boxes in eval mode.

        Args:
            images: shape (B, C, H, W), RGB, values in [0, 1]. H and W may differ from the cfg's.

        Returns:
            In train mode one map per ``[yolo]`` layer, shape (B, anchors · (5 + classes), H', W'). In eval mode the
            boxes of all of them, shape (B, boxes, 5 + classes); see ``Yolo.decode``.
        """
        outputs: dict[int, torch.Tensor] = {IMAGES: images}
        for index, (layer, sources, done) in enumerate(zip(self.layers, self._sources, self._done, strict=True)):
            outputs[index] = layer(*(outputs[source] for source in sources))
            for source in done:  # else a YOLOv4 would hold hundreds of megabytes
                del outputs[source]
        if self.training:
            return tuple(outputs[index] for index in self._heads)
        height, width = images.shape[2:]
        return torch.cat([head.decode(outputs[index], (height, width)) for index, head in self.heads()], 1)

    def heads(self) -> Iterator[tuple[int, Yolo]]:
        """Yield every ``[yolo]`` layer with its number, in order."""
        for index in self._heads:
            head = self.layers[index]
            assert isinstance(head, Yolo)
            yield index, head

    def convolutions(self) -> Iterator[tuple[int, Convolutional]]:
        """Yield every convolutional layer with its number, in the order of a weights file."""
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Convolutional):
                yield index, layer

    def example(self, batch: int = 2) -> torch.Tensor:
        """Return black images of the cfg's size, shape (batch, C, H, W)."""
        shape = input_shape(self.cfg)
        parameter = next(self.parameters())
        return torch.zeros(
            batch, shape.channels, shape.height, shape.width, device=parameter.device, dtype=parameter.dtype
        )

    def current_cfg(self) -> Cfg:
        """Return the cfg with ``filters`` and ``groups`` of the network's current widths."""
        values: dict[tuple[int, str], int] = {}
        for index, layer in self.convolutions():
            section = self.cfg.layers[index]
            for key, width in (("filters", layer.conv.out_channels), ("groups", layer.conv.groups)):
                if section.integer(key, 1) != width:
                    values[index, key] = width
        return self.cfg.replaced(values)


class DeployedDarknet(nn.Module):
    """A fused network in eval mode with predictions in the layout of Ultralytics' detectors.

    Its attributes are those that Ultralytics' exporter and validator read.

    Args:
        network: copied.
        names: of its classes.
        stride: pixels per cell of its coarsest map.
        corners: boxes are x1, y1, x2, y2; else centre, width and height.
    """

    def __init__(self, network: DarknetNetwork, *, names: Sequence[str], stride: int, corners: bool = False) -> None:
        super().__init__()
        self.network = _fused(network)
        self.names = dict(enumerate(names))
        self.stride = torch.tensor([float(stride)])
        self.task = "detect"
        self.yaml: Mapping[str, Any] = {"yaml_file": network.cfg.file, "channels": input_shape(network.cfg).channels}
        self._corners = corners
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return boxes in pixels of the input, and class scores: (B, C, H, W) → (B, 4 + classes, boxes)."""
        found = self.network(images)
        height, width = images.shape[2:]
        centre, extent = (part * part.new_tensor([width, height]) for part in (found[..., :2], found[..., 2:4]))
        pair = [centre - extent / 2, centre + extent / 2] if self._corners else [centre, extent]
        return torch.cat([*pair, found[..., 5:]], -1).transpose(1, 2)

    def fuse(self, *_: object, **__: object) -> DeployedDarknet:
        """Return itself, fused already; Ultralytics' exporter calls this."""
        return self


def _fused(network: DarknetNetwork) -> DarknetNetwork:
    copy = deepcopy(network).eval()
    for _, layer in copy.convolutions():
        if layer.norm is not None:
            layer.conv, layer.norm = fuse_conv_bn_eval(layer.conv, layer.norm), None
    return copy


def prune(
    network: DarknetNetwork, keep: Mapping[str, int] | float, *, order: Order, round_to: int = 8
) -> DarknetNetwork:
    """Return a smaller network; batch norm is not recalibrated.

    For example, with ``autoprune.criteria.registry.make_criterion``::

        network, header = read(Path("yolov4.cfg"), Path("yolov4.weights"))
        smaller = prune(network, 0.5, order=make_criterion("l1").order)
        write(smaller, header, cfg=Path("pruned.cfg"), weights=Path("pruned.weights"))

    ``Policy.apply`` does the same by a policy file, with ``network.example()`` as its example.

    Args:
        network: not modified.
        keep: kept channels by the name of the unit (unnamed units keep all); or one keep ratio in (0, 1] for all units.
            ``autoprune.structure.validation.analyse(network, network.example()).units`` lists the units.
        order: ranks the channels of each group.
        round_to: with a ratio, widths are rounded down to multiples of this.

    Raises:
        ConfigError: a unit is unknown, or a count or the ratio is out of range.
        ModelError: the network cannot be analysed.
    """
    graph = analyse(network, network.example())
    if isinstance(keep, Mapping):
        space = Space(graph, round_to=1, min_keep=_UNBOUNDED)
        widths = {unit.name: unit.width for unit in space.units}
        if unknown := [name for name in keep if name not in widths]:
            raise ConfigError(f"{unknown[0]} is no unit of {network.cfg.file} that can be pruned")
        allocation = space.from_names({**widths, **keep})
    else:
        if not 0 < keep <= 1:
            raise ConfigError(f"The keep ratio must lie in (0, 1], got {keep:g}")
        space = Space(graph, round_to=round_to, min_keep=_UNBOUNDED)
        allocation = space.allocation(space.round_down(keep * np.ones(len(space))))
    smaller = Pruner(network, space, order(network, graph)).materialise(allocation)
    assert isinstance(smaller, DarknetNetwork)
    return smaller
