"""``autoprune compare``: strategies at equal cost, next to what needs no pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autoprune.config import CompareConfig
from autoprune.io.files import make_folder
from autoprune.latency.predictor import spearman
from autoprune.listener import Listener, tracked
from autoprune.report.comparison import LEAST_POINTS
from autoprune.report.sections import publish
from autoprune.results import Compared, Metrics, Result, Stage
from autoprune.strategies.registry import names_where
from autoprune.structure.space import Allocation
from autoprune.workflows import stages
from autoprune.workflows.benchmark import BenchmarkResult, StrategyBenchmark, check_evaluations
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.criteria import CriteriaComparison
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.latency_constraints import LatencyConstraints
from autoprune.workflows.references import References
from autoprune.workflows.result_writer import ResultWriter, SelectedCandidate
from autoprune.workflows.run import PruningRun, with_model
from autoprune.workflows.shown import keep_best_detections
from autoprune.workflows.tuning import Tuned, Tuning, Validation, tune
from autoprune.workflows.tuning_workers import TuningJob, tune_together


def run(config: CompareConfig, listener: Listener, caller: Caller) -> Finished:
    """Let every strategy search, fine-tune every winner alike, and put them side by side."""
    if not config.compared_criteria:
        check_evaluations(config)
    with RunFolder.open("compare", config, caller) as folder:
        comparison = CriteriaComparison if config.compared_criteria else _Comparison
        comparison(with_model(config), folder, listener).execute()
    return Finished(folder.path)


@dataclass(frozen=True)
class _Finetune:
    """A fine-tune of the comparison.

    Attributes:
        allocation: of the network, kept channels per unit.
        score: its proxy score.
        seed: counted from 0.
        label: name of its folder.
    """

    allocation: Allocation
    score: float
    seed: int
    label: str

    @property
    def key(self) -> list[Any]:
        """What the journal knows its fine-tune by."""
        return [list(self.allocation), self.seed]


def _winner(outcome: BenchmarkResult) -> _Finetune:
    return _Finetune(outcome.allocation, outcome.score, outcome.seed, f"{outcome.entry}-{outcome.seed}")


def _notes(one: _Finetune) -> dict[str, Any]:
    return {"strategy": one.label}


def _series(one: _Finetune) -> str:
    return f"finetune {one.label}"


class _Comparison:
    """One comparison; every search and every fine-tune is in the journal, so that it can be extended."""

    def __init__(self, config: CompareConfig, folder: RunFolder, listener: Listener) -> None:
        self._config, self._folder, self._listener = config, folder, listener
        self._budget = config.lowest
        listener.stages(stages.of_compare(config))
        self._run = PruningRun(config, folder, listener)

    def execute(self) -> None:
        """Search, fine-tune, and write the results."""
        run, config = self._run, self._config
        dense = run.dense()
        limits = run.binding_limits(self._budget, dense)
        self._latency_constraints = LatencyConstraints(run.estimators, limits)
        benchmark = StrategyBenchmark(
            run, config, run.constrain(self._budget, limits, self._latency_constraints), self._latency_constraints
        )
        self._listener.stage(stages.SEARCH)
        entries = [(entry, seed) for entry in config.entries for seed in benchmark.seeds(entry)]
        outcomes = [benchmark.outcome(entry, seed) for entry, seed in tracked(entries, "Searches")]
        self._listener.stage(stages.WINNERS)
        spread = self._spread(outcomes)
        references = References(run, config, limits) if config.references else None
        self._tune_on_workers(benchmark, [*map(_winner, outcomes), *spread], references)
        tuned = [self._tuned(benchmark, _winner(outcome)) for outcome in tracked(outcomes, "Winners")]
        if references is not None:
            self._listener.stage(stages.REFERENCES)
        alternatives = references.all() if references is not None else {}
        points = self._points(outcomes, tuned, {one: self._tuned(benchmark, one) for one in spread})
        costs = {metric: dense.cost(metric) for metric in limits}
        compared = {"strategies": self._rows(outcomes, tuned, costs), "references": _references(alternatives, costs)}
        if config.report:
            names = [f"{outcome.entry}-{outcome.seed}" for outcome in outcomes]
            after = {name: one.after for name, one in zip(names, tuned, strict=True)}
            keep_best_detections(run.network.adapter, after, self._folder.path, self._listener)
        self._publish(dense, compared, points, outcomes)

    # -- fine-tunes --------------------------------------------------------------------------------

    def _tuned(self, benchmark: StrategyBenchmark, one: _Finetune) -> Tuned:
        """Fine-tune a network; an allocation that several found with the same seed is trained once."""

        def made() -> dict[str, Any]:
            return self._train(benchmark, one).to_json()

        return Tuned.from_json(self._folder.once("tuned", made, one.key))

    def _tune_on_workers(
        self, benchmark: StrategyBenchmark, wanted: Sequence[_Finetune], references: References | None
    ) -> None:
        """Let workers, if there are any, fine-tune what the journal does not hold yet."""
        run = self._run
        if run.runner.usage is None or not self._config.finetune_epochs:
            return
        distinct = {str(one.key): one for one in reversed(wanted)}  # of equal ones the first, which will be asked for
        missing = [one for one in wanted if distinct[str(one.key)] is one]
        missing = [one for one in missing if self._folder.journal.lookup("tuned", one.key) is None]
        jobs = [
            TuningJob(
                partial(self._pruned, benchmark, one), self._place(one), self._tuning(one), _notes(one), _series(one)
            )
            for one in missing
        ]
        jobs += references.jobs() if references is not None else []
        tune_together(run.runner, run.network.adapter, jobs, self._listener, ship_data=self._config.ship_data)

    def _train(self, benchmark: StrategyBenchmark, one: _Finetune) -> Tuned:
        run, config, adapter = self._run, self._config, self._run.network.adapter
        path = self._place(one)
        costs = {**run.network.costs(one.allocation), **self._latency_constraints.confirm(one.allocation)}
        found = SelectedCandidate(one.allocation, one.score, {})
        deployment = ResultWriter(run, self._budget, path=path)
        deployment.save_policy(found, strategy=one.label.rpartition("-")[0], evaluations=config.evaluations)
        module = self._pruned(benchmark, one)
        before = adapter.validate(module)
        if not config.finetune_epochs:
            return Tuned(before, None, costs)
        self._listener.note(f"Fine-tuning {one.label} (score {one.score:+.4f})")
        validation = Validation(adapter)
        trained = tune(
            adapter,
            module,
            path,
            tuning=self._tuning(one),
            notes=_notes(one),
            listener=self._listener,
            measure=validation,
            series=_series(one),
        )
        return Tuned(before, validation(trained), costs)

    def _pruned(self, benchmark: StrategyBenchmark, one: _Finetune) -> nn.Module:
        """Return a network as its checkpoints hold it before the fine-tune."""
        module = benchmark.evaluator.repaired(one.allocation)
        return ResultWriter(self._run, self._budget, path=self._place(one)).described(module)

    def _tuning(self, one: _Finetune) -> Tuning:
        tuning = Tuning.of(self._config, self._run.network.adapter.module)
        return replace(tuning, seed=self._config.seed + one.seed)

    def _place(self, one: _Finetune) -> Path:
        """Return the folder of a network, which exists then."""
        return make_folder(self._folder.path / "networks" / one.label)

    def _spread(self, outcomes: Sequence[BenchmarkResult]) -> list[_Finetune]:
        """Return enough other candidates, spread over quality, to correlate score and accuracy."""
        if not self._config.finetune_epochs:
            return []
        winners = {outcome.allocation for outcome in outcomes}
        others = {item.allocation: item.score for outcome in outcomes for item in outcome.tried}
        ranked = sorted(set(others) - winners, key=lambda allocation: (others[allocation], allocation))
        wanted = min(max(self._config.correlated - len(winners), 0), len(ranked))
        chosen = [ranked[place] for place in np.linspace(0, len(ranked) - 1, wanted).round().astype(int)]
        return [_Finetune(one, others[one], 0, f"spread-{number}") for number, one in enumerate(chosen)]

    def _points(
        self, outcomes: Sequence[BenchmarkResult], tuned: Sequence[Tuned], spread: Mapping[_Finetune, Tuned]
    ) -> dict[str, tuple[float, float]]:
        """Return (score, fine-tuned primary metric) of all winners, and of the others, by name.

        A network's name is that of its folder in ``networks``, or of its folders if several found it.
        """
        points: dict[Allocation, tuple[float, Metrics | None]] = {}
        names: dict[Allocation, str] = {}
        found = [*zip(map(_winner, outcomes), tuned, strict=True), *spread.items()]
        for one, tuned_one in found:
            points[one.allocation] = one.score, tuned_one.after
            names[one.allocation] = ", ".join(filter(None, (names.get(one.allocation), one.label)))
        return {
            names[allocation]: (score, after.primary)
            for allocation, (score, after) in points.items()
            if after is not None
        }

    # -- results -----------------------------------------------------------------------------------

    def _rows(
        self, outcomes: Sequence[BenchmarkResult], tuned: Sequence[Tuned], dense: Mapping[str, float]
    ) -> list[Compared]:
        """Return one row per strategy, its values per seed, the best mean score first; costs as shares of ``dense``."""
        rows = []
        for name in dict.fromkeys(outcome.entry for outcome in outcomes):
            pairs = [(o, t) for o, t in zip(outcomes, tuned, strict=True) if o.entry == name]
            rows.append(
                Compared(
                    name,
                    [t.before for _, t in pairs if t.before is not None],
                    [t.after for _, t in pairs if t.after is not None],
                    {
                        limit.metric: [t.costs[limit.metric] / dense[limit.metric] for _, t in pairs]
                        for limit in self._budget
                    },
                    scores=[o.score for o, _ in pairs],
                    seeds=[o.seed for o, _ in pairs],
                    evaluations=[o.evaluations for o, _ in pairs],
                    seconds=[o.seconds for o, _ in pairs],
                )
            )
        return sorted(rows, key=lambda row: -float(np.mean(row.scores)))

    def _publish(
        self,
        dense: Stage,
        compared: Mapping[str, Sequence[Compared]],
        points: Mapping[str, tuple[float, float]],
        outcomes: Sequence[BenchmarkResult],
    ) -> None:
        run, config, listener, adapter = self._run, self._config, self._listener, self._run.network.adapter
        metric = adapter.metric_names[0]
        verdict = agents_verdict(compared["strategies"], metric)
        correlation = _correlation(list(points.values()))
        result = Result(
            command=self._folder.command,
            title=f"{adapter.name}, {self._budget}, {config.evaluations} evaluations",
            metric_names=adapter.metric_names,
            stages={"dense": dense},
            compared=compared,
            figures={
                "limits": list(self._budget.texts),
                "evaluations": config.evaluations,
                "images": config.images,
                "image_size": adapter.image_size.plain,
                "finetune_epochs": config.finetune_epochs,
                "correlation": {
                    "spearman": correlation,
                    "networks": len(points),
                    "points": [list(point) for point in points.values()],
                    "names": list(points),
                },
                "histories": {row.name: _histories(row.name, outcomes) for row in compared["strategies"]},
                "agents": verdict,
                **run.usage(),
            },
            environment={**environment(), **run.estimator.environment()},
        )
        path = self._folder.path / "compare.json"
        pictures = [path.with_name(f"{name}.png") for name in ("comparison", "progress", "correlation")]
        for picture in pictures:  # of a comparison that is extended
            picture.unlink(missing_ok=True)
        publish(result, path, listener)
        if len(points) >= LEAST_POINTS:
            listener.note(
                f"Score and fine-tuned {adapter.metric_names[0]} rank {len(points)} networks alike: Spearman "
                f"{correlation:.2f}."
            )
        listener.note(verdict)
        listener.note(f"The comparison is {path}, with {', '.join(one.name for one in pictures if one.exists())}.")


def _references(found: Mapping[str, Tuned], dense: Mapping[str, float]) -> list[Compared]:
    """Return the references as rows, their costs as shares of ``dense``."""
    return [
        Compared(
            name,
            [one.before] if one.before is not None else [],
            [one.after] if one.after is not None else [],
            {metric: [one.costs[metric] / cost] for metric, cost in dense.items()},
        )
        for name, one in found.items()
    ]


def _histories(name: str, outcomes: Sequence[BenchmarkResult]) -> list[list[float | None]]:
    """Return the scores of a strategy's candidates in order, per seed; None for one that does not hold the budget."""
    return [
        [None if math.isnan(score) else score for score in outcome.history]
        for outcome in outcomes
        if outcome.entry == name
    ]


