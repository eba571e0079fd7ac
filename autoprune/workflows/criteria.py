"""``autoprune compare --criteria``: which channels stay, side by side at one allocation."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autoprune.config import CompareConfig
from autoprune.evaluation.evaluator import Evaluator
from autoprune.io.files import make_folder
from autoprune.listener import Listener, tracked
from autoprune.report.sections import publish
from autoprune.results import Compared, Metrics, Result, Stage
from autoprune.strategies._base import Candidate
from autoprune.structure.space import Allocation
from autoprune.workflows import stages
from autoprune.workflows.finalists import choose
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.latency_constraints import LatencyConstraints
from autoprune.workflows.network import Network
from autoprune.workflows.result_writer import ResultWriter
from autoprune.workflows.run import PruningRun
from autoprune.workflows.shown import keep_best_detections
from autoprune.workflows.tuning import Tuning, tune
from autoprune.workflows.tuning_workers import TuningJob, tune_together


class CriteriaComparison:
    """Prunes by every criterion to the uniform ratio that the budget allows, and fine-tunes all alike.

    Widths, and so costs, are the same for all; only the channels differ. What a criterion gave is in the journal, so
    that a comparison can be extended.

    Args:
        config: the comparison, defaults filled in.
        folder: where it leaves its results.
        listener: hears the progress.
    """

    def __init__(self, config: CompareConfig, folder: RunFolder, listener: Listener) -> None:
        self._config, self._folder, self._listener = config, folder, listener
        self._budget = config.lowest
        listener.stages(stages.of_criteria(config))
        self._run = PruningRun(config, folder, listener)
        self._evaluator = self._run.evaluator()

    def execute(self) -> None:
        """Score, fine-tune, and write the results."""
        run = self._run
        dense = run.dense()
        limits = run.binding_limits(self._budget, dense)
        allocation, costs = self._uniform(limits)
        shares = {metric: costs[metric] / dense.cost(metric) for metric in limits}
        self._listener.stage(stages.CRITERIA)
        self._tune_on_workers(allocation)
        rows = [self._row(name, allocation) for name in tracked(self._config.compared_criteria, "Criteria")]
        if self._config.report:
            after = {row["criterion"]: Metrics.from_json(row["after"]) for row in rows if row["after"] is not None}
            keep_best_detections(run.network.adapter, after, self._folder.path, self._listener)
        self._publish(rows, dense, shares, allocation)

    def _uniform(self, limits: Mapping[str, float]) -> tuple[Allocation, Mapping[str, float]]:
        """Return the allocation that the uniform ratio gives, and what it costs; latency as measured."""
        run, space = self._run, self._run.network.space
        latency_constraints = LatencyConstraints(run.estimators, limits)
        constraint = run.constrain(self._budget, limits, latency_constraints)
        uniform = constraint.allocation(np.zeros(len(space)))
        first = Candidate(uniform, self._evaluator([uniform])[0].score)
        chosen = choose([first], self._evaluator, constraint, latency_constraints, count=1, listener=self._listener)
        return chosen.allocation, {**run.network.costs(chosen.allocation), **chosen.latencies}

    def _tune_on_workers(self, allocation: Allocation) -> None:
        """Let workers, if there are any, fine-tune what the journal does not hold yet."""
        config, run, journal = self._config, self._run, self._folder.journal
        if run.runner.usage is None or not config.finetune_epochs:
            return
        missing = [
            one for one in config.compared_criteria if journal.lookup("criterion", _key(one, allocation)) is None
        ]
        jobs = [
            TuningJob(partial(self._pruned, one, allocation), self._place(one), self._tuning(), _notes(one))
            for one in missing
        ]
        tune_together(run.runner, run.network.adapter, jobs, self._listener, ship_data=config.ship_data)

    def _row(self, criterion: str, allocation: Allocation) -> dict[str, Any]:
        """Return what a criterion gives: score, metrics before and after the fine-tune, the seconds that it takes."""
        found = self._folder.once("criterion", lambda: self._made(criterion, allocation), _key(criterion, allocation))
        return dict(found)

    def _made(self, criterion: str, allocation: Allocation) -> dict[str, Any]:
        listener = self._listener
        start = time.perf_counter()
        network = self._run.network.scored_by(criterion)
        seconds = time.perf_counter() - start
        evaluator = self._evaluator_of(network, criterion)
        module = evaluator.repaired(allocation)
        row = {
            "criterion": criterion,
            "score": evaluator.score(copy.deepcopy(module)),  # which moves its batch norm statistics
            "before": network.adapter.validate(module).to_json(),
            "after": None,
            "seconds": seconds,
        }
        if self._config.finetune_epochs:
            listener.note(f"Fine-tuning what {criterion} keeps (score {row['score']:+.4f})")
            path, tuning = self._place(criterion), self._tuning()
            module = self._described(module, criterion)
            trained = tune(network.adapter, module, path, tuning=tuning, notes=_notes(criterion), listener=listener)
            row["after"] = network.adapter.validate(trained).to_json()
        return row

    def _evaluator_of(self, network: Network, criterion: str) -> Evaluator:
        """Return what scores a criterion's candidates; its images are there, and its dense loss is journalled."""
        return replace(self._evaluator, pruner=network.pruner, criterion=criterion, like=self._evaluator)

    def _pruned(self, criterion: str, allocation: Allocation) -> nn.Module:
        """Return what a criterion keeps, as its checkpoints hold it before the fine-tune."""
        evaluator = self._evaluator_of(self._run.network.scored_by(criterion), criterion)
        return self._described(evaluator.repaired(allocation), criterion)

    def _described(self, module: nn.Module, criterion: str) -> nn.Module:
        return ResultWriter(self._run, self._budget, path=self._place(criterion)).described(module)

    def _tuning(self) -> Tuning:
        return Tuning.of(self._config, self._run.network.adapter.module)

    def _place(self, criterion: str) -> Path:
        """Return the folder of a criterion's network, which exists then."""
        return make_folder(self._folder.path / "networks" / criterion)

    def _publish(
        self, found: Sequence[Mapping[str, Any]], dense: Stage, shares: Mapping[str, float], allocation: Allocation
    ) -> None:
        run, config, adapter = self._run, self._config, self._run.network.adapter
        costs = {metric: [share] for metric, share in shares.items()}
        rows = [
            Compared(
                row["criterion"],
                [Metrics.from_json(row["before"])],
                [Metrics.from_json(row["after"])] if row["after"] is not None else [],
                costs,
                scores=[row["score"]],
                seconds=[row["seconds"]],
            )
            for row in sorted(found, key=lambda row: -row["score"])
        ]
        result = Result(
            command=self._folder.command,
            title=f"{adapter.name}, {self._budget}, uniform ratio",
            metric_names=adapter.metric_names,
            stages={"dense": dense},
            compared={"criteria": rows},
            figures={
                "limits": list(self._budget.texts),
                "images": config.images,
                "image_size": adapter.image_size.plain,
                "finetune_epochs": config.finetune_epochs,
                "keep": run.network.keep(allocation),
                **run.usage(),
            },
            environment={**environment(), **run.estimator.environment()},
        )
        path = self._folder.path / "compare.json"
        publish(result, path, self._listener)
        self._listener.note(f"The comparison is {path}, with comparison.png.")


def _key(criterion: str, allocation: Allocation) -> list[Any]:
    """Return what the journal knows a criterion's row by."""
    return [criterion, list(allocation)]


def _notes(criterion: str) -> dict[str, Any]:
    return {"criterion": criterion}
