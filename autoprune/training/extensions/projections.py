"""From a student's feature maps to its teacher's widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

RIDGE = 1e-3
"""Pull of the fit towards zero, as a share of the mean square of what is read."""


class Adapters(nn.Module):
    """One 1×1 convolution per map (Romero et al., "FitNets", ICLR 2015, section 2.2, the regressor).

    They begin as the least squares fit of the first maps that they see. With random weights a pruned network would be
    taught noise until they have learnt: half of an epoch or more of a short fine-tune. They have no bias, since the
    term that reads them (`distillation_losses.feature_term`) does not see any.

    Args:
        widths: channels of each map, the student's and the teacher's.

    Attributes:
        fitted: whether they have weights that mean something.
    """

    def __init__(self, widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(given, wanted, 1, bias=False) for given, wanted in widths)
        self.fitted = False

    def forward(self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the student's maps in the teacher's widths.

        Args:
            student: maps of shape (B, C, H, W).
            teacher: its maps of the same heights and widths, which the first call fits to.
        """
        pairs = list(zip(self.layers, student, strict=True))
        if not self.fitted:
            for (layer, given), wanted in zip(pairs, teacher, strict=True):
                assert isinstance(layer, nn.Conv2d)
                _fit(layer, given, wanted)
            self.fitted = True
        return [layer(given) for layer, given in pairs]


@torch.no_grad()
def _fit(layer: nn.Conv2d, given: torch.Tensor, wanted: torch.Tensor) -> None:
    """Solve a layer's weights for the teacher's map, up to an offset per channel."""
    read, aim = (_centred(maps) for maps in (given, wanted))
    inner = read.T @ read
    inner.diagonal().add_(RIDGE * inner.diagonal().mean() + torch.finfo(inner.dtype).tiny)
    solved = torch.linalg.solve(inner, read.T @ aim)
    layer.weight.copy_(solved.T[:, :, None, None])


def _centred(maps: torch.Tensor) -> torch.Tensor:
    """Return maps as one row per place, shape (B × H × W, C), each channel with zero mean."""
    rows = (maps.cpu() if maps.device.type == "mps" else maps).double().movedim(1, -1).flatten(0, -2)
    return rows - rows.mean(0)
