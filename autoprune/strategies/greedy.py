"""Reach the budget in greedy steps, each by the unit that costs least score: NetAdapt without fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.strategies._base import Evaluate, SearchTask, Strategy
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation

DECAY = 0.96
"""What a step saves relative to the one before it."""

ITERATIONS = 40
"""Steps to the budget when there is time for all: with half of the cost to be saved, the first one saves 2.5% of the
dense network's cost, as in the paper."""


def proposals(constraint: Constraint, counts: Counts, saving: float) -> list[tuple[int, Counts]]:
    """Return for each unit the allocation that prunes it alone, as little as saves enough.

    Yang et al., "NetAdapt", ECCV 2018, algorithm 1: the largest width with which the saving is reached. The cost here
    is that of the whole network, so that what a narrower unit saves in the layers after it counts.

    Args:
        constraint: the limits.
        counts: where the step starts, shape (units,).
        saving: how far ``constraint.utilization`` must fall, in shares of the limit that is exceeded most.

    Returns:
        (unit, new counts) in the order of the units; units that cannot save as much alone are left out.
    """
    space = constraint.space
    narrower = [choices[choices < count] for choices, count in zip(space.choices, counts, strict=True)]
    unit_of = np.repeat(np.arange(len(space)), [len(widths) for widths in narrower])
    if not len(unit_of):
        return []
    trials = np.repeat(counts[None, :], len(unit_of), axis=0)
    trials[np.arange(len(unit_of)), unit_of] = np.concatenate(narrower)
    enough = constraint.utilization(trials) <= float(constraint.utilization(counts)) - saving
    largest = {int(unit): trials[place].copy() for place, unit in enumerate(unit_of) if enough[place]}  # widths ascend
    return list(largest.items())


def savings(total: float, iterations: int) -> list[float]:
    """Return what each step saves, ΔR₀ · decay^i (NetAdapt, section 4.1), so that together they save ``total``."""
    shares = DECAY ** np.arange(iterations)
    return [float(share) for share in total * shares / shares.sum()]


TRIALS = 1.5
"""Units to try per step, on the average, if not all can be; fewer steps are taken when this needs it. Small
steps matter more than many trials: on the tests' toy, in 100 evaluations, 1.5 loses 0.12, 3 loses 0.14, 5 loses 0.2."""

FIRST_SHARE = 0.75
"""Every unit is tried in the first step if that takes no more than this share of the evaluations."""

SCARCE_SHARE = 0.6
"""Share of the evaluations for the first step if not every unit can be tried."""

_HALVINGS = 30


@dataclass(frozen=True)
class Step:
    """One unit pruned.

    Attributes:
        unit: which.
        counts: the allocation after it, shape (units,).
        pruned: how far the unit's squared pruned share rises.
        saving: how far the utilization falls.
    """

    unit: int
    counts: Counts
    pruned: float
    saving: float


class Estimates:
    """What each unit's pruning costs in score, as far as it is known: a · (pruned share)², a from its last trial.

    A unit never tried is given the median of what the others lose per utilization that they can save.
    """

    def __init__(self, constraint: Constraint) -> None:
        space = constraint.space
        lowest = np.repeat(space.dense[None, :], len(space), axis=0)
        np.fill_diagonal(lowest, space.lower)
        lone = np.maximum(float(constraint.utilization(space.dense)) - constraint.utilization(lowest), 1e-9)
        self.lone: Array = lone
        self._unit = lone / np.maximum(1 - space.lower / space.dense, 1e-9) ** 2
        self._rates = np.full(len(space), np.nan)

    def learn(self, step: Step, drop: float) -> None:
        """Take a trial's loss of score."""
        self._rates[step.unit] = max(drop, 0.0) / step.pruned / self._unit[step.unit]

    def drop(self, step: Step) -> float:
        """Return the loss of score to expect."""
        return float(self.slopes()[step.unit] * step.pruned)

    def slopes(self) -> Array:
        """Return a per unit, shape (units,)."""
        known = self._rates[~np.isnan(self._rates)]
        typical = float(np.median(known)) if len(known) else 1.0
        return np.asarray(np.where(np.isnan(self._rates), typical, self._rates) * self._unit)

    def target_log_ratios(self, constraint: Constraint, counts: Counts) -> Array:
        """Return log keep ratios as they are, with a little more for units whose widening should gain most."""
        ratios = constraint.space.ratios(counts)
        gains = self.slopes() * (1 - ratios) / self.lone
        ranks = np.argsort(np.argsort(gains, kind="stable"), kind="stable")
        return np.asarray(np.log(ratios) + 1e-3 * ranks / len(ratios))


Trial = tuple[Step, float, int]
"""What came of one iteration's steps: the one to keep, its score, and how many were scored."""


