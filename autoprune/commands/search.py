"""``autoprune search``: from trained weights to a measured, fine-tuned network within the budget."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from autoprune.budget import Budget
from autoprune.commands.deployment import Deployment
from autoprune.commands.finalists import choose
from autoprune.commands.folder import RunFolder
from autoprune.commands.guidance import Guidance, measured_guidance
from autoprune.commands.run import PruningRun, with_model
from autoprune.commands.screen import Screen
from autoprune.commands.strategies import INFORMED, SearchTask, make_strategy, scores_of
from autoprune.commands.warmstart import candidates_of_runs, check_runs
from autoprune.config import SearchConfig
from autoprune.constraint import Constraint
from autoprune.evaluation import Evaluator
from autoprune.search._base import Progress, SearchResult, search

DEFAULT_EPISODES, DEMO_EPISODES = 200, 60


def run(config: SearchConfig, screen: Screen) -> int:
    """Search, prune, fine-tune and measure.

    Returns:
        0 where every limit is held as measured, 3 where the final network misses one.
    """
    with RunFolder.open("search", config) as folder:
        return _SearchRun(_with_defaults(config), folder, screen).execute()


def _with_defaults(config: SearchConfig) -> SearchConfig:
    """Fill in what the bundled detector searches in about three minutes, and others thoroughly."""
    episodes = config.episodes or (DEMO_EPISODES if config.model is None else DEFAULT_EPISODES)
    return replace(with_model(config), episodes=episodes)


class _SearchRun:
    """One search, stage by stage."""

    def __init__(self, config: SearchConfig, folder: RunFolder, screen: Screen) -> None:
        self._config = config
        self._budget = Budget.parse(config.budget)
        check_runs(config.warm_start, config)  # before anything is measured
        self._run = PruningRun(config, folder, screen)
        self._curves = (
            self._run.network.curves(config.sensitivity, config.criterion.value) if config.sensitivity else None
        )
        self._deployment = Deployment(self._run, self._budget, path=folder.path)

    def execute(self) -> int:
        """Run all stages and return the exit code."""
        run, config, deployment = self._run, self._config, self._deployment
        dense = run.dense()
        limits = run.limits(self._budget, dense)
        if all(dense.cost(metric) <= most for metric, most in limits.items()):
            kept = deployment.keep_everything(dense, strategy="none")
            nothing = {"strategy": "none", "evaluations": 0, "cache_hits": 0, "seconds": 0.0, "best_score": 0.0}
            return deployment.finish({"dense": dense, **kept}, nothing)
        constraint = run.constrain(limits)
        evaluator = run.evaluator("evaluation", config.images)
        start = time.perf_counter()
        guidance = measured_guidance(run, constraint, evaluator) if config.strategy in INFORMED else None
        constraint = self._calibrated(constraint, guidance, limits)
        result = self._search(constraint, evaluator, guidance)
        searched = self._summary(result, evaluator, guidance, time.perf_counter() - start)
        chosen = choose(
            result, evaluator, constraint, run.bench, limits.get("latency"), count=config.finalists, screen=run.screen
        )
        deployment.save_policy(chosen, strategy=config.strategy.value, evaluations=evaluator.counts.evaluations)
        stages = deployment.ship(evaluator.recalibrated(chosen.allocation), chosen.allocation)
        return deployment.finish({"dense": dense, **stages}, searched)

    def _calibrated(self, constraint: Constraint, guidance: Guidance | None, limits: Mapping[str, float]) -> Constraint:
        """Return the constraint with the latency predictor corrected where the search starts."""
        if "latency" not in limits:
            return constraint
        wish = guidance.prior if guidance is not None else np.zeros(len(constraint.space))
        for _ in range(2):
            allocation = constraint.space.allocation(constraint.project(wish))
            constraint = self._run.calibrated(constraint, allocation, self._run.bench.target(limits["latency"]))
        return constraint

    def _search(self, constraint: Constraint, evaluator: Evaluator, guidance: Guidance | None) -> SearchResult:
        """Let the strategy try its candidates."""
        config, run = self._config, self._run
        assert config.episodes is not None
        task = SearchTask(
            network=run.network,
            constraint=constraint,
            evaluations=config.episodes,
            seed=config.seed,
            rule=config.rule,
            guidance=guidance,
            curves=self._curves,
            start=candidates_of_runs(config.warm_start, config, constraint),
            log_dir=run.folder.path / "tensorboard" if config.tensorboard else None,
        )
        with run.screen.progress("Search", config.episodes) as advance:

            def show(progress: Progress) -> None:
                advance(progress.done, f"best score {progress.best.score:+.4f}" if progress.best else "probing")

            return search(
                make_strategy(config.strategy, task), scores_of(evaluator),
                constraint=constraint, evaluations=config.episodes, on_evaluation=show,
            )  # fmt: skip

    def _summary(
        self, result: SearchResult, evaluator: Evaluator, guidance: Guidance | None, seconds: float
    ) -> dict[str, Any]:
        """Return the figures of the search itself."""
        counts = evaluator.counts
        return {
            "strategy": self._config.strategy.value,
            "rule": self._config.rule.value,
            "evaluations": counts.evaluations,
            "probes": guidance.probes if guidance is not None else 0,
            "cache_hits": counts.cache_hits,
            "seconds": seconds,
            "seconds_per_evaluation": counts.seconds / max(counts.evaluations, 1),
            "best_score": result.best.score,
            "latency_prediction_error": self._run.bench.prediction_error(),
        }
