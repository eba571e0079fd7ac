"""What every pruning criterion promises; a new one is tested in three lines."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from autoprune.criteria._base import Importance
from autoprune.structure.graph import ChannelGraph


def check_importance(importance: Importance, module: nn.Module, graph: ChannelGraph) -> None:
    """Assert the contract on a network and its channel groups."""
    before, mode = copy.deepcopy(module.state_dict()), module.training
    scores = importance(module, graph)
    assert importance.name
    assert [len(values) for values in scores] == [group.size for group in graph.groups]
    for values in scores:
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    for group, values in zip(graph.groups, scores, strict=True):
        if group.pinned is None:
            assert np.ptp(values) > 0, f"{importance.name} tells no channels of {group.name} apart"
    for once, again in zip(scores, importance(module, graph), strict=True):
        np.testing.assert_array_equal(once, again)
    assert module.training is mode
    assert all(not parameter.grad_fn and parameter.grad is None for parameter in module.parameters())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{importance.name} changed {name}"
