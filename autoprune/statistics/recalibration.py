"""Batch norm statistics made to fit a network whose weights have changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def recalibrate(module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Replace batch norm statistics by those of the inputs (Li et al., "EagleEye", ECCV 2020, section 3.3).

    Args:
        module: changed in place; left in eval mode.
        inputs: tensors of shape (B, C, H, W); every one counts the same.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    module.train()
    with torch.no_grad():
        for tensor in inputs:
            module(tensor)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
