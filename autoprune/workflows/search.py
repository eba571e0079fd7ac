"""``autoprune search``: from trained weights to a measured, fine-tuned network within the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from torch import nn

from autoprune.config import SearchConfig
from autoprune.errors import BudgetUnreachableError
from autoprune.evaluation.evaluator import Evaluator
from autoprune.listener import Listener
from autoprune.metrics import format_amount
from autoprune.results import Stage
from autoprune.strategies._base import Candidate, Progress, SearchResult, SearchTask, holding, search
from autoprune.strategies.prior import SearchPrior, find_prior
from autoprune.structure.constraint import Constraint
from autoprune.workflows import stages
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.demo_size import with_demo_size
from autoprune.workflows.finalists import best_of, choose
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.latency_constraints import LatencyConstraints
from autoprune.workflows.result_writer import ResultWriter
from autoprune.workflows.run import PruningRun, finetune_epochs, with_model
from autoprune.workflows.shown import search_figures, shown_costs
from autoprune.workflows.stock_yaml import price
from autoprune.workflows.strategies import environment, scores_of
from autoprune.workflows.warmstart import candidates_of_runs, check_runs

Kind = TypeVar("Kind", bound=SearchConfig)

DEFAULT_EPISODES, DEMO_EPISODES = 100, 40
DEFAULT_FINALISTS, DEMO_FINALISTS = 5, 2

CONTINUATIONS = 2
"""How often a search goes on whose best candidate is measured off its latency budget, by a quarter of its episodes."""


def run(config: SearchConfig, listener: Listener, caller: Caller) -> Finished:
    """Search, prune, fine-tune and measure."""
    with RunFolder.open("search", config, caller) as folder:
        announced = with_defaults(config)
        listener.stages(stages.of_search(announced))
        listener.stage(stages.OPEN)
        found = SearchRun(with_defaults(with_demo_size(config, folder, listener)), folder, listener)
        return Finished(folder.path, found.deployment.finish(*found.shipped()))


def with_defaults(config: Kind) -> Kind:
    """Fill in the bundled detector if no model is given, and how much to try and to train."""
    return with_model(with_amounts(config, demo=config.model is None))


def with_amounts(config: Kind, *, demo: bool) -> Kind:
    """Fill in how much to try and to train: about three minutes of the bundled detector, others thoroughly."""
    return replace(
        config,
        episodes=config.episodes or (DEMO_EPISODES if demo else DEFAULT_EPISODES),
        finalists=config.finalists or (DEMO_FINALISTS if demo else DEFAULT_FINALISTS),
        finetune_epochs=finetune_epochs(config, demo=demo),
    )


class SearchCurves:
    """The curves of a search over all its evaluations, however often it goes on: one step per evaluation.

    Args:
        listener: hears them.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._done = 0
        self._best = -math.inf

    def evaluated(self, candidate: Candidate, constraint: Constraint) -> None:
        """Report a candidate: its score and costs, and the best score so far of those within the budget."""
        self._done += 1
        counts = np.array(candidate.allocation)
        costs = constraint.costs(counts)
        if constraint.holds(counts):
            self._best = max(self._best, candidate.score)
        figures = {"reward": candidate.score, "best": self._best}
        figures |= {f"cost/{metric}": value for metric, value in costs.items()}
        self._listener.log(self._done, {f"search/{name}": value for name, value in figures.items()})
        amounts = ", ".join(f"{metric} {format_amount(metric, value)}" for metric, value in costs.items())
        self._listener.debug(f"Candidate {self._done}: score {candidate.score:+.4f}, {amounts}")

    def agent(self, figures: Mapping[str, float]) -> None:
        """Report an agent's own figures at the evaluation that comes next."""
        named = {"search/noise" if name == "noise" else f"agent/{name}": value for name, value in figures.items()}
        self._listener.log(self._done + 1, named)


