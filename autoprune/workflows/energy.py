"""Whether what a budget limits can be counted, before anything else is done."""

from __future__ import annotations

from autoprune.config import BudgetedConfig
from autoprune.metrics import metric_kind
from autoprune.runtimes.energy import counter_of
from autoprune.workflows.latency import settings_of

_ANY_SHAPE = (3, 32, 32)


def check_counters(config: BudgetedConfig) -> None:
    """Check that every energy in a budget is counted where it is to be measured.

    Raises:
        DeviceError: one is not, or its device or runtime is not here.
    """
    for metric in sorted({limit.metric for budget in config.levels for limit in budget}):
        if metric_kind(metric) == "energy":
            counter_of(settings_of(metric, config, _ANY_SHAPE))
