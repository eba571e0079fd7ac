"""What an allocation costs: closed forms (FLOPs, parameters, size) and measured, predicted latency."""

from autoprune.cost._base import Cost
from autoprune.cost.backends import BACKENDS, Backend, open_backend
from autoprune.cost.latency import LatencyCost, LatencyError, Sample, latency_predictor
from autoprune.cost.meter import LatencyMeter
from autoprune.cost.samples import spread_allocations
from autoprune.cost.settings import MemoryFormat, Precision, Runtime, RuntimeSettings, fingerprint, runtime_settings
from autoprune.cost.static import (
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
    "BACKENDS",
    "Backend",
    "Cost",
    "Effort",
    "FlopsCost",
    "LatencyCost",
    "LatencyError",
    "LatencyMeter",
    "MemoryFormat",
    "PairedTiming",
    "ParamsCost",
    "Precision",
    "Runtime",
    "RuntimeSettings",
    "Sample",
    "SizeCost",
    "Timing",
    "fingerprint",
    "latency_predictor",
    "open_backend",
    "parameter_shapes",
    "runtime_settings",
    "spread_allocations",
    "state_shapes",
    "uncounted",
    "undescribed_flops",
]
