"""A detector of these blocks, in YOLOv7's style."""

from __future__ import annotations

import torch
from torch import nn

from .blocks import Conv, Down, Elan, ImplicitA, ImplicitM, RepConv, Sppcspc


class IDetect(nn.Module):
    """Anchors' predictions with implicit knowledge: raw in training, decoded in use."""

    anchors: torch.Tensor

    def __init__(self, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.no, self.na = classes + 5, 3
        self.stride = (8, 16)
        self.register_buffer("anchors", torch.rand(len(widths), self.na, 2) * 32 + 4)
        self.m = nn.ModuleList(nn.Conv2d(width, self.no * self.na, 1) for width in widths)
        self.ia = nn.ModuleList(ImplicitA(width) for width in widths)
        self.im = nn.ModuleList(ImplicitM(self.no * self.na) for _ in widths)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor] | torch.Tensor:
        raw, decoded = [], []
        for index, x in enumerate(maps):
            y = self.im[index](self.m[index](self.ia[index](x)))
            batch, _, height, width = y.shape
            y = y.view(batch, self.na, self.no, height, width).permute(0, 1, 3, 4, 2).contiguous()
            raw.append(y)
            if not self.training:
                rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
                grid = torch.stack((columns, rows), 2).view(1, 1, height, width, 2).to(y)
                centres = (y[..., :2].sigmoid() * 2 - 0.5 + grid) * self.stride[index]
                sizes = (y[..., 2:4].sigmoid() * 2) ** 2 * self.anchors[index].view(1, self.na, 1, 1, 2)
                found = torch.cat((centres, sizes, y[..., 4:].sigmoid()), 4)
                decoded.append(found.view(batch, -1, self.no))
        return raw if self.training else torch.cat(decoded, 1)


class Model(nn.Module):
    """Layers in a row; each tells which of the earlier ones it reads, as YOLO's files have it."""

    def __init__(self, classes: int = 2, width: int = 8) -> None:
        super().__init__()
        w = width
        layers: list[tuple[nn.Module, int | list[int]]] = [
            (Conv(3, w, 3, 2), -1),
            (Conv(w, 2 * w, 3, 2), -1),
            (Elan(2 * w, w, 4 * w), -1),
            (Down(4 * w, 4 * w), -1),
            (Elan(4 * w, 2 * w, 4 * w), -1),
            (Down(4 * w, 8 * w), -1),
            (Sppcspc(8 * w, 4 * w), -1),
            (nn.Upsample(scale_factor=2), -1),
            (Elan(8 * w, w, 4 * w), [-1, 4]),
            (RepConv(4 * w, 4 * w), -1),
            (RepConv(4 * w, 8 * w), 6),
            (IDetect(classes, (4 * w, 8 * w)), [9, 10]),
        ]
        self.model = nn.Sequential(*(layer for layer, _ in layers))
        self.sources = [source for _, source in layers]
        self.names = [str(index) for index in range(classes)]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor] | torch.Tensor:
        outputs: list[torch.Tensor] = []
        for index, (layer, source) in enumerate(zip(self.model, self.sources, strict=True)):
            last = x if index == 0 else outputs[-1]
            if isinstance(source, list):
                read = [last if one == -1 else outputs[one] for one in source]
                given = read if isinstance(layer, IDetect) else torch.cat(read, 1)
            else:
                given = last if source == -1 else outputs[source]
            x = layer(given)
            outputs.append(x)
        return x
