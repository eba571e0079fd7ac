"""Latency: measured in pairs, and predicted from what was measured."""

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
