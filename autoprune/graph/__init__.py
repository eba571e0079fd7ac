"""From a module and an example input to its channel groups."""

from autoprune.graph.types import ChannelGraph, Group, Ids, Layer, LayerKind, Unit, WidthAttribute

__all__ = ["ChannelGraph", "Group", "Ids", "Layer", "LayerKind", "Unit", "WidthAttribute"]
