"""``autoprune netadapt``: prune one unit after the other to one or several budgets, fine-tuning briefly in between."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autoprune.arrays import Counts
from autoprune.budget import Budget, check_levels
from autoprune.config import NetAdaptConfig
from autoprune.errors import BudgetUnreachableError
from autoprune.io.files import make_folder
from autoprune.listener import Listener
from autoprune.metrics import format_amount, is_measured
from autoprune.results import LEVELS, Stage
from autoprune.statistics.layers import recalibrate
from autoprune.strategies._base import Candidate
from autoprune.strategies.greedy import proposals
from autoprune.structure.constraint import Constraint, Cost
from autoprune.workflows import stages
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.latency_constraints import Latencies, LatencyConstraints
from autoprune.workflows.netadapt_steps import Base, NetAdaptSteps
from autoprune.workflows.result_writer import ResultWriter, SelectedCandidate
from autoprune.workflows.run import PruningRun, with_model
from autoprune.workflows.shown import search_figures, shown_costs
from autoprune.workflows.tuning_workers import tune_together

HALVINGS = 12
"""How often a step is halved if no unit alone can save as much."""

_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f]+')
"""What file systems, Windows' too, do not have in names; the address of a board in a level's label has it."""


def run(config: NetAdaptConfig, listener: Listener, caller: Caller) -> Finished:
    """Prune to every level, fine-tune each, and measure."""
    with RunFolder.open("netadapt", config, caller) as folder:
        return Finished(folder.path, _NetAdaptRun(with_model(config), folder, listener).execute())


@dataclass(frozen=True)
class _Level:
    """A budget with the network that holds it.

    Attributes:
        budget: the budget.
        base: the network, with its weights as the short fine-tunes left them.
        latencies: measured milliseconds by metric; empty if latency is not limited.
    """

    budget: Budget
    base: Base
    latencies: Latencies


class _NetAdaptRun:
    """One run: iterations that each prune one unit, until the last level holds; then a fine-tune per level."""

    def __init__(self, config: NetAdaptConfig, folder: RunFolder, listener: Listener) -> None:
        self._config, self._folder, self._listener = config, folder, listener
        self._budgets = config.levels
        listener.stages(stages.of_netadapt(config, labels=[self._prefix(budget) for budget in self._budgets]))
        self._run = PruningRun(config, folder, listener)
        self._steps = NetAdaptSteps(self._run, config)
        self._iteration = 0
        self._chosen: list[Candidate] = []
        self._costs: Mapping[str, Cost] = {}
        make_folder(folder.path / "iterations")

    def execute(self) -> bool:
        """Run all levels; return whether all limits are held."""
        dense = self._run.dense()
        start = time.perf_counter()
        base = self._steps.dense
        limits = [self._run.limits(budget, dense) for budget in self._budgets]
        check_levels(self._budgets, limits)
        for budget, most in zip(self._budgets, limits, strict=True):
            if not self._holds(base, most):
                # a level out of reach ends the run here, not after the levels before it
                self._run.constrain(budget, most, LatencyConstraints(self._run.estimators, most))
        self._listener.stage(stages.STEPS)
        levels = []
        for budget, most in zip(self._budgets, limits, strict=True):
            level = self._descend(budget, base, most)
            levels.append(level)
            base = level.base
        searched = {
            "strategy": "netadapt",
            "iterations": self._iteration,
            "evaluations": self._steps.evaluations,
            "short_fine_tunes": self._steps.fine_tunes,
            "seconds": time.perf_counter() - start,
            "latency_prediction_error": self._run.prediction_errors(),
        }
        if self._config.finetune_epochs:
            self._tune_on_workers([level for level in levels if level.base is not self._steps.dense])
        held = [self._ship(level, dense, searched) for level in levels]
        return all(held)

    def _label(self, budget: Budget) -> str:
        """Return what tells a level from the others; empty if it is the only one."""
        return str(budget).replace(", ", "-") if len(self._budgets) > 1 else ""

    def _folder_of(self, budget: Budget) -> Path:
        """Return the folder of a level's files: the run's own if it is the only one, else one next to the others'."""
        if len(self._budgets) == 1:
            return self._folder.path
        return make_folder(self._folder.path / LEVELS / _NOT_IN_NAMES.sub("-", self._label(budget)))

    def _prefix(self, budget: Budget) -> str:
        label = self._label(budget)
        return f"{label} " if label else ""

    # -- iterations --------------------------------------------------------------------------------

    def _descend(self, budget: Budget, base: Base, limits: Mapping[str, float]) -> _Level:
        """Take steps until the network is measured to hold the limits."""
        latency_constraints = LatencyConstraints(self._run.estimators, limits)
        if self._holds(base, limits):
            return _Level(budget, base, latency_constraints.measure(base.allocation))
        constraint = self._run.constrain(budget, limits, latency_constraints)
        with latency_constraints.judged():
            while True:
                constraint = latency_constraints.calibrated(constraint, base.allocation)
                if not constraint.holds(np.array(base.allocation)):
                    base = self._step(constraint, base)
                    continue
                confirmed = latency_constraints.confirm(base.allocation)
                if latency_constraints.held(confirmed):
                    return _Level(budget, base, confirmed)
                base = self._step(latency_constraints.rescaled(constraint, base.allocation, confirmed), base)

    def _holds(self, base: Base, limits: Mapping[str, float]) -> bool:
        """Return whether the network is within the limits already, latency as measured."""
        counts = np.array(base.allocation)
        static = {metric: most for metric, most in limits.items() if not is_measured(metric)}
        latency_constraints = LatencyConstraints(self._run.estimators, limits)
        return all(
            self._run.static[metric](counts) <= most for metric, most in static.items()
        ) and latency_constraints.held(latency_constraints.confirm(base.allocation))

    def _step(self, constraint: Constraint, base: Base) -> Base:
        """Prune the unit whose pruning hurts least; the saving asked for shrinks from step to step."""
        counts = np.array(base.allocation)
        load = float(constraint.utilization(counts))
        dense = float(constraint.utilization(constraint.space.dense))
        wanted = dense * self._config.initial_step * self._config.decay**self._iteration
        self._iteration += 1
        trials = self._possible(constraint, counts, min(wanted, load - 1))
        chosen = self._steps.choose(base, trials, constraint, iteration=self._iteration)
        self._chosen.append(Candidate(chosen.allocation, chosen.score))
        self._costs = shown_costs(self._run.static, constraint)
        self._listener.note(self._described(chosen, base, constraint))
        return chosen

    def _possible(self, constraint: Constraint, counts: Counts, saving: float) -> list[tuple[int, Counts]]:
        """Return the proposals that save so much, or the largest half, quarter, … of it that any unit can save."""
        for halving in range(HALVINGS):
            found = proposals(constraint, counts, saving / 2**halving)
            if found:
                return found
        narrowing = constraint.space.narrowing
        raise BudgetUnreachableError(
            f"No unit can be pruned further, and the network is at {float(constraint.utilization(counts)):.0%} of "
            f"{', '.join(self._config.budget)}; ask for more than that{narrowing and f', or {narrowing}'}"
        )

    def _described(self, chosen: Base, before: Base, constraint: Constraint) -> str:
        space = self._run.network.space
        (unit,) = np.flatnonzero(np.array(chosen.allocation) != np.array(before.allocation))
        costs = constraint.costs(np.array(chosen.allocation))
        amounts = ", ".join(f"{metric} {format_amount(metric, value)}" for metric, value in costs.items())
        return (
            f"Iteration {self._iteration}: {space.units[unit].name} {before.allocation[unit]} → "
            f"{chosen.allocation[unit]}, score {chosen.score:+.4f}, {amounts}"
        )

    # -- what is left behind -----------------------------------------------------------------------

    def _tune_on_workers(self, levels: Sequence[_Level]) -> None:
        """Let workers, if there are any, fine-tune the networks of several levels."""
        run = self._run
        jobs = [
            self._writer(level).tuning_job(partial(self._network, level), level.base.allocation) for level in levels
        ]
        tune_together(run.runner, run.network.adapter, jobs, self._listener, ship_data=self._config.ship_data)

    def _network(self, level: _Level) -> nn.Module:
        """Return a level's network as it is before its fine-tune."""
        module = self._steps.copy_of(level.base)
        recalibrate(module, self._steps.calibration)
        return module

    def _writer(self, level: _Level) -> ResultWriter:
        """Return what writes a level's files into its folder, which exists then."""
        path, label = self._folder_of(level.budget), self._label(level.budget)
        return ResultWriter(self._run, level.budget, path=path, label=label)

    def _ship(self, level: _Level, dense: Stage, searched: Mapping[str, Any]) -> bool:
        """Fine-tune a level's network at length, measure it and write its files."""
        deployment = self._writer(level)
        found = SelectedCandidate(level.base.allocation, level.base.score, level.latencies)
        if level.base is self._steps.dense:
            shipped = deployment.keep_everything(dense, strategy="netadapt")
        else:
            deployment.save_policy(found, strategy="netadapt", evaluations=self._steps.evaluations)
            shipped = deployment.ship(self._network(level), level.base.allocation)
        searched = {**searched, "best_score": level.base.score}
        if level.base is not self._steps.dense:
            last = Candidate(level.base.allocation, level.base.score)
            searched["candidates"] = search_figures(self._chosen, self._costs, last, prior=0)
        return deployment.finish({"dense": dense, **shipped}, searched)
