"""autoprune: compress a trained YOLO to a FLOPs or measured latency budget.

    import autoprune as ap

    net = ap.load("best.pt", data="data.yaml", imgsz=320)
    run = ap.search(net, budget="latency=8ms")
    print(run)
    small = ap.Policy.load(run.folder / "policy.json").apply(net)

Every command of the command line is a function here, with the same options.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autoprune.errors import (
    AutopruneError,
    AutopruneWarning,
    BudgetError,
    BudgetUnreachableError,
    ConfigError,
    DataError,
    DeviceError,
    ExportError,
    ModelError,
    PolicyError,
    RunError,
    TrainingError,
)

if TYPE_CHECKING:
    from autoprune.api.environment import make_env as make_env
    from autoprune.api.finetune import finetune as finetune
    from autoprune.api.network import Network as Network
    from autoprune.api.network import load as load
    from autoprune.api.run import Run as Run
    from autoprune.budget import Budget as Budget
    from autoprune.listener import Listener as Listener
    from autoprune.listener import SilentListener as SilentListener
    from autoprune.policy import Policy as Policy
    from autoprune.workflows.doctor import doctor as doctor

__version__ = "0.1.0"

COMMANDS = (
    *("search", "netadapt", "compare", "sensitivity", "profile", "sparsify", "slim", "apply", "train"),
    *("export", "quantize", "mask"),
)
"""The commands of the command line that are functions here."""

_HOMES = {
    "Budget": "autoprune.budget",
    "Listener": "autoprune.listener",
    "SilentListener": "autoprune.listener",
    "Network": "autoprune.api.network",
    "Policy": "autoprune.policy",
    "Run": "autoprune.api.run",
    "doctor": "autoprune.workflows.doctor",
    "finetune": "autoprune.api.finetune",
    "load": "autoprune.api.network",
    "make_env": "autoprune.api.environment",
}
"""Where a public name is defined; it is imported when it is first used, for torch takes seconds."""

__all__ = [
    "AutopruneError",
    "AutopruneWarning",
    "Budget",
    "BudgetError",
    "BudgetUnreachableError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "ExportError",
    "Listener",
    "ModelError",
    "Network",
    "Policy",
    "PolicyError",
    "Run",
    "RunError",
    "SilentListener",
    "TrainingError",
    "apply",
    "compare",
    "doctor",
    "export",
    "finetune",
    "load",
    "make_env",
    "mask",
    "netadapt",
    "profile",
    "quantize",
    "search",
    "sensitivity",
    "slim",
    "sparsify",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in COMMANDS:
        found = importlib.import_module("autoprune.api.commands").command(name)
    elif name in _HOMES:
        found = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
