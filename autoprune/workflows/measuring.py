"""How a run measures: the class for a metric, the device and runtime that it names, whether energy is counted there."""

from __future__ import annotations

from autoprune.choices import COMMAND, Runtime, is_board, split_target
from autoprune.config import BudgetedConfig, MaskConfig, ProfileConfig
from autoprune.latency.energy import EnergyMeter
from autoprune.latency.meter import LatencyMeter
from autoprune.metrics import latency_target, metric_kind
from autoprune.runtimes.energy import counter_of
from autoprune.runtimes.settings import RuntimeSettings, image_size_of, measuring_device, runtime_settings
from autoprune.workflows.network import choose_device

_ANY_SHAPE = (3, 32, 32)


def meter_of(metric: str) -> type[LatencyMeter]:
    """Return the class that measures a metric."""
    return EnergyMeter if metric_kind(metric) == "energy" else LatencyMeter


def settings_of(
    metric: str, config: BudgetedConfig | ProfileConfig | MaskConfig, input_shape: tuple[int, ...]
) -> RuntimeSettings:
    """Return how networks run where a metric is measured.

    Args:
        metric: ``latency``, or ``latency@<runtime>``, ``latency@<device>`` or ``latency@<board>/<runtime>``, which say
            what differs from ``config``; so for ``energy``.
        config: the options of the run.
        input_shape: of one input.

    Raises:
        DeviceError: the device or the runtime is not here.
    """
    device, runtime, named = config.device, config.measured_on, None
    if target := latency_target(metric)[0]:
        named, name = split_target(target)
        device = named or device
        runtime = config.command if name == COMMAND.value else Runtime(name) if name else None
    if not is_board(device):
        device = choose_device(device)
    return runtime_settings(
        device if named else measuring_device(runtime, device),
        image_size=image_size_of(input_shape),
        runtime=runtime,
        precision=config.precision,
        threads=config.threads if is_board(device) == is_board(config.device) else None,
        batch=config.runtime_batch,
        with_nms=config.with_nms,
    )


def check_counters(config: BudgetedConfig) -> None:
    """Check that every energy in a budget is counted where it is to be measured.

    Raises:
        DeviceError: one is not, or its device or runtime is not here.
    """
    for metric in sorted({limit.metric for budget in config.levels for limit in budget}):
        if metric_kind(metric) == "energy":
            counter_of(settings_of(metric, config, _ANY_SHAPE))
