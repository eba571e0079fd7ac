"""Budgets as users write them: ``latency=8ms``, ``flops=50%``, ``params=1.5M``, ``size=3MB``, ``channels=15%``.

A latency can name what it is measured on: ``latency@openvino=8ms``, ``latency@cuda:0=2ms``,
``latency@ssh://pi@cam1/openvino=20ms`` (a board, and optionally a runtime there); and that 95 of 100 runs must hold it:
``latency@p95=20ms``, ``latency@openvino@p95=20ms``. ``fps=30`` is a latency, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise

from autoprune.choices import BOARDS, Runtime, device_name, is_board, is_device, split_target
from autoprune.errors import BudgetError
from autoprune.io.numerals import DECIMAL

_RUNTIMES = tuple(member.value for member in Runtime)
"""What a latency can name behind its @, next to devices."""

_COUNT_UNITS = {"": "1", "k": "1e3", "m": "1e6", "g": "1e9", "t": "1e12"}
_BYTE_UNITS = {"b": "1", "kb": "1e3", "mb": "1e6", "gb": "1e9", "tb": "1e12"}
_BYTE_UNITS |= {"kib": "1024", "mib": "1048576", "gib": "1073741824"}
_TIME_UNITS = {"ms": "1", "s": "1e3", "us": "1e-3", "\u00b5s": "1e-3", "\u03bcs": "1e-3"}
_SPACE = "[ \t]"
_RATE, _TAIL = "fps", "p95"


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
        ['latency', 'flops', 'params', 'size', 'memory', 'channels']
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

Values are milliseconds, FLOPs (2 x multiply-accumulates), parameters, bytes, bytes of one image in fp32, kept channels.
"""

_BY_NAME = {spec.name: spec for spec in METRICS}

_AMOUNT = re.compile(rf"(?P<number>{DECIMAL}){_SPACE}*(?P<unit>[a-z\u00b5\u03bc]*|%)", re.IGNORECASE | re.ASCII)
_LARGEST_EXPONENT = 999
_LONGEST = 60


