"""Budgets as users write them: ``latency=8ms``, ``flops=50%``, ``params=1.5M``, ``size=3MB``, ``channels=15%``.

A latency can name what it is measured on: ``latency@openvino=8ms``, ``latency@cuda:0=2ms``,
``latency@ssh://pi@cam1/openvino=20ms`` (a board, and optionally a runtime there); and that 95 of 100 runs must hold it:
``latency@p95=20ms``, ``latency@openvino@p95=20ms``. ``fps=30`` is a latency, too. So can an energy, which has no
percentiles: ``energy=25mJ``, ``energy@openvino=60%``.
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
from autoprune.metrics import METRICS, format_amount, latency_target, metric_kind, spec_of

_RUNTIMES = tuple(member.value for member in Runtime)
"""What a latency or an energy can name behind its @, next to devices."""

_SPACE = "[ \t]"
_RATE = "fps"


_AMOUNT = re.compile(rf"(?P<number>{DECIMAL}){_SPACE}*(?P<unit>[a-z\u00b5\u03bc]*|%)", re.IGNORECASE | re.ASCII)
_LARGEST_EXPONENT = 999
_LONGEST = 60


@dataclass(frozen=True)
class Limit:
    """The most that one metric of the pruned network may be.

    Attributes:
        metric: one of ``METRICS``, or ``latency@<target>`` or ``energy@<target>``: on another runtime or device than
            the run's own, and with ``@p95`` at the end the 95th percentile of a latency instead of its median.
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
        if not unit and number <= 100 and spec_of(metric).prefixed:
            raise _malformed(metric, requested, f"no network has so few; a share is written in percent: {requested}%")
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
    def parse(cls, texts: str | Sequence[str]) -> Budget:
        """Read limits, e.g. ``["latency=8ms", "flops=50%"]``; one text is one limit.

        Raises:
            BudgetError: a limit is malformed, there is none, or two limit the same metric.
        """
        return cls(tuple(Limit.parse(text) for text in _texts(texts)))

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


def budget_levels(texts: str | Sequence[str]) -> tuple[Budget, ...]:
    """Read limits of which one may list several levels, e.g. ``["latency=12ms,10ms,8ms", "params=2M"]``.

    One text is one limit. Whether a share is below an amount shows only on a network, see `check_levels`.

    Returns:
        One budget per level, in the order given; the other limits are the same in all.

    Raises:
        BudgetError: as ``Budget.parse``; or two limits list levels, or a level is not below the one before.

    Example:
        >>> [str(budget) for budget in budget_levels(["latency=12ms,10ms", "params=2M"])]
        ['latency=12ms, params=2M', 'latency=10ms, params=2M']
    """
    lists = [_listed(text) for text in _texts(texts)]
    several = [limits for limits in lists if len(limits) > 1]
    if len(several) > 1:
        raise BudgetError(
            f"Only one limit may list several levels, got {several[0][0].metric} and {several[1][0].metric}; "
            "make a run for each"
        )
    for limits in several:
        for relative in (True, False):
            for before, after in pairwise(limit for limit in limits if limit.relative == relative):
                if after.value >= before.value:
                    raise BudgetError(f"Each level must be below the one before, got {after} after {before}")
    count = len(several[0]) if several else 1
    return tuple(Budget(tuple(limits[level if len(limits) > 1 else 0] for limits in lists)) for level in range(count))


def check_levels(levels: Sequence[Budget], limits: Sequence[Mapping[str, float]]) -> None:
    """Make sure that each level is below the one before on a network.

    Args:
        levels: of one budget.
        limits: the most of each metric that each level allows, in the metric's unit.

    Raises:
        BudgetError: a level is not.

    Example:
        >>> check_levels(budget_levels(["flops=4G,50%"]), [{"flops": 4e9}, {"flops": 3e9}])
    """
    for (before, most), (after, less) in pairwise(zip(levels, limits, strict=True)):
        for one, other in zip(before, after, strict=True):
            if one != other and less[other.metric] >= most[one.metric]:
                below, above = (
                    f"{limit} ({format_amount(limit.metric, on[limit.metric])})"
                    for limit, on in ((other, less), (one, most))
                )
                raise BudgetError(
                    f"Each level must be below the one before, and on this network {below} is not below {above}; "
                    "change their order"
                )


def _texts(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _listed(text: str) -> list[Limit]:
    metric, _, amounts = text.partition("=")
    return [Limit.parse(f"{metric}={amount.strip()}" if amounts else text) for amount in amounts.split(",")]


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
    tail = "@p95" if metric.lower().endswith("@p95") else ""
    kind, at, target = metric[: len(metric) - len(tail)].partition("@")
    device, runtime = split_target(target)
    if device is None or not is_board(device_name(device)):
        return metric.lower()
    return f"{kind.lower()}{at}{device_name(device)}{f'/{runtime.lower()}' if runtime else ''}{tail}"


def _check_metric(metric: str, requested: str) -> None:
    kind, at, named = metric.partition("@")
    target, statistic = latency_target(metric)
    names = [spec.name for spec in METRICS]
    if kind not in names and kind != _RATE:
        known = ", ".join((*names, _RATE))
        raise BudgetError(f"A budget limits one of {known}, got {_quoted(metric)} in {_quoted(requested)}")
    if at and (kind not in ("latency", "energy", _RATE) or not named):
        raise BudgetError(
            "Only latency and energy are measured on a runtime or device, as in latency@openvino=8ms, got "
            f"{_quoted(requested)}"
        )
    if kind == "energy" and statistic != "median":
        raise BudgetError(
            "Energy is a mean over many runs, which has no 95th percentile; write energy=60% or latency@p95=20ms, got "
            f"{_quoted(requested)}"
        )
    device, runtime = split_target(target)
    placed = runtime in (None, *_RUNTIMES) and (device is None or is_device(device) or is_board(device))
    if target and not placed:
        raise BudgetError(
            f"{'Energy' if kind == 'energy' else 'A latency'} is measured on a runtime ({', '.join(_RUNTIMES)}), on "
            f"cpu, mps, cuda or cuda:N, or on a board ({BOARDS}[/RUNTIME])"
            f"{'' if kind == 'energy' else ', and @p95 may follow'}, got {_quoted(requested)}"
        )


def _exponent(number: str) -> int:
    """Return the power of ten that a number is written with, without its sign."""
    return int(number.lower().partition("e")[2].lstrip("+-") or "0")


def _percent(share: Decimal) -> str:
    """Return a share in percent, with an exponent if the zeros could not be counted."""
    return f"{share * 100:f}" if share > Decimal("1e-6") else f"{share * 100:.0e}"


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= _LONGEST else f"{text[:_LONGEST]!r}… ({len(text)} characters)"