def agents_verdict(rows: Sequence[Compared], metric: str) -> str:
    """Say in words whether an agent found the best network: by what the table shows of it, the fine-tuned first.

    Args:
        rows: the strategies.
        metric: name of the accuracy.
    """
    agents = set(names_where("agent"))
    ours = [row for row in rows if row.name.rpartition("+")[2] in agents]
    others = [row for row in rows if row not in ours]
    if not ours or not others:
        return "No agent is compared with another strategy."

    def tuned(row: Compared) -> float:
        return float(np.mean([one.primary for one in row.after]))

    def scored(row: Compared) -> float:
        return float(np.mean(row.scores))

    by_score = _sentence("score", "+.4f", scored, ours, others)
    if not all(row.after for row in rows):
        return by_score
    return f"{_sentence(f'fine-tuned {metric}', '.3f', tuned, ours, others)} {by_score}"


def _sentence(
    what: str, form: str, value: Callable[[Compared], float], ours: Sequence[Compared], others: Sequence[Compared]
) -> str:
    """Compare the best agent with the best other strategy, in the digits that the table has."""
    agent, other = max(ours, key=value), max(others, key=value)
    mine, theirs = (format(value(row), form) for row in (agent, other))
    how = "No difference" if mine == theirs else "The agent wins" if float(mine) > float(theirs) else "No agent wins"
    return (
        f"{how} by {what} (means): the best agent is {agent.name} with {mine}, the best other strategy {other.name} "
        f"with {theirs}."
    )


def _correlation(points: Sequence[tuple[float, float]]) -> float:
    if len(points) < LEAST_POINTS:
        return 0.0
    scores, accuracies = np.array(points).T
    return float(spearman(scores, accuracies))