@dataclass(frozen=True)
class Limit:
    """The most that one metric of the pruned network may be.

    Attributes:
        metric: one of ``METRICS``, or ``latency@<target>``: latency on another runtime or device than the run's own,
            and with ``@p95`` at the end the 95th percentile of the runs instead of their median.
        requested: the text it was read from, e.g. ``latency=60%``; reading it again gives an equal limit.
        value: in the metric's own unit, or the share of the dense network's value, in (0, 1], if ``relative``.
        relative: whether the value is a share of the dense network's.
        rate: whether it was written as images per second; the value is then the milliseconds of one image.

    Example:
        >>> limit = Limit.parse("latency@openvino=0.008s")
        >>> limit.metric, limit.value
        ('latency@openvino', 8.0)
        >>> Limit.parse("flops=50%").resolve(4e9)
        2000000000.0
        >>> Limit.parse("fps=50").metric, Limit.parse("fps=50").for_batch(4).value
        ('latency', 80.0)
    """

    metric: str
    requested: str
    value: float
    relative: bool
    rate: bool = False

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read one limit.

        Raises:
            BudgetError: unknown metric, no or unknown unit, not a number, not above zero, above 100%.
        """
        requested = text.strip(" \t")
        metric, equals, amount = (part.strip(" \t") for part in requested.partition("="))
        if not equals:
            raise BudgetError(f"A budget reads METRIC=AMOUNT, e.g. latency=8ms or flops=50%, got {_quoted(requested)}")
        metric = _spelled(metric)
        _check_metric(metric, requested)
        match = _AMOUNT.fullmatch(amount)
        if match is None or len(amount) > _LONGEST or _exponent(match["number"]) > _LARGEST_EXPONENT:
            raise _malformed(metric, requested, f"{_quoted(amount)} is not a number with a unit")
        number, unit = Decimal(match["number"]), match["unit"].lower()
        if number <= 0:
            raise _malformed(metric, requested, "the amount must be above zero")
        if metric_kind(metric) == _RATE:
            if unit not in ("", _RATE):
                raise _malformed(metric, requested, f"images per second have no unit {unit!r}")
            return cls(
                f"latency{metric[len(_RATE) :]}", requested, _finite(1000 / number, metric, requested), False, True
            )
        if unit == "%":
            if number > 100:
                raise _malformed(metric, requested, "a share of the dense network must lie in (0, 100] percent")
            return cls(metric, requested, _finite(number / 100, metric, requested), relative=True)
        value = _finite(number * _scale(metric, requested, unit), metric, requested)
        if not unit and number < 1:
            raise _malformed(metric, requested, f"a share is written in percent: {metric}={_percent(number)}%")
        return cls(metric, requested, value, relative=False)

    def for_batch(self, batch: int) -> Limit:
        """Return the limit for runs of a batch: at a rate they may take as many times longer."""
        return replace(self, value=self.value * batch) if self.rate else self

    def resolve(self, dense: float) -> float:
        """Return the limit in the metric's unit.

        Args:
            dense: the dense network's value in the metric's unit.

        Raises:
            BudgetError: the dense value is not a positive number, so that a share of it means nothing.
        """
        if not (math.isfinite(dense) and dense > 0):
            raise BudgetError(f"The dense network's {self.metric} must be a positive number, got {dense}")
        return self.value * dense if self.relative else self.value

    def __str__(self) -> str:
        return self.requested


@dataclass(frozen=True)
class Budget:
    """One or more limits that hold together, at most one for each metric.

    Attributes:
        limits: in the order they were given.

    Raises:
        BudgetError: no limit, or two for the same metric.

    Example:
        >>> budget = Budget.parse(["latency=8ms", "flops=50%"])
        >>> len(budget), str(budget)
        (2, 'latency=8ms, flops=50%')
        >>> [limit.relative for limit in budget]
        [False, True]
    """

    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        if not self.limits:
            raise BudgetError("A budget needs at least one limit, e.g. latency=8ms or flops=50%, got none")
        first: dict[str, Limit] = {}
        for limit in self.limits:
            if limit.metric in first:
                raise BudgetError(
                    f"A budget limits each metric once, got {first[limit.metric]} and {limit}; keep the one you mean"
                )
            first[limit.metric] = limit

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Budget:
        """Read limits, e.g. ``["latency=8ms", "flops=50%"]``.

        Raises:
            BudgetError: a limit is malformed, there is none, or two limit the same metric.
        """
        return cls(tuple(Limit.parse(text) for text in texts))

    def for_batch(self, batch: int) -> Budget:
        """Return the budget for runs of a batch, see `Limit.for_batch`."""
        return Budget(tuple(limit.for_batch(batch) for limit in self.limits))

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts the limits were read from; ``Budget.parse(budget.texts) == budget``."""
        return tuple(limit.requested for limit in self.limits)

    def __iter__(self) -> Iterator[Limit]:
        return iter(self.limits)

    def __len__(self) -> int:
        return len(self.limits)

    def __str__(self) -> str:
        return ", ".join(self.texts)


