"""A network that computes what Darknet computes from the same cfg and weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from autoprune.models.darknet.build import IMAGES, build_layers, input_shape
from autoprune.models.darknet.cfg import Cfg
from autoprune.models.darknet.layers import Convolutional, Yolo


class DarknetNetwork(nn.Module):
    """The layers of a cfg in their order; its units are named after Darknet's own numbers, ``layers.0`` and so on.

    Args:
        cfg: what it is made of.

    Attributes:
        cfg: as given. In a network that was pruned, the widths are those of its dense network; see ``current_cfg``.
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
        """Return raw maps in train mode and boxes in eval mode.

        Args:
            images: shape (B, C, H, W), RGB, values in [0, 1]. H and W may differ from the cfg's.

        Returns:
            In train mode, of every ``[yolo]`` layer its map, shape (B, anchors · (5 + classes), H', W'). In eval mode
            the boxes of all of them, shape (B, boxes, 5 + classes); see ``Yolo.decode``.
        """
        outputs: dict[int, torch.Tensor] = {IMAGES: images}
        for index, (layer, sources, done) in enumerate(zip(self.layers, self._sources, self._done, strict=True)):
            outputs[index] = layer(*(outputs[source] for source in sources))
            for source in done:  # a YOLOv4 holds hundreds of megabytes otherwise
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
        """Return black images of the size that the cfg names, shape (batch, C, H, W)."""
        shape = input_shape(self.cfg)
        parameter = next(self.parameters())
        return torch.zeros(
            batch, shape.channels, shape.height, shape.width, device=parameter.device, dtype=parameter.dtype
        )

    def current_cfg(self) -> Cfg:
        """Return the cfg of the network as it is: ``filters`` and ``groups`` as wide as its layers."""
        values: dict[tuple[int, str], int] = {}
        for index, layer in self.convolutions():
            section = self.cfg.layers[index]
            for key, width in (("filters", layer.conv.out_channels), ("groups", layer.conv.groups)):
                if section.integer(key, 1) != width:
                    values[index, key] = width
        return self.cfg.replaced(values)