class GreedyStrategy(Strategy):
    """Prunes in steps (Yang et al., "NetAdapt", ECCV 2018, algorithm 1), each scored, none fine-tuned.

    Step i must save ΔR₀ · decay^i of the utilization. If the evaluations suffice every unit is tried in every step.
    With fewer the first step tries all, and later ones try the most promising first, by what is known of them, until
    the next can hardly be better than the best of the step (Minoux, "Accelerated greedy algorithms", 1978); with very
    few the last steps go by the estimates alone. The last step lands on the budget, and what rounding left is given
    back. All allocations before it are probes.

    Args:
        constraint: the limits.
        evaluations: how many allocations may be scored.
    """

    def __init__(self, constraint: Constraint, *, evaluations: int) -> None:
        self._constraint = constraint
        self._evaluations = evaluations
        self._known = Estimates(constraint)

    @classmethod
    def of(cls, task: SearchTask) -> GreedyStrategy:
        """Make it for a task."""
        return cls(task.constraint, evaluations=task.evaluations)

    def run(self, evaluate: Evaluate) -> None:
        """Take steps until the budget holds."""
        constraint = self._constraint
        counts, score, left = constraint.space.dense, 0.0, self._evaluations
        planned, first = self._plan(), True
        while not constraint.holds(counts):
            needed = float(constraint.utilization(counts)) - 1
            coming = _coming(planned, needed)
            steps = self._steps(counts, needed if coming == 1 else planned[0])
            lands = any(constraint.holds(step.counts) for step in steps)
            quota = self._first_trials if first else max(left // coming, 1)
            quota = min(quota, left if lands else left - 1)  # one evaluation is kept for the allocation that holds
            if not steps or quota < 1:
                break
            best, score, spent = (self._try_all if first else self._try)(evaluate, steps, score, quota)
            counts, left, planned, first = best.counts, left - spent, planned[1:], False
        if first or not constraint.holds(counts):
            evaluate([self._allocation(self._finish(counts))])

    def _plan(self) -> list[float]:
        """Return the savings of all steps: as many as in the paper, or as leave some trials to each."""
        total = max(float(self._constraint.utilization(self._constraint.space.dense)) - 1, 0.0)
        steps = 1 + int((self._evaluations - self._first_trials) / TRIALS)
        return savings(total, min(max(steps, 1), ITERATIONS))

    @property
    def _first_trials(self) -> int:
        units = sum(len(choices) > 1 for choices in self._constraint.space.choices)
        fits = units <= FIRST_SHARE * self._evaluations
        return units if fits else int(SCARCE_SHARE * self._evaluations)

    def _steps(self, counts: Counts, saving: float) -> list[Step]:
        """Return the steps that save the given amount, or half of it, and so on if no unit alone can."""
        constraint = self._constraint
        found: list[tuple[int, Counts]] = []
        for _ in range(_HALVINGS):
            if found := proposals(constraint, counts, saving):
                break
            saving /= 2
        if not found:
            return []
        used = constraint.utilization(np.array([narrower for _, narrower in found]))
        saved = float(constraint.utilization(counts)) - used
        steps = []
        for (unit, narrower), share, less in zip(found, used, saved, strict=True):
            before, after = (1 - constraint.space.ratios(each)[unit] for each in (counts, narrower))
            filled = (
                constraint.greedy_fill(narrower, self._known.target_log_ratios(constraint, narrower))
                if share <= 1
                else narrower
            )
            steps.append(Step(unit, filled, float(after**2 - before**2), float(less)))
        return steps

    def _try_all(self, evaluate: Evaluate, steps: Sequence[Step], score: float, quota: int) -> Trial:
        """Score all steps at once, or those of the units with the most to save."""
        tried = sorted(steps, key=lambda step: -self._known.lone[step.unit])[:quota]
        scores = evaluate([self._allocation(step.counts) for step in tried])
        for step, reached in zip(tried, scores, strict=True):
            self._known.learn(step, score - reached)
        best = min(range(len(tried)), key=lambda place: (score - scores[place]) / tried[place].saving)
        return tried[best], scores[best], len(tried)

    def _try(self, evaluate: Evaluate, steps: Sequence[Step], score: float, quota: int) -> Trial:
        """Score steps one by one, the most promising first, until no other promises more than the best has shown."""
        if quota >= len(steps):
            return self._try_all(evaluate, steps, score, quota)
        promised = {step.unit: self._known.drop(step) / step.saving for step in steps}
        best, reached, least, spent = steps[0], score, np.inf, 0
        for step in sorted(steps, key=lambda step: promised[step.unit])[:quota]:
            if promised[step.unit] >= least:
                break
            (scored,) = evaluate([self._allocation(step.counts)])
            spent += 1
            self._known.learn(step, score - scored)
            price = (score - scored) / step.saving
            if price < least:
                best, reached, least = step, scored, price
        return best, reached, spent

    def _finish(self, counts: Counts) -> Counts:
        """Return counts that hold the constraint, reached from the given ones by the estimates alone."""
        constraint = self._constraint
        small = (float(constraint.utilization(counts)) - 1) / ITERATIONS
        while not constraint.holds(counts):
            steps = self._steps(counts, small)
            if not steps:
                return constraint.project(constraint.space.log_ratios(counts))
            counts = min(steps, key=lambda step: self._known.drop(step) / step.saving).counts
        return constraint.greedy_fill(counts, self._known.target_log_ratios(constraint, counts))

    def _allocation(self, counts: Counts) -> Allocation:
        return self._constraint.space.allocation(counts)


def _coming(planned: Sequence[float], needed: float) -> int:
    """Return how many of the planned savings it takes to save what is needed, at least 1."""
    reached = np.cumsum(planned) >= needed * (1 - 1e-9)
    return max(int(np.argmax(reached)) + 1 if reached.any() else len(planned), 1)
