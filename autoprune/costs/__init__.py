"""Compute what an allocation costs in closed form: FLOPs, parameters, size, channels."""

from autoprune.costs.static import (
    ChannelsCost,
    CostSubject,
    FlopsCost,
    ParamsCost,
    SizeCost,
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
    "ParamsCost",
    "SizeCost",
    "parameter_shapes",
    "state_shapes",
    "uncounted",
    "undescribed_flops",
]
