"""``autoprune search``: from trained weights to a measured, fine-tuned network within the budget."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune import __version__
from autoprune.budget import Budget, format_amount
from autoprune.commands.finalists import Finalist, choose, rescaled
from autoprune.commands.folder import RunFolder, environment
from autoprune.commands.guidance import Guidance, guide, probes
from autoprune.commands.latency import Bench
from autoprune.commands.network import Network, open_network
from autoprune.commands.screen import Screen
from autoprune.commands.stages import Stage, as_json, held, stage_rows
from autoprune.commands.tuning import tune
from autoprune.config import Rule, SearchConfig
from autoprune.constraint import Ceiling, Constraint
from autoprune.cost import uncounted
from autoprune.demo import DEMO_IMAGE_SIZE, demo_weights, shapes_dataset
from autoprune.errors import BudgetUnreachableError
from autoprune.evaluation import Evaluator
from autoprune.models._base import Accuracy
from autoprune.policy import CostKind, Policy, PolicyCost, PolicyUnit, Provenance
from autoprune.search._base import Progress, SearchResult, search
from autoprune.search.agents import AgentKind, AgentStrategy
from autoprune.search.settings import PPOSettings, Settings
from autoprune.space import Allocation, Space
from envs.lockstep import LockstepEnv
from envs.problem import PruningProblem
from envs.rules import Capped, Projected

DEFAULT_EPISODES, DEMO_EPISODES = 200, 60
DEFAULT_EPOCHS, DEMO_EPOCHS = 20, 3

INFORMED_STEP = 0.4
"""PPO's first standard deviation around a prior that is not uniform, as a share of the median relative step of a unit.

Best score of 100 episodes on bccd yolov5nu at flops=50%, 32 images, seed 0, prior −0.070: −0.044 at 0.05 (this share),
−0.055 at 0.14, −0.070 at 0.37 (nothing better than the prior). Much less than a step, and rounding swallows it.
"""


def run(config: SearchConfig, screen: Screen) -> int:
    """Search, prune, fine-tune and measure.

    Returns:
        0 where every limit is held as measured, 3 where the final network misses one.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with RunFolder.open("search", config) as folder:
        try:
            return SearchRun(_with_defaults(config), folder, screen).execute()
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(
                f"stopped; everything so far is kept, go on with: autoprune search --resume {folder.path}"
            ) from interrupt


def _with_defaults(config: SearchConfig) -> SearchConfig:
    """Fill in the bundled detector and data set, with a search that takes about three minutes, where none is given."""
    demo = config.model is None
    return replace(
        config,
        model=demo_weights() if demo else config.model,
        data=shapes_dataset() if demo else config.data,
        imgsz=config.imgsz or (DEMO_IMAGE_SIZE if demo else None),
        episodes=config.episodes or (DEMO_EPISODES if demo else DEFAULT_EPISODES),
        finetune_epochs=config.finetune_epochs
        if config.finetune_epochs is not None
        else (DEMO_EPOCHS if demo else DEFAULT_EPOCHS),
    )


