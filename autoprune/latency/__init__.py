"""Latency, measured in pairs of networks and predicted from measurements."""

from autoprune.latency.meter import LatencyMeter
from autoprune.latency.predictor import LatencyCost, LatencyError, Sample, latency_predictor, spread_allocations
from autoprune.latency.timing import MeasurementConfig, PairedTiming, Timing

__all__ = [
    "LatencyCost",
    "LatencyError",
    "LatencyMeter",
    "MeasurementConfig",
    "PairedTiming",
    "Sample",
    "Timing",
    "latency_predictor",
    "spread_allocations",
]
