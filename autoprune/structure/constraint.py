"""Meet budgets by construction: costs, their limits, and the projection of allocations onto them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.errors import BudgetUnreachableError
from autoprune.io.finite import check_finite
from autoprune.metrics import format_amount
from autoprune.structure.space import Allocation, Space

_LARGEST = 1e3
"""Log-ratios beyond ± this count as it: e to the power of it is 0 or infinite, and larger ones round others off."""


class Cost(ABC):
    """A metric of an allocation that never falls when a unit keeps more channels.

    Attributes:
        metric: ``flops``, ``params``, ``size``, ``channels``, ``latency`` or ``energy``, as in a budget.
        unit: unit of the values: FLOPs, parameters, bytes, channels, ms, mJ.
        predicted: whether values are predictions of something that can be measured.
    """

    metric: str
    unit: str
    predicted: bool = False

    @abstractmethod
    def __call__(self, counts: Counts) -> Array:
        """Return the cost of allocations: shape (units,) → (), shape (candidates, units) → (candidates,)."""


@dataclass(frozen=True)
class CostLimit:
    """One cost with the most it may be.

    Attributes:
        cost: the cost.
        limit: in the cost's unit.
        requested: the budget that it was made of, as it was written, if there is one.
    """

    cost: Cost
    limit: float
    requested: str = ""


class Constraint:
    """All limits that an allocation of a space must hold.

    Raises:
        BudgetUnreachableError: even the narrowest allocation exceeds a limit.
        ConfigError: a limit, or the cost of the narrowest allocation, is NaN or infinite.
    """

    def __init__(self, space: Space, limits: Sequence[CostLimit]) -> None:
        self.space = space
        self.limits = tuple(limits)
        for limited in self.limits:
            metric, lowest = limited.cost.metric, float(limited.cost(space.lower))
            check_finite(
                [limited.limit, lowest],
                (f"The limit of {metric}", f"The least {metric}").__getitem__,
                way_out="a budget can be held only if both are known",
            )
            if lowest > limited.limit:
                ways_out = ["ask for more than that", *filter(None, [space.narrowing]), "or use a smaller image size"]
                raise BudgetUnreachableError(
                    f"The budget {limited.requested or metric} is out of reach: candidates may need "
                    f"{format_amount(metric, limited.limit)}, and with every unit at its lower bound the network still "
                    f"needs {format_amount(metric, lowest)}; {', '.join(ways_out)}"
                )

    def costs(self, counts: Counts) -> dict[str, float]:
        """Return every limited cost of one allocation, by metric."""
        return {limited.cost.metric: float(limited.cost(counts)) for limited in self.limits}

    def utilization(self, counts: Counts) -> Array:
        """Return the largest share cost / limit over all limits, shape () or (candidates,); at most 1 holds."""
        shares = [np.asarray(limited.cost(counts)) / limited.limit for limited in self.limits]
        return np.asarray(np.max(shares, axis=0)) if shares else np.zeros(np.shape(counts)[:-1])

    def tightened(self, share: float) -> Constraint:
        """Return the constraint with every limit at a share of what it is, or at the least that can be reached."""
        lowest = [float(limited.cost(self.space.lower)) for limited in self.limits]
        limits = [max(share * limited.limit, least) for limited, least in zip(self.limits, lowest, strict=True)]
        return Constraint(
            self.space, [replace(limited, limit=limit) for limited, limit in zip(self.limits, limits, strict=True)]
        )

    def holds(self, counts: Counts) -> bool:
        """Return whether one allocation holds every limit."""
        return bool(self.utilization(counts) <= 1)

    def project(self, log_ratios: Array) -> Counts:
        """Scale keep ratios by one common factor onto the budget, round, and give back what rounding left.

        Args:
            log_ratios: the target, natural logarithm of a keep ratio per unit, shape (units,); only differences
                between units matter.

        Returns:
            Counts that hold every limit, shape (units,); no unit can be widened by a step without breaking one.

        Raises:
            ConfigError: a log-ratio is NaN or infinite.
        """
        space = self.space
        space.check_units("log keep ratio", log_ratios)
        target_log_ratios = np.clip(np.asarray(log_ratios, dtype=np.float64), -_LARGEST, _LARGEST)

        def scaled(shift: float) -> Counts:
            return space.round_down(np.exp(np.minimum(target_log_ratios + shift, 0.0)))

        low, high = float(np.log(1e-4) - target_log_ratios.max()), float(-target_log_ratios.min())
        if not self.holds(scaled(low)):  # a unit so wide that this is above its lower bound
            return self.greedy_fill(space.lower, target_log_ratios + low)
        if self.holds(scaled(high)):
            return self.greedy_fill(scaled(high), target_log_ratios)
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if self.holds(scaled(middle)) else (low, middle)
        return self.greedy_fill(scaled(low), target_log_ratios + low)

    def allocation(self, log_ratios: Array) -> Allocation:
        """Return the counts of `project` as an allocation."""
        return self.space.allocation(self.project(log_ratios))

    def greedy_fill(self, counts: Counts, log_ratios: Array) -> Counts:
        """Widen units step by step while every limit holds, those furthest below their target first.

        Raises:
            ConfigError: a log-ratio is NaN or infinite.
        """
        self.space.check_units("log keep ratio", log_ratios)
        space, counts = self.space, counts.copy()
        open_units = set(range(len(space)))
        while open_units:
            missing = log_ratios - space.log_ratios(counts)
            unit = max(open_units, key=lambda index: (missing[index], -index))
            wider = space.next_up(counts, unit)
            if wider is None:
                open_units.discard(unit)
                continue
            before, counts[unit] = counts[unit], wider
            if not self.holds(counts):
                counts[unit] = before
                open_units.discard(unit)
        return counts

    def cap(self, decided: Counts, unit: int) -> int:
        """Return the widest choice of a unit that leaves the budget reachable (AMC's rule, He et al. 2018, Alg. 1).

        Args:
            decided: counts of the units before ``unit``, with every later unit at its lower bound, shape (units,).
            unit: the unit to decide.

        Returns:
            The cap on the *rounded* cost: with this count and all later units at their lower bounds every limit holds.
        """
        choices = self.space.choices[unit]
        trial = np.repeat(decided[None, :], len(choices), axis=0)
        trial[:, unit] = choices
        fitting = np.flatnonzero(self.utilization(trial) <= 1)
        return int(choices[fitting[-1]]) if len(fitting) else int(choices[0])
