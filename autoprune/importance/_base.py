"""What a criterion is: a score for every channel of every group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from autoprune.graph import ChannelGraph

Scores = npt.NDArray[np.float64]


class Importance(ABC):
    """A criterion: which channels matter.

    In a group, the score of a channel is the sum of what every member tensor says, each divided by its own mean, so
    that no layer speaks louder than another because its weights are larger.

    Attributes:
        name: how the command line and the policy name it.
    """

    name: str

    @abstractmethod
    def members(self, module: nn.Module, graph: ChannelGraph) -> Sequence[tuple[int, torch.Tensor]]:
        """Return (axis, score per position along it) for every tensor that has a say, scores ≥ 0."""

    def __call__(self, module: nn.Module, graph: ChannelGraph) -> tuple[Scores, ...]:
        """Return per group the score of each of its channels, shape (size,), higher is more important."""
        total = np.zeros(graph.channels)
        for axis, score in self.members(module, graph):
            values = score.detach().double().cpu().numpy()
            np.add.at(total, graph.axes[axis], values / max(float(values.mean()), 1e-12))
        return tuple(total[group.offset : group.offset + group.size] for group in graph.groups)

    def order(self, module: nn.Module, graph: ChannelGraph) -> tuple[npt.NDArray[np.int64], ...]:
        """Return per group its channels' numbers within the group, most important first (ties by number)."""
        return ranking(self(module, graph))


def ranking(importance: Sequence[Scores]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return per group its channels' numbers, those with the highest scores first (ties by number)."""
    return tuple(np.argsort(-scores, kind="stable") for scores in importance)
