"""From a module and an example input to its channel groups.

The network is exported once with ``torch.export`` and its operations are walked in order (``walk.py``): a convolution
makes new channel ids, batch norm and activations pass them on, ``cat`` joins, ``chunk`` splits and ties, additions
unite ids, and any operation without a rule pins what it touches. Channels with the same memberships form a group,
groups that must keep equal counts form a unit (``assemble.py``). Units can be joined further (``tie`` in ``types.py``).
"""

from autoprune.structure.graph.trace import copied, trace
from autoprune.structure.graph.types import (
    MIXING,
    ChannelGraph,
    Group,
    Layer,
    LayerKind,
    Tie,
    Unit,
    WidthAttribute,
    tie,
)

__all__ = [
    "MIXING",
    "ChannelGraph",
    "Group",
    "Layer",
    "LayerKind",
    "Tie",
    "Unit",
    "WidthAttribute",
    "copied",
    "tie",
    "trace",
]
