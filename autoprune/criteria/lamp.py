"""Score channels by magnitudes that can be compared between layers (LAMP)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from autoprune.criteria._base import ChannelScores, Importance, weights
from autoprune.structure.graph import ChannelGraph


class LampImportance(Importance):
    """Squared norm as a share of all squared norms of the layer that are no smaller (Lee et al., "LAMP", ICLR 2021).

    Equation 2, with filters instead of single weights: ‖w_u‖² / Σ_{v: ‖w_v‖ ≥ ‖w_u‖} ‖w_v‖². The largest filter of
    every layer scores 1, so that a threshold over all layers never empties one.
    """

    name = "lamp"
    normalised = False

    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[ChannelScores]:
        """Return the score per channel for every weight."""
        return [ChannelScores(channels, _shares(rows.square().sum(1))) for channels, rows in weights(module, graph)]


def _shares(squares: torch.Tensor) -> torch.Tensor:
    """Return each number's share of the sum of all that are no smaller, shape as given."""
    ascending, order = squares.sort(stable=True)
    remaining = ascending.flip(0).cumsum(0).flip(0)
    shares = torch.empty_like(squares)
    shares[order] = ascending / remaining.clamp(min=torch.finfo(squares.dtype).tiny)
    return shares
