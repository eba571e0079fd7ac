"""Machines whose load is known: tests see an idle one unless they choose another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.runtimes.load import Load

IDLE = Load(cores=64, busy=0.0, share=1.0)
"""A machine whose cores nobody else uses."""

HALF = Load(cores=2, busy=1.0, share=1.0, busiest="python (process 7) 1.0")
"""A machine with one core left."""

FULL = Load(cores=2, busy=1.9, share=0.5, busiest="python (process 7) 1.0")
"""A machine without a core left."""


def set_load(patch: pytest.MonkeyPatch, *loads: Load) -> list[Load]:
    """Let commands find these loads, one after the other, the last for good, and measurements what the last disturbs.

    Returns:
        The loads that are still to be found.
    """
    import autoprune.latency.cache
    import autoprune.latency.timing
    import autoprune.workflows.latency
    import autoprune.workflows.network

    left = list(loads)

    def measure() -> Load:
        return left.pop(0) if len(left) > 1 else left[0]

    watch: Any = SimpleNamespace(disturbs=lambda threads: loads[-1].overloaded)
    patch.setattr(autoprune.workflows.network, "measure_load", measure)
    patch.setattr(autoprune.workflows.latency, "measure_load", measure)
    for module in (autoprune.latency.timing, autoprune.latency.cache):
        patch.setattr(module, "LoadWatch", lambda: watch)
    return left
