"""What an allocation costs: closed forms (FLOPs, parameters, size, channels) and measured, predicted latency."""

from autoprune.cost._base import Cost
from autoprune.cost.latency import LatencyCost, LatencyError, Sample, latency_predictor
from autoprune.cost.meter import LatencyMeter
from autoprune.cost.samples import spread_allocations
from autoprune.cost.static import (
    ChannelsCost,
    FlopsCost,
    ParamsCost,
    SizeCost,
    parameter_shapes,
    state_shapes,
    uncounted,
    undescribed_flops,
)
from autoprune.cost.timing import Effort, PairedTiming, Timing

__all__ = [
    "ChannelsCost",
    "Cost",
    "Effort",
    "FlopsCost",
    "LatencyCost",
    "LatencyError",
    "LatencyMeter",
    "PairedTiming",
    "ParamsCost",
    "Sample",
    "SizeCost",
    "Timing",
    "latency_predictor",
    "parameter_shapes",
    "spread_allocations",
    "state_shapes",
    "uncounted",
    "undescribed_flops",
]
