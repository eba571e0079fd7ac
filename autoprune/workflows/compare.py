"""``autoprune compare``: strategies at equal cost, next to the honest alternatives to pruning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoprune.budget import Budget
from autoprune.config import CompareConfig
from autoprune.io.files import saying_why
from autoprune.latency.fitting import spearman
from autoprune.listener import Listener
from autoprune.report import ComparisonRow, RowKind, comparison_plot, correlation_plot, search_progress
from autoprune.strategies.registry import names_where
from autoprune.structure.space import Allocation
from autoprune.workflows.benchmark import BenchmarkResult, StrategyBenchmark
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.criteria import CriteriaComparison
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.latency_constraints import LatencyConstraints
from autoprune.workflows.references import References, Trained
from autoprune.workflows.result_writer import ResultWriter, SelectedCandidate
from autoprune.workflows.run import PruningRun, with_model
from autoprune.workflows.tuning import Tuning, tune


def run(config: CompareConfig, listener: Listener, caller: Caller) -> Finished:
    """Let every strategy search, fine-tune every winner alike, and put them side by side."""
    with RunFolder.open("compare", config, caller) as folder:
        if config.compared_criteria:
            CriteriaComparison(config, folder, listener).execute()
        else:
            _Comparison(with_model(config), folder, listener).execute()
    return Finished(folder.path)


@dataclass(frozen=True)
class Tuned:
    """A pruned network before and after the fine-tune.

    Attributes:
        before: the accuracy's main figure on the validation split.
        after: the same after fine-tuning, or None where there are no epochs.
        costs: by metric, in its unit; latency measured, where it is limited.
    """

    before: float
    after: float | None
    costs: Mapping[str, float]


class _Comparison:
    """One comparison; every search and every fine-tune is in the journal, so that it can be extended."""

    def __init__(self, config: CompareConfig, folder: RunFolder, listener: Listener) -> None:
        self._config, self._folder, self._listener = config, folder, listener
        self._budget = Budget.parse(config.budget)
        self._run = PruningRun(config, folder, listener)

    def execute(self) -> None:
        """Search, fine-tune, and write the results."""
        run, config = self._run, self._config
        dense = run.dense()
        limits = run.binding_limits(self._budget, dense)
        self._latency_constraints = LatencyConstraints(run.estimators, limits)
        contest = StrategyBenchmark(
            run, config, run.constrain(self._budget, limits, self._latency_constraints), self._latency_constraints
        )
        outcomes = [contest.outcome(entry, seed) for entry in config.entries for seed in contest.seeds(entry)]
        tuned = [self._tuned(contest, outcome) for outcome in outcomes]
        references = References(run, config, limits).all() if config.references else []
        points = self._points(contest, outcomes, tuned)
        dense_costs = {metric: dense.cost(metric) for metric in limits}
        rows = self._rows(outcomes, tuned)
        for row in rows:
            row["costs"] = {
                metric: [item / dense_costs[metric] for item in values] for metric, values in row["costs"].items()
            }
        assert dense.accuracy is not None
        self._write(rows, references, points, dense.accuracy.main, dense_costs, outcomes)

    # -- fine-tunes --------------------------------------------------------------------------------

    def _tuned(self, contest: StrategyBenchmark, outcome: BenchmarkResult) -> Tuned:
        """Fine-tune a winner; an allocation that several found with the same seed is trained once."""
        label = f"{outcome.entry}-{outcome.seed}"
        return self._trained(contest, outcome.allocation, outcome.score, outcome.seed, label)

    def _trained(
        self, contest: StrategyBenchmark, allocation: Allocation, score: float, seed: int, label: str
    ) -> Tuned:
        def made() -> dict[str, Any]:
            return vars(self._train(contest, SelectedCandidate(allocation, score, {}), seed, label))

        return Tuned(**self._folder.once("tuned", made, [list(allocation), seed]))

    def _train(self, contest: StrategyBenchmark, found: SelectedCandidate, seed: int, label: str) -> Tuned:
        run, config, adapter = self._run, self._config, self._run.network.adapter
        path = self._folder.path / "networks" / label
        with saying_why(path):
            path.mkdir(parents=True, exist_ok=True)
        counts = np.array(found.allocation)
        costs = {metric: float(cost(counts)) for metric, cost in run.static.items()}
        costs |= self._latency_constraints.confirm(found.allocation)
        module = contest.evaluator.repaired(found.allocation)
        deployment = ResultWriter(run, self._budget, path=path)
        deployment.save_policy(found, strategy=label.rpartition("-")[0], evaluations=config.evaluations)
        before = adapter.validate(module).main
        if not config.finetune_epochs:
            return Tuned(before, None, costs)
        self._listener.note(f"Fine-tuning {label} (score {found.score:+.4f})")
        tuning = replace(Tuning.of(config, adapter.module), seed=config.seed + seed)
        module = deployment.described(module)
        trained = tune(adapter, module, path, tuning=tuning, notes={"strategy": label}, listener=self._listener)
        return Tuned(before, adapter.validate(trained).main, costs)

    def _points(
        self, contest: StrategyBenchmark, outcomes: Sequence[BenchmarkResult], tuned: Sequence[Tuned]
    ) -> list[tuple[float, float]]:
        """Return (score, fine-tuned accuracy) of all winners, and of enough others, spread over quality."""
        if not self._config.finetune_epochs:
            return []
        points: dict[Allocation, tuple[float, float | None]] = {
            outcome.allocation: (outcome.score, one.after) for outcome, one in zip(outcomes, tuned, strict=True)
        }
        others = {item.allocation: item.score for outcome in outcomes for item in outcome.tried}
        ranked = sorted(set(others) - set(points), key=lambda allocation: (others[allocation], allocation))
        wanted = min(max(self._config.correlated - len(points), 0), len(ranked))
        for number, place in enumerate(np.linspace(0, len(ranked) - 1, wanted).round().astype(int)):
            allocation = ranked[place]
            after = self._trained(contest, allocation, others[allocation], 0, f"spread-{number}").after
            points[allocation] = (others[allocation], after)
        return [(score, after) for score, after in points.values() if after is not None]

    # -- results -----------------------------------------------------------------------------------

    def _rows(self, outcomes: Sequence[BenchmarkResult], tuned: Sequence[Tuned]) -> list[dict[str, Any]]:
        """Return one row per strategy, its values per seed, the best mean score first."""
        rows = []
        for name in dict.fromkeys(outcome.entry for outcome in outcomes):
            pairs = [(o, t) for o, t in zip(outcomes, tuned, strict=True) if o.entry == name]
            rows.append(
                {
                    "strategy": name,
                    "seeds": [o.seed for o, _ in pairs],
                    "score": [o.score for o, _ in pairs],
                    "accuracy_before": [t.before for _, t in pairs],
                    "accuracy_after": [t.after for _, t in pairs if t.after is not None],
                    "evaluations": [o.evaluations for o, _ in pairs],
                    "seconds": [o.seconds for o, _ in pairs],
                    "costs": {limit.metric: [t.costs[limit.metric] for _, t in pairs] for limit in self._budget},
                }
            )
        return sorted(rows, key=lambda row: -float(np.mean(row["score"])))

    def _write(
        self,
        rows: Sequence[Mapping[str, Any]],
        references: Sequence[Trained],
        points: Sequence[tuple[float, float]],
        dense: float,
        dense_costs: Mapping[str, float],
        outcomes: Sequence[BenchmarkResult],
    ) -> None:
        run, config, listener, path = self._run, self._config, self._listener, self._folder.path
        metric, names = self._budget.limits[0].metric, run.network.adapter.accuracy_names
        shares = [
            {**vars(one), "costs": {name: one.costs[name] / dense_costs[name] for name in dense_costs}}
            for one in references
        ]
        verdict = agents_verdict(rows)
        correlation = _correlation(points)
        summary = {
            "budget": list(self._budget.texts),
            "evaluations": config.evaluations,
            "images": config.images,
            "image_size": run.network.adapter.image_size,
            "finetune_epochs": config.finetune_epochs,
            "accuracy": names.main,
            "dense": {"accuracy": dense, "costs": dict(dense_costs)},
            "strategies": list(rows),
            "references": shares,
            "correlation": {
                "spearman": correlation,
                "networks": len(points),
                "points": [list(point) for point in points],
            },
            "agents": verdict,
            "environment": {**environment(), **run.estimator.environment()},
        }
        self._folder.write("compare.json", json.dumps(summary, indent=2) + "\n")
        title = f"{run.network.adapter.name}, {self._budget}, {config.evaluations} evaluations"
        drawn = _drawn(rows, shares, dense, metric)
        comparison_plot(drawn, path / "comparison.png", title=title, cost_label=metric, accuracy=names.main)
        histories = {row["strategy"]: [o.history for o in outcomes if o.entry == row["strategy"]] for row in rows}
        search_progress(histories, path / "progress.png", title=title)
        if len(points) >= 3:
            correlation_plot(points, path / "correlation.png", spearman=correlation, title=title, accuracy=names.main)
        header, table = comparison_table(rows, shares, dense, metric=metric, accuracy=names.main)
        listener.table(title, header, table)
        if len(points) >= 3:
            listener.note(
                f"Score and fine-tuned {names.main} rank {len(points)} networks alike: Spearman {correlation:.2f}."
            )
        listener.note(verdict)
        listener.note(
            f"The comparison is {path / 'compare.json'}, with comparison.png, progress.png and correlation.png."
        )


def agents_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words whether an agent found the best score."""
    agents = set(names_where("agent"))
    medians = {row["strategy"]: float(np.median(row["score"])) for row in rows}
    ours = {name: value for name, value in medians.items() if name.rpartition("+")[2] in agents}
    others = {name: value for name, value in medians.items() if name not in ours}
    if not ours or not others:
        return "No agent is compared with another strategy."
    agent, other = max(ours, key=lambda name: ours[name]), max(others, key=lambda name: others[name])
    how = "The agent wins" if ours[agent] > others[other] else "No agent wins"
    return (
        f"{how}: the best agent is {agent} with a score of {ours[agent]:+.4f} in the median, the best other strategy "
        f"{other} with {others[other]:+.4f}."
    )