def budget_levels(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Read limits of which one may list several levels, e.g. ``["latency=12ms,10ms,8ms", "params=2M"]``.

    Returns:
        One budget per level, in the order given; the other limits are the same in all.

    Raises:
        BudgetError: as ``Budget.parse``; or two limits list levels, or a level is not below the one before.

    Example:
        >>> [str(budget) for budget in budget_levels(["latency=12ms,10ms", "params=2M"])]
        ['latency=12ms, params=2M', 'latency=10ms, params=2M']
    """
    lists = [_listed(text) for text in texts]
    several = [limits for limits in lists if len(limits) > 1]
    if len(several) > 1:
        raise BudgetError(
            f"Only one limit may list several levels, got {several[0][0].metric} and {several[1][0].metric}; "
            "make a run for each"
        )
    for limits in several:
        for before, after in pairwise(limits):
            if before.relative == after.relative and after.value >= before.value:
                raise BudgetError(f"Each level must be below the one before, got {after} after {before}")
    count = len(several[0]) if several else 1
    return tuple(Budget(tuple(limits[level if len(limits) > 1 else 0] for limits in lists)) for level in range(count))


def _listed(text: str) -> list[Limit]:
    metric, _, amounts = text.partition("=")
    return [Limit.parse(f"{metric}={amount.strip()}" if amounts else text) for amount in amounts.split(",")]


def metric_kind(metric: str) -> str:
    """Return which of ``METRICS`` a limit's metric is: ``latency`` for ``latency@openvino``.

    Example:
        >>> metric_kind("latency@openvino")
        'latency'
    """
    return metric.partition("@")[0]


def latency_target(metric: str) -> tuple[str, str]:
    """Return the runtime or device that a latency names, empty for the run's own, and which statistic of runs counts.

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


def is_latency(metric: str) -> bool:
    """Return whether a limit's metric is a latency, wherever it is measured.

    Example:
        >>> is_latency("latency@cuda:0"), is_latency("flops")
        (True, False)
    """
    return metric_kind(metric) == "latency"


def format_amount(metric: str, value: float) -> str:
    """Return an amount as text: ``8.00 ms``, ``4.20 G``, ``1.50 M``, ``3.00 MB``, ``2000``.

    Args:
        metric: one of ``METRICS``, or ``latency@<target>``.
        value: in the metric's unit: milliseconds, FLOPs, parameters, bytes, channels.

    Raises:
        BudgetError: unknown metric.

    Example:
        >>> format_amount("latency", 8), format_amount("flops", 4.2e9), format_amount("channels", 2000)
        ('8.00 ms', '4.20 G', '2000')
    """
    spec = spec_of(metric)
    if is_latency(metric):
        return f"{value:.2f} ms" if not 0 < abs(value) < 1 else f"{value:.3f} ms"
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


def _scale(metric: str, requested: str, unit: str) -> Decimal:
    units = spec_of(metric).units
    if unit in units:
        return Decimal(units[unit])
    reason = f"unknown unit {unit!r}" if unit else "the unit is missing"
    raise _malformed(metric, requested, reason)


def _finite(value: Decimal, metric: str, requested: str) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise _malformed(metric, requested, "the amount is too large or too small to be represented")
    return number


def _malformed(metric: str, requested: str, reason: str) -> BudgetError:
    example = "30 (images per second)" if metric_kind(metric) == _RATE else spec_of(metric).example
    return BudgetError(f"The budget {_quoted(requested)} cannot be read: {reason}; write {metric}= with {example}")


def _spelled(metric: str) -> str:
    """Return a metric in one spelling: in lower case, all but the name of a user on a board."""
    kind, at, target = metric.partition("@")
    device, runtime = split_target(target)
    if device is None or not is_board(device_name(device)):
        return metric.lower()
    return f"{kind.lower()}{at}{device_name(device)}{f'/{runtime.lower()}' if runtime else ''}"


def _check_metric(metric: str, requested: str) -> None:
    kind, at, named = metric.partition("@")
    target, _ = latency_target(metric)
    if kind == "energy":
        raise BudgetError(
            "Energy cannot be limited, since no counter of energy (RAPL, tegrastats) is read yet; limit latency or "
            f"flops, got {_quoted(requested)}"
        )
    if kind not in _BY_NAME and kind != _RATE:
        known = ", ".join((*_BY_NAME, _RATE))
        raise BudgetError(f"A budget limits one of {known}, got {_quoted(metric)} in {_quoted(requested)}")
    if at and (kind not in ("latency", _RATE) or not named):
        raise BudgetError(
            f"Only a latency is measured on a runtime or device, as in latency@openvino=8ms, got {_quoted(requested)}"
        )
    device, runtime = split_target(target)
    placed = runtime in (None, *_RUNTIMES) and (device is None or is_device(device) or is_board(device))
    if target and not placed:
        raise BudgetError(
            f"A latency is measured on a runtime ({', '.join(_RUNTIMES)}), on cpu, mps, cuda or cuda:N, or on a board "
            f"({BOARDS}[/RUNTIME]), and @p95 may follow, got {_quoted(requested)}"
        )


def _exponent(number: str) -> int:
    """Return the power of ten that a number is written with, without its sign."""
    return int(number.lower().partition("e")[2].lstrip("+-") or "0")


def _percent(share: Decimal) -> str:
    """Return a share in percent, with an exponent if the zeros could not be counted."""
    return f"{share * 100:f}" if share > Decimal("1e-6") else f"{share * 100:.0e}"


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= _LONGEST else f"{text[:_LONGEST]!r}… ({len(text)} characters)"
