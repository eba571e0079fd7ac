"""Metrics that a budget can limit, and how their amounts are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autoprune.errors import BudgetError

_COUNT_UNITS = {"": "1", "k": "1e3", "m": "1e6", "g": "1e9", "t": "1e12"}
_BYTE_UNITS = {"b": "1", "kb": "1e3", "mb": "1e6", "gb": "1e9", "tb": "1e12"}
_BYTE_UNITS |= {"kib": "1024", "mib": "1048576", "gib": "1073741824"}
_TIME_UNITS = {"ms": "1", "s": "1e3", "us": "1e-3", "\u00b5s": "1e-3", "\u03bcs": "1e-3"}
_ENERGY_UNITS = {"mj": "1", "j": "1e3", "uj": "1e-3", "\u00b5j": "1e-3", "\u03bcj": "1e-3"}
_TAIL = "p95"


@dataclass(frozen=True)
class MetricSpec:
    """What is known of a metric that a budget can limit: a new one is its cost's file and a record in ``METRICS``.

    Attributes:
        name: as budgets name it.
        units: factor by suffix, in lower case; values are in the unit of factor 1.
        example: amounts as they are written.
        label: of its row in tables.
        cost: ``module:class`` of its closed form, see `autoprune.costs.CostSubject`; empty if it is measured.
        whole: whether its values are whole numbers.
        suffix: behind a printed amount.
        prefixed: whether a printed amount has a prefix such as M.

    Example:
        >>> [spec.name for spec in METRICS]
        ['latency', 'energy', 'flops', 'params', 'size', 'memory', 'channels']
        >>> spec_of("size").units["kib"]
        '1024'
    """

    name: str
    units: Mapping[str, str]
    example: str
    label: str
    cost: str = ""
    whole: bool = False
    suffix: str = ""
    prefixed: bool = True


_COSTS = "autoprune.costs"

METRICS = (
    MetricSpec("latency", _TIME_UNITS, "8ms, 0.008s, 8000us or 60%", "latency", suffix="ms"),
    MetricSpec("energy", _ENERGY_UNITS, "25mJ, 0.025J or 60%", "energy", suffix="mJ"),
    MetricSpec("flops", _COUNT_UNITS, "4.2G, 900M or 50%", "FLOPs", f"{_COSTS}:FlopsCost"),
    MetricSpec("params", _COUNT_UNITS, "1.5M, 900K or 50%", "parameters", f"{_COSTS}:ParamsCost", whole=True),
    MetricSpec(
        "size", _BYTE_UNITS, "3MB, 900KB, 2MiB or 50%", "checkpoint", f"{_COSTS}:SizeCost", whole=True, suffix="B"
    ),
    MetricSpec("memory", _BYTE_UNITS, "64MB, 2MiB or 50%", "memory", f"{_COSTS}:MemoryCost", whole=True, suffix="B"),
    MetricSpec(
        "channels", _COUNT_UNITS, "2000, 2K or 15%", "channels", f"{_COSTS}:ChannelsCost", whole=True, prefixed=False
    ),
)
"""What can be limited, in the order in which messages list it.

Values are milliseconds, millijoules, FLOPs (2 x multiply-accumulates), parameters, bytes, bytes of one image in fp32,
kept channels.
"""

_BY_NAME = {spec.name: spec for spec in METRICS}
_MEASURED = {spec.name for spec in METRICS if not spec.cost}


def metric_kind(metric: str) -> str:
    """Return which of ``METRICS`` a limit's metric is: ``latency`` for ``latency@openvino``.

    Example:
        >>> metric_kind("latency@openvino")
        'latency'
    """
    return metric.partition("@")[0]


def latency_target(metric: str) -> tuple[str, str]:
    """Return the runtime or device that a metric names, empty for the run's own, and which statistic of runs counts.

    Example:
        >>> latency_target("latency@openvino@p95"), latency_target("latency")
        (('openvino', 'p95'), ('', 'median'))
    """
    target = metric.partition("@")[2]
    if target == _TAIL or target.endswith(f"@{_TAIL}"):
        return target[: -len(_TAIL)].removesuffix("@"), _TAIL
    return target, "median"


def spec_of(metric: str) -> MetricSpec:
    """Return the record of a limit's metric.

    Raises:
        BudgetError: unknown metric.

    Example:
        >>> spec_of("latency@openvino").suffix
        'ms'
    """
    spec = _BY_NAME.get(metric_kind(metric))
    if spec is None:
        raise BudgetError(f"A budget limits one of {', '.join(_BY_NAME)}, got {metric!r}")
    return spec


def is_measured(metric: str) -> bool:
    """Return whether a limit's metric is measured while networks run, as latency and energy are, wherever that is.

    Example:
        >>> is_measured("latency@cuda:0"), is_measured("energy"), is_measured("flops")
        (True, True, False)
    """
    return metric_kind(metric) in _MEASURED


def format_amount(metric: str, value: float) -> str:
    """Return an amount as text: ``8.00 ms``, ``4.20 G``, ``1.50 M``, ``3.00 MB``, ``2000``.

    Args:
        metric: one of ``METRICS``, or ``latency@<target>``.
        value: in the metric's unit: milliseconds, millijoules, FLOPs, parameters, bytes, channels.

    Raises:
        BudgetError: unknown metric.

    Example:
        >>> format_amount("latency", 8), format_amount("flops", 4.2e9), format_amount("channels", 2000)
        ('8.00 ms', '4.20 G', '2000')
    """
    spec = spec_of(metric)
    if is_measured(metric):
        return f"{value:.2f} {spec.suffix}" if not 0 < abs(value) < 1 else f"{value:.3f} {spec.suffix}"
    if not spec.prefixed:
        return f"{value:.0f}"
    suffix = spec.suffix
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        below = round(
            abs(value) / (factor / 1e3), 2 if factor > 1e3 else 0
        )  # as the next smaller prefix would print it
        if below >= 1e3 and math.isfinite(value):
            return f"{value / factor:.2f} {prefix}{suffix}"
    return f"{value:.0f} {suffix}".rstrip()
