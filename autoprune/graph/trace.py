"""Export a network and walk it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.graph.assemble import assemble
from autoprune.graph.rules import RULES
from autoprune.graph.types import ChannelGraph
from autoprune.graph.walk import Walk


def trace(module: nn.Module, example: torch.Tensor, *, free_outputs: Collection[str] = ()) -> ChannelGraph:
    """Export the network in train mode, walk its operations once and return its channel groups.

    Args:
        module: the network, in any mode; it is not modified.
        example: an input of shape (B, C, H, W) with B at least 2; layer sizes are recorded for its H and W.
        free_outputs: keys of an output dictionary whose tensors may change their channel count.

    Raises:
        ModelError: the network cannot be exported.
    """
    copied = copy.deepcopy(module).train()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(copied, (example,), strict=False)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"torch.export must be able to export a network before its channel groups can be found; "
            f"{type(module).__name__} fails with: {reason}"
        ) from error
    return assemble(Walk(copied, exported, free_outputs=frozenset(free_outputs)).run(RULES))