def comparison_table(
    rows: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    dense: float,
    *,
    metric: str,
    accuracy: str,
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: strategies first, then the references; mean ± standard deviation over seeds."""
    header = ["", "score", accuracy, "fine-tuned", metric, "evaluations", "seconds"]
    table = [
        [
            row["strategy"],
            _spread(row["score"], "+.4f"),
            _spread(row["accuracy_before"]),
            _spread(row["accuracy_after"]),
            f"{np.mean(row['costs'][metric]):.1%}",
            f"{np.mean(row['evaluations']):.0f}",
            f"{np.mean(row['seconds']):.0f}",
        ]
        for row in rows
    ]
    table.append(["dense", "0", "–", f"{dense:.3f}", "100%", "", ""])
    for row in references:
        before, after = (_spread([value] if value is not None else []) for value in (row["before"], row["after"]))
        table.append([row["name"], "", before, after, f"{row['costs'][metric]:.1%}", "", ""])
    return header, table


def _spread(values: Sequence[float], form: str = ".3f") -> str:
    if not values:
        return "–"
    mean = f"{np.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values):{form.lstrip('+')}}"


def _correlation(points: Sequence[tuple[float, float]]) -> float:
    if len(points) < 3:
        return 0.0
    scores, accuracies = np.array(points).T
    return float(spearman(scores, accuracies))


def _drawn(
    rows: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], dense: float, metric: str
) -> list[ComparisonRow]:
    drawn = [
        ComparisonRow(
            row["strategy"],
            RowKind.STRATEGY,
            scores=tuple(row["score"]),
            before=tuple(row["accuracy_before"]),
            after=tuple(row["accuracy_after"]),
            costs=tuple(row["costs"][metric]),
            seconds=float(np.mean(row["seconds"])),
        )
        for row in rows
    ]
    drawn.append(ComparisonRow("dense", RowKind.DENSE, after=(dense,), costs=(1.0,)))
    for row in references:
        before, after = (() if value is None else (value,) for value in (row["before"], row["after"]))
        drawn.append(
            ComparisonRow(row["name"], RowKind.REFERENCE, before=before, after=after, costs=(row["costs"][metric],))
        )
    return drawn
