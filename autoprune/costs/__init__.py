"""Compute what an allocation costs in closed form: FLOPs, parameters, size, memory, channels."""

from autoprune.costs.memory import MemoryCost
from autoprune.costs.static import (
    ChannelsCost,
    CostSubject,
    FlopsCost,
    ParamsCost,
    SizeCost,
    idle_layers,
    parameter_shapes,
    state_shapes,
    uncounted,
    undescribed_flops,
)
from autoprune.structure.constraint import Cost

__all__ = [
    "ChannelsCost",
    "Cost",
    "CostSubject",
    "FlopsCost",
    "MemoryCost",
    "ParamsCost",
    "SizeCost",
    "idle_layers",
    "parameter_shapes",
    "state_shapes",
    "uncounted",
    "undescribed_flops",
]
