"""The layers of a cfg as modules.

Formulas are those of AlexeyAB's Darknet (``src/``), the origin of YOLOv4, which reads all earlier files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "relu": nn.ReLU,
    "logistic": nn.Sigmoid,
    "mish": nn.Mish,
    "swish": nn.SiLU,
}
"""Activations by Darknet's names (``activations.h``)."""

BATCH_NORM_EPSILON = 1e-5
"""In AlexeyAB's Darknet batch norm is (x − mean) / sqrt(variance + 1e-5) (``blas.c``: ``normalize_cpu``).

The original Darknet divides by sqrt(variance) + 1e-6, and OpenCV's reader by sqrt(variance + 1e-6). The three differ
visibly only if a channel's variance is itself as small as these numbers.
"""


class Convolutional(nn.Module):
    """``[convolutional]``: convolution, batch norm or bias, activation.

    Args:
        conv: the convolution, with a bias if there is no batch norm.
        batch_normalize: whether batch norm follows.
        activation: follows last.
    """

    def __init__(self, conv: nn.Conv2d, *, batch_normalize: bool, activation: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels, eps=BATCH_NORM_EPSILON) if batch_normalize else None
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, filters, H', W')."""
        x = self.conv(x)
        return self.activation(x if self.norm is None else self.norm(x))  # type: ignore[no-any-return]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the layer's tensors in the order of a weights file (``parser.c``: ``load_convolutional_weights``)."""
        if self.norm is None:
            assert self.conv.bias is not None
            return self.conv.bias, self.conv.weight
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        return self.norm.bias, self.norm.weight, mean, variance, self.conv.weight


class MaxPool(nn.Module):
    """``[maxpool]``: ⌊padding / 2⌋ of the padding lie left and above, the rest right and below (``maxpool_layer.c``).

    So ``size=2 stride=1``, whose padding is 1, keeps the image's size by one more column and row at the end.

    Args:
        size: height and width of the window.
        stride: of the window.
        padding: pixels added to height and width, filled with minus infinity.
    """

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__()
        before = padding // 2
        self.pad = nn.ConstantPad2d((before, padding - before, before, padding - before), float("-inf"))
        self.pool = nn.MaxPool2d(size, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C, H', W') with H' = ⌊(H + padding − size) / stride⌋ + 1."""
        return self.pool(self.pad(x))  # type: ignore[no-any-return]


class Route(nn.Module):
    """``[route]``: concatenates the channels of layers, or one of several equal parts of each.

    Args:
        groups: number of parts that the channels of each layer are split into.
        group_id: the part that is taken.
    """

    def __init__(self, groups: int, group_id: int) -> None:
        super().__init__()
        self.groups, self.group_id = groups, group_id

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Map tensors of shape (B, Cᵢ, H, W) to (B, Σ Cᵢ / groups, H, W)."""
        parts = [x.chunk(self.groups, 1)[self.group_id] for x in inputs] if self.groups > 1 else list(inputs)
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


class Shortcut(nn.Module):
    """``[shortcut]``: the sum of layers of one shape, then an activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Map tensors of shape (B, C, H, W) to their activated sum."""
        total = inputs[0]
        for x in inputs[1:]:
            total = total + x
        return self.activation(total)  # type: ignore[no-any-return]


class Yolo(nn.Module):
    """``[yolo]``: a head, which decodes boxes from a map; as a layer it is the identity.

    Args:
        anchors: width and height of each anchor of this head, in pixels of the network's input.
        classes: number of classes.
        scale_x_y: stretch of a box's centre around its cell; 1 keeps it within the cell.
    """

    def __init__(self, anchors: Sequence[tuple[float, float]], classes: int, scale_x_y: float) -> None:
        super().__init__()
        self.anchors, self.classes, self.scale_x_y = tuple(anchors), classes, scale_x_y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map, shape (B, anchors · (5 + classes), H, W)."""
        return x

    def decode(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return the boxes of a map (``yolo_layer.c``: ``forward_yolo_layer``, ``get_yolo_box``).

        With s = ``scale_x_y``, the cell in column i and row j of a W × H map, and an anchor (a, b):
        x = (i + s·σ(tx) − (s − 1) / 2) / W, w = exp(tw)·a / input width; y and h likewise.

        Args:
            x: the map, shape (B, anchors · (5 + classes), H, W).
            size: height and width of the network's input.

        Returns:
            Shape (B, H · W · anchors, 5 + classes), by rows, columns, anchors: centre x, y, width, height as shares of
            the input's; σ(objectness); and per class σ(class) · σ(objectness), without a threshold.
        """
        batch, _, height, width = x.shape
        x = x.view(batch, len(self.anchors), 5 + self.classes, height, width).permute(0, 3, 4, 1, 2)
        cells = torch.stack(
            torch.meshgrid(
                torch.arange(width, device=x.device, dtype=x.dtype),
                torch.arange(height, device=x.device, dtype=x.dtype),
                indexing="xy",
            ),
            dim=-1,
        ).unsqueeze(2)
        centre = cells + x[..., :2].sigmoid() * self.scale_x_y - (self.scale_x_y - 1) / 2
        centre = centre / torch.tensor([width, height], device=x.device, dtype=x.dtype)
        anchors = torch.tensor(self.anchors, device=x.device, dtype=x.dtype)
        extent = x[..., 2:4].exp() * anchors / torch.tensor([size[1], size[0]], device=x.device, dtype=x.dtype)
        objectness = x[..., 4:5].sigmoid()
        boxes = torch.cat([centre, extent, objectness, x[..., 5:].sigmoid() * objectness], -1)
        return boxes.reshape(batch, -1, 5 + self.classes)
