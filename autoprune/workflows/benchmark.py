"""One strategy's part in a comparison: a search of a fixed number of evaluations, what it found and what it took."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoprune.config import BenchmarkEntry, CompareConfig
from autoprune.errors import ConfigError
from autoprune.evaluation.evaluator import Evaluator
from autoprune.strategies._base import Candidate, Progress, SearchResult, SearchTask, holding, search
from autoprune.strategies.prior import SearchPrior, find_prior
from autoprune.strategies.registry import StrategyName
from autoprune.strategies.regrowth import affordable
from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Allocation
from autoprune.workflows import stages
from autoprune.workflows.finalists import choose
from autoprune.workflows.latency_constraints import LatencyConstraints
from autoprune.workflows.records import recorded_allocation
from autoprune.workflows.run import PruningRun
from autoprune.workflows.strategies import environment

SECOND = 1000
"""What is added to the seed of a search that starts from another's candidates: the same noise would find the same."""


@dataclass(frozen=True)
class BenchmarkResult:
    """What one search of a comparison found.

    Attributes:
        entry: which strategy, as the command line names it.
        seed: of the search, counted from 0.
        allocation: the winner; it holds the budget, latency as measured.
        score: its proxy score.
        evaluations: candidates scored, those before the search proper counted.
        seconds: what these took when they were computed, and the strategy's own time.
        history: the score of every evaluation in order; NaN for one that does not hold the budget.
        tried: the candidates of the history that hold the budget.
    """

    entry: str
    seed: int
    allocation: Allocation
    score: float
    evaluations: int
    seconds: float
    history: tuple[float, ...]
    tried: tuple[Candidate, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; ``from_json`` reads them back."""
        tried = [[list(candidate.allocation), candidate.score] for candidate in self.tried]
        return {**vars(self), "allocation": list(self.allocation), "history": list(self.history), "tried": tried}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BenchmarkResult:
        """Read what ``to_json`` gave."""
        tried = tuple(Candidate(tuple(allocation), score) for allocation, score in values["tried"])
        allocation, history = tuple(values["allocation"]), tuple(values["history"])
        return cls(**{**values, "allocation": allocation, "history": history, "tried": tried})


def check_evaluations(config: CompareConfig) -> None:
    """Make sure that every search of every entry has at least one evaluation, next to what regrowth takes.

    Raises:
        ConfigError: there are too few for an entry.
    """
    regrowth = sum(affordable(0))
    for entry in config.entries:
        rounds = any(spec.uses_prior for spec in entry.specs) + sum(spec.uses_gains for spec in entry.specs)
        least = len(entry.specs) + rounds * regrowth
        if config.evaluations < least:
            taken = f"{rounds * regrowth} for regrowth and " if rounds else ""
            raise ConfigError(
                f"`evaluations` must be at least {least} for {entry}, {taken}1 for each of its strategies, got "
                f"{config.evaluations}; raise it, or leave {entry} out of `strategies`"
            )


class StrategyBenchmark:
    """Lets strategies search, each with the same evaluations on the same images.

    Args:
        run: the network.
        config: the comparison.
        constraint: the budget.
        latency_constraints: the budget's latency limits.
    """

    def __init__(
        self, run: PruningRun, config: CompareConfig, constraint: Constraint, latency_constraints: LatencyConstraints
    ) -> None:
        self._run, self._config, self._latency_constraints = run, config, latency_constraints
        self.evaluator: Evaluator = run.evaluator()
        self._prior: SearchPrior | None = None
        self._prior_seconds = 0.0
        self._constraint = latency_constraints.settled(
            constraint, np.zeros(len(constraint.space))
        )  # at uniform, the same for all
        if any(spec.uses_prior for entry in config.entries for spec in entry.specs):
            # For the corrected limits: priors that were tried for others say little of these.
            clock = _Clock(self.evaluator)
            run.listener.stage(stages.PRIOR)
            self._prior = find_prior(
                self._constraint, self.evaluator.gains, clock, run.listener, evaluations=config.evaluations
            )
            # Slopes take time, too: as long as `cost` evaluations. What a resume finds known is counted as it was.
            self._prior_seconds = clock.computed * self._prior.cost / max(len(clock.history), 1)

    def seeds(self, entry: BenchmarkEntry) -> range:
        """Return the seeds that an entry runs with: one if there is no chance in it."""
        certain = all(spec.deterministic for spec in entry.specs)
        return range(1 if certain else self._config.seeds)

    def outcome(self, entry: BenchmarkEntry, seed: int) -> BenchmarkResult:
        """Return what an entry finds; journalled."""

        def searched() -> dict[str, Any]:
            return self._searched(entry, seed).to_json()

        found = BenchmarkResult.from_json(self._run.folder.once("outcome", searched, [str(entry), seed]))
        for allocation in (found.allocation, *(candidate.allocation for candidate in found.tried)):
            recorded_allocation(allocation, self._run.network.space, self._run.folder.journal, "outcome")
        return found

    # -- one search --------------------------------------------------------------------------------

    def _searched(self, entry: BenchmarkEntry, seed: int) -> BenchmarkResult:
        total = self._config.evaluations
        began = time.perf_counter()
        clock = _Clock(self.evaluator)
        known: tuple[Candidate, ...] = ()
        start: tuple[Candidate, ...] = ()
        spent, most, probing = 0, total, 0.0
        if self._prior is not None and any(spec.uses_prior for spec in entry.specs):
            known, spent = self._prior.tried, self._prior.cost
            probing = self._prior_seconds
        elif entry.strategy.spec.uses_gains:
            most, spent = affordable(total)
        if entry.warm_start is not None:
            half = (total - spent) // 2
            if entry.warm_start.spec.uses_gains:
                half, cost = affordable(half)
                spent += cost
            warmed = self._search(entry.warm_start, seed, half, clock)
            start = holding(warmed.history, self._constraint)
        most = min(most, total - spent - len(clock.history))
        result = self._search(entry.strategy, seed, most, clock, start=start)
        unscored = [math.nan] * (spent - len(known))
        history = [*unscored, *self._scores(known), *self._scores(clock.history)]
        tried = holding(clock.history, self._constraint)
        best = max((result.best, *start, *holding(known, self._constraint)), key=lambda candidate: candidate.score)
        chosen = choose(
            [best], self.evaluator, self._constraint, self._latency_constraints, count=1, listener=self._run.listener
        )
        return BenchmarkResult(
            entry=str(entry),
            seed=seed,
            allocation=chosen.allocation,
            score=chosen.score,
            evaluations=len(history),
            seconds=probing + time.perf_counter() - began - clock.waited + clock.computed,
            history=tuple(history),
            tried=tried,
        )

    def _search(
        self, name: StrategyName, seed: int, evaluations: int, clock: _Clock, start: tuple[Candidate, ...] = ()
    ) -> SearchResult:
        task = SearchTask(
            constraint=self._constraint,
            evaluations=evaluations,
            seed=self._config.seed + seed + (SECOND if start else 0),
            rollout=self._config.rollout,
            prior=self._prior,
            gains=self.evaluator.gains,
            importance=self._run.network.importance,
            environment=environment(self._constraint, self._config.rule),
            start=start,
        )
        with self._run.listener.progress(f"{name.value} {seed}", evaluations) as advance:

            def show(progress: Progress) -> None:
                advance(progress.done, f"best score {progress.best.score:+.4f}" if progress.best else "probing")

            return search(
                name.spec.make(task), clock, constraint=self._constraint, evaluations=evaluations, on_evaluation=show
            )

    def _scores(self, history: Sequence[Candidate]) -> list[float]:
        return [item.score if self._constraint.holds(np.array(item.allocation)) else math.nan for item in history]


class _Clock:
    """Scores candidates; keeps them, and what time they would have taken had nothing been known.

    Attributes:
        history: what was scored, in order.
        waited: seconds spent in the evaluator, little if it knew the scores.
        computed: seconds that the scores took when they were computed; a candidate asked for twice counts once.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._seen: set[Allocation] = set()
        self.history: list[Candidate] = []
        self.waited = self.computed = 0.0

    def __call__(self, allocations: Sequence[Allocation]) -> list[float]:
        start = time.perf_counter()
        for evaluation in self._evaluator(allocations):
            self.history.append(Candidate(evaluation.allocation, evaluation.score))
            if evaluation.allocation not in self._seen:
                self.computed += evaluation.seconds
                self._seen.add(evaluation.allocation)
        self.waited += time.perf_counter() - start
        return [candidate.score for candidate in self.history[-len(allocations) :]]