class SearchRun:
    """One search, stage by stage.

    Args:
        config: its options, defaults filled in.
        folder: where it leaves its results.
        listener: hears the progress.
        teacher: what teaches in the fine-tune, if that is asked for; the dense network if None.

    Attributes:
        run: the network.
        deployment: the files and figures of what is found.
    """

    def __init__(
        self, config: SearchConfig, folder: RunFolder, listener: Listener, *, teacher: nn.Module | None = None
    ) -> None:
        assert config.episodes is not None
        assert config.finalists is not None
        self._config, self._episodes, self._finalists = config, config.episodes, config.finalists
        self._budget = config.lowest
        self._warm_start = check_runs(config.warm_start, config)  # before anything is measured
        self.run = PruningRun(config, folder, listener)
        self._curves = self.run.network.curves(config.sensitivity, config.criterion) if config.sensitivity else None
        self._curves_of_search = SearchCurves(listener)
        self.deployment = ResultWriter(self.run, self._budget, path=folder.path, teacher=teacher)

    def shipped(self) -> tuple[dict[str, Stage], dict[str, Any]]:
        """Search, prune, fine-tune; return the stages, ``dense`` first, and the figures of the search."""
        run, config, deployment = self.run, self._config, self.deployment
        dense = run.dense()
        limits = run.limits(self._budget, dense)
        if all(dense.cost(metric) <= most for metric, most in limits.items()):
            kept = deployment.keep_everything(dense, strategy="none")
            nothing = {"strategy": "none", "evaluations": 0, "cache_hits": 0, "seconds": 0.0, "best_score": 0.0}
            return {"dense": dense, **kept}, nothing
        latency_constraints = LatencyConstraints(run.estimators, limits)
        constraint = run.constrain(self._budget, limits, latency_constraints)
        evaluator = run.evaluator()
        priced = {"stock_yaml": price(run, constraint, limits)} if config.stock_yaml else {}
        start = time.perf_counter()
        prior = None
        constraint = latency_constraints.settled(constraint, np.zeros(len(constraint.space)))
        if config.strategy.spec.uses_prior:
            run.listener.stage(stages.PRIOR)
            prior = find_prior(
                constraint, evaluator.gains, scores_of(evaluator), run.listener, evaluations=2 * self._episodes
            )
            constraint = latency_constraints.settled(constraint, prior.target_log_ratios)
        run.listener.stage(stages.SEARCH)
        warm = candidates_of_runs(self._warm_start, constraint)
        first = self._search(constraint, evaluator, prior, warm, self._episodes)
        known = holding(prior.tried, constraint) if prior is not None else ()
        history, constraint = self._continued(
            [*known, *first.history], constraint, evaluator, prior, latency_constraints
        )
        counts = evaluator.counts
        run.listener.debug(f"{counts.cache_hits} of {counts.evaluations} scores were known already.")
        best = best_of(history, constraint, 1)[0]
        searched = self._summary(best, evaluator, prior, time.perf_counter() - start)
        run.listener.stage(stages.FINALISTS)
        chosen = choose(
            history,
            evaluator,
            constraint,
            latency_constraints,
            count=self._finalists,
            listener=run.listener,
            prior=known,
            confirmations=(self._finalists + 1) // 2,  # few finalists are for who is in a hurry
        )
        deployment.save_policy(chosen, strategy=config.strategy.value, evaluations=evaluator.counts.evaluations)
        shipped = deployment.ship(evaluator.repaired(chosen.allocation), chosen.allocation)
        shown = shown_costs(run.static, constraint)
        candidates = search_figures(history, shown, Candidate(chosen.allocation, chosen.score), prior=len(known))
        return {"dense": dense, **shipped}, {**searched, **priced, "candidates": candidates}

    def _continued(
        self,
        history: Sequence[Candidate],
        constraint: Constraint,
        evaluator: Evaluator,
        prior: SearchPrior | None,
        latency_constraints: LatencyConstraints,
    ) -> tuple[Sequence[Candidate], Constraint]:
        """Go on with the search while the best candidate is measured off its latency budget, the predictors corrected.

        Returns:
            All candidates, and the constraint that the last of them were made for.
        """
        listener, space = self.run.listener, constraint.space
        for _ in range(CONTINUATIONS if latency_constraints else 0):
            best = best_of(history, constraint, 1)[0]
            measured = latency_constraints.measure(best.allocation)
            if not latency_constraints.off(measured):
                break
            far = -latency_constraints.unused(measured)
            listener.note(
                f"The best candidate's measured cost is {far:+.1%} off its target: the prediction is corrected, and "
                "the search goes on."
            )
            leading = best_of(history, constraint, self._finalists)
            try:
                constraint = latency_constraints.rescaled(
                    latency_constraints.corrected(constraint), best.allocation, measured
                )
            except BudgetUnreachableError:
                break  # what is measured contradicts itself; the finalists are put right one by one
            targets = [space.log_ratios(candidate.allocation) for candidate in leading]
            moved = [constraint.allocation(one) for one in targets]
            scored = zip(moved, scores_of(evaluator)(moved), strict=True)
            start = tuple(Candidate(allocation, score) for allocation, score in scored)
            more = max(self._episodes // 4, 1)
            history = [*history, *start, *self._search(constraint, evaluator, prior, start, more).history]
        return history, constraint

    def _search(
        self,
        constraint: Constraint,
        evaluator: Evaluator,
        prior: SearchPrior | None,
        start: tuple[Candidate, ...],
        episodes: int,
    ) -> SearchResult:
        """Let the strategy try a number of candidates."""
        config, run = self._config, self.run
        task = SearchTask(
            constraint=constraint,
            evaluations=episodes,
            seed=config.seed,
            rollout=config.rollout,
            prior=prior,
            gains=evaluator.gains,
            curves=self._curves,
            importance=run.network.importance,
            environment=environment(constraint, config.rule),
            start=start,
            track=self._curves_of_search.agent,
        )
        with run.listener.progress("Search", episodes) as advance:

            def show(progress: Progress) -> None:
                self._curves_of_search.evaluated(progress.latest, constraint)
                advance(progress.done, f"best score {progress.best.score:+.4f}" if progress.best else "probing")

            return search(
                config.strategy.spec.make(task),
                scores_of(evaluator),
                constraint=constraint,
                evaluations=episodes,
                on_evaluation=show,
            )

    def _summary(
        self, best: Candidate, evaluator: Evaluator, prior: SearchPrior | None, seconds: float
    ) -> dict[str, Any]:
        """Return the figures of the search itself."""
        counts = evaluator.counts
        return {
            "strategy": self._config.strategy.value,
            "rule": self._config.rule.value,
            "evaluations": counts.evaluations,
            "prior_cost": prior.cost if prior is not None else 0,
            "cache_hits": counts.cache_hits,
            "seconds": seconds,
            "seconds_per_evaluation": counts.seconds / max(counts.evaluations, 1),
            "best_score": best.score,
            "latency_prediction_error": self.run.prediction_errors(),
        }
