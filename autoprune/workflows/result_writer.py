"""A chosen network on its way to the user: policy.json, pruned and trained checkpoint, measured at every stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autoprune import __version__
from autoprune.budget import Budget
from autoprune.costs import uncounted
from autoprune.metrics import format_amount, spec_of
from autoprune.policy import CostKind, Policy, PolicyCost, PolicyUnit, Provenance
from autoprune.report.sections import publish
from autoprune.results import LimitResult, Result, Stage
from autoprune.structure.space import Allocation
from autoprune.workflows import stages
from autoprune.workflows.folder import environment
from autoprune.workflows.latency_constraints import Latencies
from autoprune.workflows.run import PruningRun
from autoprune.workflows.shown import keep_detections, pinned_layers
from autoprune.workflows.stock_yaml import describe
from autoprune.workflows.tuning import Tuning, tune
from autoprune.workflows.tuning_workers import TuningJob


@dataclass(frozen=True)
class SelectedCandidate:
    """What a search chose.

    Attributes:
        allocation: kept channels per unit.
        score: its proxy score.
        latencies: measured milliseconds or millijoules by metric; empty if neither is limited.
    """

    allocation: Allocation
    score: float
    latencies: Latencies


class ResultWriter:
    """The files and figures of one chosen network.

    Args:
        run: the run that it belongs to.
        budget: what it must hold.
        path: the folder of its files, which exists.
        label: tells the networks of one run apart in its journal; empty if there is one only.
        teacher: what teaches in the fine-tune, if that is asked for; the run's dense network if None.
    """

    def __init__(
        self, run: PruningRun, budget: Budget, *, path: Path, label: str = "", teacher: nn.Module | None = None
    ) -> None:
        self._run, self._budget, self._path = run, budget, path
        self._prefix = f"{label} " if label else ""
        self._shipped: Allocation | None = None
        self._teacher = teacher if teacher is not None else run.network.adapter.module

    def save_policy(
        self, found: SelectedCandidate, *, strategy: str, evaluations: int, name: str = "policy.json"
    ) -> None:
        """Write the policy of a network."""
        run, counts = self._run, np.array(found.allocation)
        costs = {
            metric: PolicyCost(
                float(cost(counts)), cost.unit, CostKind.PREDICTED if cost.predicted else CostKind.MEASURED
            )
            for metric, cost in run.static.items()
        }
        for metric, amount in found.latencies.items():
            costs[metric] = PolicyCost(amount, spec_of(metric).suffix, CostKind.MEASURED)
        policy = Policy(
            model=run.network.described,
            criterion=run.config.criterion,
            round_to=run.config.round_to,
            units=tuple(
                PolicyUnit(unit.name, unit.width, kept)
                for unit, kept in zip(run.network.graph.units, run.network.keep(found.allocation).values(), strict=True)
            ),
            budget=self._budget.texts,
            costs=costs,
            score=found.score,
            provenance=Provenance(
                autoprune=__version__,
                command=run.folder.called,
                strategy=strategy,
                seed=run.config.seed,
                evaluations=evaluations,
                created=run.folder.once("created", lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")),
            ),
        )
        policy.save(self._path / name)

    def described(self, module: nn.Module) -> nn.Module:
        """Return a network as its checkpoints hold it, see `describe`."""
        run = self._run
        return describe(module, run.network.adapter, self._path, required=run.config.stock_yaml)

    def ship(self, module: nn.Module, allocation: Allocation) -> dict[str, Stage]:
        """Save the pruned network, fine-tune it, save that, and measure both.

        Args:
            module: recalibrated, eval mode.
            allocation: its kept channels per unit.

        Returns:
            The stages ``pruned`` and, if there are epochs, ``finetuned``.
        """
        run, config, adapter = self._run, self._run.config, self._run.network.adapter
        notes, limits = self._notes(allocation), run.limits(self._budget, run.dense())
        self._shipped = allocation
        pruned, model = (adapter.checkpoint(self._path, name) for name in ("pruned", "model"))
        module = self.described(module)
        adapter.save(module, pruned, notes=notes)
        run.listener.stage(f"{self._prefix}{stages.PRUNED}")
        found = {"pruned": run.stage(f"{self._prefix}pruned", module, allocation, pruned, limits)}
        if not config.finetune_epochs:
            adapter.save(module, model, notes=notes)
            self._keep_detections("pruned", module)
            return found
        run.listener.stage(f"{self._prefix}{stages.FINETUNE}")
        name = f"{self._prefix}finetuned"
        tuned = tune(
            adapter,
            module,
            self._path,
            tuning=Tuning.of(config, self._teacher),
            notes=notes,
            listener=run.listener,
            measure=lambda network: run.folder.validated(name, network, adapter),
            series=f"{self._prefix}finetune",
        )
        run.listener.stage(f"{self._prefix}{stages.RESULT}")
        self._keep_detections("finetuned", tuned)
        return {**found, "finetuned": run.stage(name, tuned, allocation, model, limits)}

    def tuning_job(self, pruned: Callable[[], nn.Module], allocation: Allocation) -> TuningJob:
        """Return the fine-tune of `ship`, for a worker that does it before.

        Args:
            pruned: returns the network that `ship` will be given.
            allocation: its kept channels per unit.
        """

        def made() -> nn.Module:
            return self.described(pruned())

        tuning = Tuning.of(self._run.config, self._teacher)
        return TuningJob(made, self._path, tuning, self._notes(allocation), f"{self._prefix}finetune")

    def keep_everything(self, dense: Stage, *, strategy: str) -> dict[str, Stage]:
        """End well if the dense network already holds the budget."""
        run, budget = self._run, self._budget
        run.listener.note(
            f"The dense network already holds {budget}: "
            + ", ".join(f"{limit.metric} {format_amount(limit.metric, dense.cost(limit.metric))}" for limit in budget)
            + f". Nothing is pruned; for less ask for a share, e.g. `budget` {budget.limits[0].metric}=60%."
        )
        latencies = {metric: dense.cost(metric) for metric in run.estimators}
        self.save_policy(SelectedCandidate(run.dense_allocation, 0.0, latencies), strategy=strategy, evaluations=0)
        module = self.described(run.network.adapter.module)
        adapter = run.network.adapter
        for name in ("pruned", "model"):
            adapter.save(module, adapter.checkpoint(self._path, name), notes=self._notes(run.dense_allocation))
        return {"pruned": dense}

    def finish(self, networks: Mapping[str, Stage], searched: Mapping[str, Any], **figures: Any) -> bool:
        """Write ``summary.json``, show the table, and return whether every limit is held.

        Args:
            networks: ``dense`` first, what counts last.
            searched: the figures of the search.
            **figures: others that only this command has.
        """
        run, adapter = self._run, self._run.network.adapter
        budget = [LimitResult.of(limit, networks["dense"], list(networks.values())[-1]) for limit in self._budget]
        result = Result(
            command=run.folder.command,
            title=f"{adapter.name}, {self._budget}",
            metric_names=adapter.metric_names,
            stages=networks,
            budget=budget,
            figures={
                "search": dict(searched),
                "uncounted_operations": uncounted(run.network.graph),
                "pinned": pinned_layers(run.network.graph),
                **self._latency_figures(),
                **run.usage(),
                **figures,
            },
            environment={**environment(), **run.estimator.environment()},
        )
        publish(result, self._path / "summary.json", run.listener)
        model = adapter.checkpoint(self._path, "model")
        run.listener.note(f"The network is {model}, its policy {self._path / 'policy.json'}.")
        return self._verdict(budget)

    def _keep_detections(self, name: str, module: nn.Module) -> None:
        """Keep for the report what the dense network and another one detect."""
        adapter = self._run.network.adapter
        if self._run.config.report:
            keep_detections(adapter, {"dense": adapter.module, name: module}, self._path, self._run.listener)

    def _latency_figures(self) -> dict[str, Any]:
        """Return how latency was predicted, and what each layer takes of it; empty if nothing was predicted."""
        estimator = self._run.estimator
        predictor, layers = estimator.predictor(), estimator.layers(self._shipped) if self._shipped else None
        return {**({"predictor": predictor} if predictor else {}), **({"layer_latency": layers} if layers else {})}

    def _verdict(self, budget: Sequence[LimitResult]) -> bool:
        """Say for every limit whether it is held; return whether all are."""
        for row in budget:
            achieved, most = (format_amount(row.metric, value) for value in (row.achieved, row.limit))
            if row.satisfied:
                self._run.listener.note(f"Budget {row.requested} is held: {achieved} of {most}.")
            else:
                self._run.listener.warn(f"Budget {row.requested} is missed: {achieved} measured, {most} allowed.")
        return all(row.satisfied for row in budget)

    def _notes(self, allocation: Allocation) -> dict[str, Any]:
        """Return what travels inside the checkpoints."""
        kept = self._run.network.keep(allocation)
        return {"autoprune": __version__, "budget": list(self._budget.texts), "keep": kept}