class SearchRun:
    """One search, stage by stage; what a stage found is in the journal, so that a resume goes straight through it."""

    def __init__(self, config: SearchConfig, folder: RunFolder, screen: Screen) -> None:
        assert config.model is not None
        self.config, self.folder, self.screen = config, folder, screen
        self.budget = Budget.parse(config.budget)
        self.network: Network = open_network(
            config.model,
            data=config.data,
            image_size=config.imgsz,
            device=config.device,
            trust=config.trust_checkpoint,
            criterion=config.criterion.value,
            round_to=config.round_to,
            min_keep=config.min_keep,
            screen=screen,
        )
        self.static = self.network.static_costs()
        self.bench = Bench(self.network, config, folder, screen)
        self.seconds = 0.0

    # -- the run -----------------------------------------------------------------------------------

    def execute(self) -> int:
        """Run all stages and return the exit code."""
        dense = self.stage("dense", self.network.adapter.module, self.dense_allocation)
        limits = {limit.metric: limit.resolve(dense.cost(limit.metric)) for limit in self.budget}
        if all(dense.cost(metric) <= most for metric, most in limits.items()):
            return self.keep_everything(dense)
        constraint = self.constrain(limits)
        evaluator = self.evaluator("evaluation", self.config.images)
        for skipped in self.network.adapter.skipped:
            self.screen.warn(f"Skipped {skipped}")
        start = time.perf_counter()
        guidance = self.guidance(constraint, evaluator)
        constraint = self.calibrated(constraint, guidance, limits.get("latency"))
        result = self.search(constraint, evaluator, guidance)
        self.seconds = time.perf_counter() - start
        chosen = choose(
            result, evaluator, constraint, self.bench, limits.get("latency"),
            count=self.config.finalists, screen=self.screen,
        )  # fmt: skip
        module = evaluator.recalibrated(chosen.allocation)
        self.save_policy(chosen, evaluator)
        pruned, tuned = self.folder.path / "pruned.pt", self.folder.path / "model.pt"
        self.network.adapter.save(module, pruned, notes=self.notes(chosen.allocation))
        stages = {"dense": dense, "pruned": self.stage("pruned", module, chosen.allocation, pruned)}
        final = self.finetune(module, chosen.allocation)
        if final is not None:
            stages["finetuned"] = self.stage("finetuned", final, chosen.allocation, tuned)
        return self.finish(stages, self.search_summary(result, evaluator, guidance))

    @property
    def dense_allocation(self) -> Allocation:
        """The allocation that keeps everything."""
        return self.network.space.allocation(self.network.space.dense)

    def stage(self, name: str, module: nn.Module, allocation: Allocation, file: Path | None = None) -> Stage:
        """Measure a network: accuracy on the validation split, costs, size of its checkpoint, latency."""

        def measured() -> dict[str, float]:
            accuracy = self.network.adapter.validate(module)
            return {"map50": accuracy.map50, "map50_95": accuracy.map50_95}

        accuracy = Accuracy(**self.folder.once("validation", measured, name))
        costs = {metric: float(cost(np.array(allocation))) for metric, cost in self.static.items()}
        costs["size"] = file.stat().st_size if file is not None else self.network.adapter.checkpoint_size(module)
        return Stage.of(accuracy, costs, self.bench.stage(name, module))

    def constrain(self, limits: Mapping[str, float]) -> Constraint:
        """Return the limits as a constraint on allocations; latency by its predictor, fitted first."""
        ceilings = [Ceiling(self.static[metric], most) for metric, most in limits.items() if metric != "latency"]
        if "latency" in limits:
            ceilings.append(Ceiling(self.bench.predictor(limits["latency"]), self.bench.target(limits["latency"])))
        try:
            return Constraint(self.network.space, ceilings)
        except BudgetUnreachableError as error:
            if "latency" not in limits:
                raise
            raise BudgetUnreachableError(
                f"{error}. Measured, that narrowest network takes {self.bench.reachable()}."
            ) from error

    def evaluator(self, kind: str, images: int) -> Evaluator:
        """Return what scores candidates on so many training images."""
        network, config = self.network, self.config
        return Evaluator(
            network.adapter, network.space, network.surgeon, network.order,
            images=images, batch=config.batch, seed=config.seed,
            journal=self.folder.journal, kind=kind, notify=self.screen.warn,
        )  # fmt: skip

    def guidance(self, constraint: Constraint, evaluator: Evaluator) -> Guidance:
        """Probe every unit alone on one batch of images, and try a handful of priors."""
        candidates = probes(self.network.space)
        prober = self.evaluator("probe", min(self.config.batch, self.config.images))
        scores = []
        with self.screen.progress("Sensitivity", len(candidates)) as advance:
            for done, allocation in enumerate(candidates, start=1):
                scores.append(prober([allocation])[0].score)
                advance(done)
        return guide(self.network.space, constraint, constraint.ceilings[0].cost, scores, partial(_scores, evaluator))

    def calibrated(self, constraint: Constraint, guidance: Guidance, limit: float | None) -> Constraint:
        """Return the constraint with the predictor's error at the prior taken out: measured there, where it matters."""
        if limit is None:
            return constraint
        for _ in range(2):
            allocation = self.network.space.allocation(constraint.project(guidance.prior))
            factor = self.bench.predicted(allocation) / self.bench.measure(allocation)
            constraint = rescaled(constraint, factor, self.bench.target(limit))
        return constraint

    def search(self, constraint: Constraint, evaluator: Evaluator, guidance: Guidance) -> SearchResult:
        """Let the agent try its candidates."""
        config = self.config
        assert config.episodes is not None
        rule = Projected if config.rule is Rule.PROJECTED else Capped

        def make_env(*, episodes: int, score: Any) -> LockstepEnv:
            problem = PruningProblem(
                space=self.network.space, constraint=constraint, cost=constraint.ceilings[0].cost, score=score,
                sensitivity=guidance.sensitivity, prior=guidance.prior,
            )  # fmt: skip
            return LockstepEnv(problem, episodes=episodes, rule=rule)

        strategy = AgentStrategy(
            make_env,
            _settings(AgentKind(config.agent.value), guidance, self.network.space),
            evaluations=config.episodes,
            seed=config.seed,
            log_dir=self.folder.path / "tensorboard" if config.tensorboard else None,
        )
        with self.screen.progress("Search", config.episodes) as advance:

            def show(progress: Progress) -> None:
                advance(progress.done, f"best score {progress.best.score:+.4f}" if progress.best else "probes")

            return search(
                strategy, partial(_scores, evaluator),
                constraint=constraint, evaluations=config.episodes, on_evaluation=show,
            )  # fmt: skip

    def finetune(self, module: nn.Module, allocation: Allocation) -> nn.Module | None:
        """Fine-tune and write ``model.pt``; with no epochs, the recalibrated network is the model."""
        config, adapter, path = self.config, self.network.adapter, self.folder.path / "model.pt"
        assert config.finetune_epochs is not None
        if config.finetune_epochs == 0:
            adapter.save(module, path, notes=self.notes(allocation))
            return None
        return tune(
            adapter, module, self.folder, epochs=config.finetune_epochs, lr_scale=config.lr_scale,
            batch=config.batch, seed=config.seed, notes=self.notes(allocation), screen=self.screen,
        )  # fmt: skip

    # -- what is left behind -----------------------------------------------------------------------

    def notes(self, allocation: Allocation) -> dict[str, Any]:
        """Return what travels inside the checkpoints."""
        kept = {unit.name: count for unit, count in zip(self.network.space.units, allocation, strict=True)}
        return {"autoprune": __version__, "budget": list(self.budget.texts), "keep": kept}

    def save_policy(self, chosen: Finalist, evaluator: Evaluator) -> None:
        """Write ``policy.json``."""
        config, network = self.config, self.network
        counts = np.array(chosen.allocation)
        costs = {
            metric: PolicyCost(
                float(cost(counts)), cost.unit, CostKind.PREDICTED if cost.predicted else CostKind.MEASURED
            )
            for metric, cost in self.static.items()
        }
        if chosen.latency is not None:
            costs["latency"] = PolicyCost(chosen.latency, "ms", CostKind.MEASURED)
        policy = Policy(
            model=network.described,
            criterion=config.criterion.value,
            round_to=config.round_to,
            units=tuple(
                PolicyUnit(unit.name, unit.width, count)
                for unit, count in zip(network.space.units, chosen.allocation, strict=True)
            ),
            budget=self.budget.texts,
            costs=costs,
            score=chosen.score,
            provenance=Provenance(
                autoprune=__version__,
                command=shlex.join(["autoprune", *sys.argv[1:]]),
                strategy=config.agent.value,
                seed=config.seed,
                evaluations=evaluator.counts.evaluations,
                created=self.folder.once("created", lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")),
            ),
        )
        policy.save(self.folder.path / "policy.json")

    def keep_everything(self, dense: Stage) -> int:
        """End well where the dense network already holds the budget."""
        self.screen.note(
            f"The dense network already holds {self.budget}: "
            + ", ".join(
                f"{limit.metric} {format_amount(limit.metric, dense.cost(limit.metric))}" for limit in self.budget
            )
            + f". Nothing is pruned; for less ask for a share, e.g. --budget {self.budget.limits[0].metric}=60%."
        )
        evaluator = self.evaluator("evaluation", min(self.config.batch, self.config.images))
        latency = dense.cost("latency")
        self.save_policy(Finalist(self.dense_allocation, 0.0, latency, None), evaluator)
        for name in ("pruned.pt", "model.pt"):
            self.network.adapter.save(
                self.network.adapter.module, self.folder.path / name, notes=self.notes(self.dense_allocation)
            )
        nothing = {"strategy": "none", "evaluations": 0, "cache_hits": 0, "seconds": 0.0, "best_score": 0.0}
        return self.finish({"dense": dense, "pruned": dense}, nothing)

    def search_summary(self, result: SearchResult, evaluator: Evaluator, guidance: Guidance) -> dict[str, Any]:
        """Return the figures of the search itself."""
        counts = evaluator.counts
        return {
            "strategy": self.config.agent.value,
            "rule": self.config.rule.value,
            "evaluations": counts.evaluations,
            "probes": guidance.probes,
            "cache_hits": counts.cache_hits,
            "seconds": self.seconds,
            "seconds_per_evaluation": counts.seconds / max(counts.evaluations, 1),
            "best_score": result.best.score,
            "latency_prediction_error": self.bench.prediction_error(),
        }

    def finish(self, stages: Mapping[str, Stage], searched: Mapping[str, Any]) -> int:
        """Write ``summary.json``, show the table, and return the exit code."""
        final = list(stages.values())[-1]
        budget = held(tuple(self.budget), stages["dense"], final)
        summary: dict[str, Any] = {
            **{name: as_json(stage) for name, stage in stages.items()},
            "budget": budget,
            "search": dict(searched),
            "uncounted_operations": uncounted(self.network.graph),
            "environment": {**environment(), **self.bench.environment()},
        }
        self.folder.write("summary.json", json.dumps(summary, indent=2) + "\n")
        header, rows = stage_rows(stages)
        self.screen.table(f"{self.network.adapter.name}, {self.budget}", header, rows)
        self.screen.note(
            f"The network is {self.folder.path / 'model.pt'}, its policy {self.folder.path / 'policy.json'}."
        )
        return self.verdict(budget)

    def verdict(self, budget: Sequence[Mapping[str, Any]]) -> int:
        """Say for every limit whether it is held, and return the exit code."""
        for row in budget:
            achieved, most = (format_amount(row["metric"], row[key]) for key in ("achieved", "limit"))
            if row["satisfied"]:
                self.screen.note(f"Budget {row['requested']} is held: {achieved} of {most}.")
            else:
                self.screen.warn(f"Budget {row['requested']} is missed: {achieved} measured, {most} allowed.")
        return 0 if all(row["satisfied"] for row in budget) else BudgetUnreachableError.exit_code


def _settings(kind: AgentKind, guidance: Guidance, space: Space) -> Settings:
    """Return the agent's settings; around a prior made of sensitivities PPO looks closer than around a uniform one."""
    settings = kind.settings
    if isinstance(settings, PPOSettings) and np.any(guidance.prior):
        step = float(np.median(space.round_to / space.dense))
        return replace(settings, log_std=float(np.clip(np.log(INFORMED_STEP * step), -4.0, settings.log_std)))
    return settings


def _scores(evaluator: Evaluator, allocations: Sequence[Allocation]) -> list[float]:
    return [evaluation.score for evaluation in evaluator(allocations)]
