"""Measure how each unit's pruning changes the score, then propose allocations from these curves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.strategies._base import Evaluate, SearchTask, Strategy
from autoprune.strategies.curves import SensitivityCurves, curves_from, probe_plan
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation

if TYPE_CHECKING:
    from typing_extensions import Self  # in Python's own from 3.11 on

PROBE_SHARE = 0.6
"""Share of the evaluations that measuring curves may take."""

RATIOS = ((0.85, 0.7, 0.5, 0.3, 0.15), (0.8, 0.6, 0.4, 0.2), (0.75, 0.5, 0.25), (0.7, 0.35), (0.5,))
"""Keep ratios at which every unit is tried alone; the first that fit are taken."""


class SurveyStrategy(Strategy):
    """Probes one unit at a time, estimates every unit's curve, and proposes allocations made of the curves.

    Args:
        constraint: the limits.
        evaluations: how many allocations may be scored, the probes among them; one is always left for a proposal.
        curves: measured before; with them nothing is probed.

    Raises:
        ConfigError: the curves belong to another space.
    """

    def __init__(self, constraint: Constraint, *, evaluations: int, curves: SensitivityCurves | None = None) -> None:
        self._constraint = constraint
        self._evaluations = evaluations
        self._curves = curves
        if curves is not None:
            curves.check(constraint.space)

    @classmethod
    def of(cls, task: SearchTask) -> Self:
        """Make it for a task."""
        return cls(task.constraint, evaluations=task.evaluations, curves=task.curves)

    @abstractmethod
    def proposals(self, rises: Sequence[Array]) -> Iterable[Counts]:
        """Return what to score, best guess first; what comes twice is scored once.

        Args:
            rises: per unit the estimated rise of the loss at each of its choices, as ``SensitivityCurves.rises``.

        Returns:
            Counts that hold the constraint, each of shape (units,); at least one.
        """

    def run(self, evaluate: Evaluate) -> None:
        """Probe, then propose until the evaluations are spent or nothing new comes."""
        space = self._constraint.space
        curves = self._curves
        if curves is None:
            plan = choose_probes(self._constraint, self._evaluations)
            curves = complete(self._constraint, curves_from(space, plan, evaluate(plan)))
        seen: set[Allocation] = set()
        for counts in self.proposals(curves.rises(space)):
            allocation = space.allocation(counts)
            if allocation not in seen:
                seen.add(allocation)
                evaluate([allocation])


def choose_probes(constraint: Constraint, evaluations: int) -> list[Allocation]:
    """Return the probes that fit in a share of the evaluations.

    As many ratios for every unit as fit; if not even one does, half of the channels of those units that hold most of
    the budgeted cost.
    """
    space = constraint.space
    most = min(int(PROBE_SHARE * evaluations), evaluations - 1)
    for ratios in RATIOS:
        plan = probe_plan(space, ratios)
        if len(plan) <= most:
            return plan
    savings = saved(constraint, np.array(plan))
    chosen = sorted(np.argsort(-savings, kind="stable")[: max(most, 0)])
    return [plan[index] for index in chosen]


def complete(constraint: Constraint, curves: SensitivityCurves) -> SensitivityCurves:
    """Return the curves with a guess for the units that ``choose_probes`` left out.

    They are given the median of the measured rises per saved cost, or the same for all if nothing was measured.
    """
    space = constraint.space
    half = probe_plan(space, RATIOS[-1])
    walked = [int(np.flatnonzero(np.array(probe) != space.dense)[0]) for probe in half]
    missing = [place for place, unit in enumerate(walked) if not curves.curves[unit].points]
    if not missing:
        return curves
    savings = saved(constraint, np.array(half))
    rates = [
        curves.curves[unit].points[0][1] / saving
        for unit, saving in zip(walked, savings, strict=True)
        if curves.curves[unit].points
    ]
    rate = float(np.median(rates)) if rates else -1.0
    completed = list(curves.curves)
    for place in missing:
        unit = walked[place]
        point = (half[place][unit], rate * float(savings[place]))
        completed[unit] = replace(completed[unit], points=(point,))
    return SensitivityCurves(tuple(completed))


def saved(constraint: Constraint, counts: Counts) -> Array:
    """Return the share of the dense network's utilization that allocations save, > 0, shape (candidates,)."""
    dense = float(constraint.utilization(constraint.space.dense))
    return np.asarray(np.maximum(dense - constraint.utilization(counts), 1e-6 * max(dense, 1e-6)) / max(dense, 1e-6))
