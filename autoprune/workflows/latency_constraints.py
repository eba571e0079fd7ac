"""The measured limits of a budget: candidates are predicted, those that decide are measured, and both reconciled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from autoprune.arrays import Array
from autoprune.errors import BudgetUnreachableError, DeviceError
from autoprune.latency.predictor import LatencyCost
from autoprune.metrics import format_amount, is_measured
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.structure.space import Allocation
from autoprune.workflows.latency import LatencyEstimator

MARGIN = 0.025
"""Candidates are held to this share below a latency limit: what a measurement of 40 pairs may be off."""

UNUSED = 0.025
"""A candidate that leaves more than this share of its target gives accuracy away."""

CLOSE = 0.01
"""A network that was measured nearer to its limit than this might be measured above it the next time."""

_ROUNDING = 0.995  # the projection fills a budget to within a step of one unit; the prediction errs a little there

Latencies = Mapping[str, float]
"""Milliseconds or millijoules by metric."""


class LatencyConstraints:
    """The latency and energy limits of one budget, each with what measures it; false if neither is limited.

    Args:
        estimators: what measures, by metric.
        limits: what each metric may be at most; those in closed form are left aside.

    Attributes:
        limits: milliseconds or millijoules by metric.
    """

    def __init__(self, estimators: Mapping[str, LatencyEstimator], limits: Latencies) -> None:
        self.limits = {metric: limit for metric, limit in limits.items() if is_measured(metric)}
        self._estimators = {metric: estimators[metric] for metric in self.limits}
        self._targets = {metric: limit * (1 - MARGIN) for metric, limit in self.limits.items()}

    def __bool__(self) -> bool:
        return bool(self.limits)

    def __str__(self) -> str:
        return ", ".join(f"{metric} {format_amount(metric, limit)}" for metric, limit in self._targets.items())

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Raise no verdict on a budget that was measured under load: it would name a false minimum.

        Raises:
            DeviceError: the budget is out of reach by figures that were measured under load.
        """
        try:
            yield
        except BudgetUnreachableError as error:
            if not any(estimator.under_load for estimator in self._estimators.values()):
                raise
            raise DeviceError(
                f"Whether {self} can be reached needs cores of its own to be measured, and other processes used them; "
                "start a new run when they are done, or with fewer `threads`"
            ) from error

    # -- measured ----------------------------------------------------------------------------------

    def measure(self, allocation: Allocation) -> Latencies:
        """Return a candidate's latencies."""
        return {metric: estimator.measure(allocation) for metric, estimator in self._estimators.items()}

    def confirm(self, allocation: Allocation) -> Latencies:
        """Return a candidate's latencies, measured as thoroughly as what ends up in the summary."""
        return {metric: estimator.confirm(allocation) for metric, estimator in self._estimators.items()}

    def within(self, measured: Latencies) -> bool:
        """Return whether latencies are within what candidates are held to."""
        return all(measured[metric] <= target for metric, target in self._targets.items())

    def held(self, measured: Latencies) -> bool:
        """Return whether latencies are within the limits, and would be the next time."""
        return all(measured[metric] <= limit * (1 - CLOSE) for metric, limit in self.limits.items())

    def unused(self, measured: Latencies) -> float:
        """Return what share of its target a candidate leaves in the limit that binds; negative beyond it."""
        return 1 - max(measured[metric] / target for metric, target in self._targets.items())

    def reachable(self) -> str:
        """Return the measured latencies with every unit at its lower bound, as text."""
        return " and ".join(estimator.reachable() for estimator in self._estimators.values())

    def spent(self, measured: Latencies) -> bool:
        """Return whether latencies leave little of the limit that binds."""
        return self.unused(measured) <= UNUSED

    def off(self, measured: Latencies) -> bool:
        """Return whether latencies are beyond a limit, or so far below it that a search should go on from there."""
        return not self.held(measured) or self.unused(measured) > 2 * UNUSED

    # -- predicted ---------------------------------------------------------------------------------

    def cost_limits(self) -> list[CostLimit]:
        """Return the limits with their predictors, fitted to whole networks now if they are not yet."""
        return [
            CostLimit(self._estimators[metric].prediction(limit).cost, self._targets[metric])
            for metric, limit in self.limits.items()
        ]

    def calibrated(self, constraint: Constraint, allocation: Allocation) -> Constraint:
        """Return the constraint with the predictors' errors at an allocation taken out: it is measured there.

        Raises:
            BudgetUnreachableError: then even the narrowest allocation is beyond a limit.
        """
        if not self:
            return constraint
        with self.judged():
            return self.rescaled(constraint, allocation, self.measure(allocation))

    def settled(self, constraint: Constraint, log_ratios: Array) -> Constraint:
        """Return the constraint calibrated where log keep ratios, shape (units,), lie on it; they move with it."""
        for _ in range(2 if self else 0):
            constraint = self.calibrated(constraint, constraint.allocation(log_ratios))
        return constraint

    def rescaled(self, constraint: Constraint, allocation: Allocation, measured: Latencies) -> Constraint:
        """Return the constraint with each limit corrected by how far its prediction is off at one allocation."""

        def cost_limit(given: CostLimit) -> CostLimit:
            metric = given.cost.metric
            if metric not in self.limits:
                return given
            off = float(given.cost(np.array(allocation))) / measured[metric]
            return replace(given, limit=self._targets[metric] * off * _ROUNDING)

        return Constraint(constraint.space, [cost_limit(given) for given in constraint.limits])

    def corrected(self, constraint: Constraint) -> Constraint:
        """Return the constraint with predictors that are fitted to every measured candidate, too."""
        cost_limits = []
        for given in constraint.limits:
            cost = given.cost
            if isinstance(cost, LatencyCost):
                cost = self._estimators[cost.metric].corrected(cost)
            cost_limits.append(replace(given, cost=cost))
        return Constraint(constraint.space, cost_limits)
