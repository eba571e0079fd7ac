"""Blocks in the style of YOLOv7 (Wang et al., CVPR 2023)."""

from __future__ import annotations

import torch
from torch import nn


class Conv(nn.Module):
    def __init__(self, given: int, made: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, made, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(made)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.bn(self.conv(x)))
        return y


class Elan(nn.Module):
    """Two branches and two deeper taps of one of them, all joined (figure 2 of the paper)."""

    def __init__(self, given: int, hidden: int, made: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(given, hidden), Conv(given, hidden)
        self.cv3 = nn.Sequential(Conv(hidden, hidden, 3), Conv(hidden, hidden, 3))
        self.cv4 = nn.Sequential(Conv(hidden, hidden, 3), Conv(hidden, hidden, 3))
        self.cv5 = Conv(4 * hidden, made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps = [self.cv1(x), self.cv2(x)]
        taps.append(self.cv3(taps[-1]))
        taps.append(self.cv4(taps[-1]))
        y: torch.Tensor = self.cv5(torch.cat(taps[::-1], 1))
        return y


class Down(nn.Module):
    """Halves the image twice, by pooling and by a strided convolution, and joins the two."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, 2)
        self.cv1 = Conv(given, made // 2)
        self.cv2, self.cv3 = Conv(given, made // 2), Conv(made // 2, made // 2, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.cv3(self.cv2(x)), self.cv1(self.pool(x))], 1)


class Sppcspc(nn.Module):
    """Spatial pyramid pooling in a cross-stage block."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3, self.cv4 = (
            Conv(given, made),
            Conv(given, made),
            Conv(made, made, 3),
            Conv(made, made),
        )
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (5, 9, 13))
        self.cv5, self.cv6, self.cv7 = Conv(4 * made, made), Conv(made, made, 3), Conv(2 * made, made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.cv4(self.cv3(self.cv1(x)))
        inner = self.cv6(self.cv5(torch.cat([inner, *(pool(inner) for pool in self.pools)], 1)))
        y: torch.Tensor = self.cv7(torch.cat((inner, self.cv2(x)), dim=1))
        return y


class RepConv(nn.Module):
    """A convolution next to a pointwise one and, where it keeps the width, a bare batch norm (Ding et al., 2021)."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(given) if given == made else None
        self.rbr_dense = nn.Sequential(nn.Conv2d(given, made, 3, 1, 1, bias=False), nn.BatchNorm2d(made))
        self.rbr_1x1 = nn.Sequential(nn.Conv2d(given, made, 1, bias=False), nn.BatchNorm2d(made))
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        y: torch.Tensor = self.act(self.rbr_dense(x) + self.rbr_1x1(x) + identity)
        return y


class ImplicitA(nn.Module):
    """Knowledge that is learnt and added, a number per channel (Wang et al., "YOLOR", 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(0.02 * torch.randn(1, width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.implicit + x


class ImplicitM(nn.Module):
    """Knowledge that is learnt and multiplied, a number per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(1 + 0.02 * torch.randn(1, width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.implicit * x
