"""Other ways to search from where regrowth ends: a Gaussian process, CEM-RL, PPO alone, next to what is shipped.

Usage: ``python -m tests.benchmarks.searchers RUNS [WORD…]``. It scores what is missing in RUNS, one cell after another,
and prints a table in Markdown. With words only the cells that have one of them in their name are made: ``yolov8n``,
``flops=20%``.

All have the evaluations that ``autoprune compare --evaluations 100`` leaves after regrowth, at 224 px, 32 images and
one thread, and start at the same allocation. ``docs/accuracy.md`` tells what they found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.stats import norm
from torch import nn

import autoprune as ap
from autoprune.arrays import Array
from autoprune.choices import Rule
from autoprune.envs.problem import PruningProblem
from autoprune.listener import SilentListener
from autoprune.strategies._base import Evaluate, SearchTask, Strategy, search
from autoprune.strategies.isolation import preserved_random_state
from autoprune.strategies.prior import find_prior
from autoprune.strategies.registry import StrategyName
from autoprune.strategies.rl.agents import AgentKind
from autoprune.structure.space import Allocation
from autoprune.workflows.strategies import environment
from tests.benchmarks.accuracy import DETECTORS, asked, data_of, model_of

BUDGETS = ("flops=50%", "flops=30%", "flops=20%")
EVALUATIONS, IMGSZ, IMAGES = 100, 224, 32
SEEDS = range(3)


class _Around(Strategy):
    """What the strategies of this file share: candidates that hold the budget, each scored once.

    Args:
        task: what to search, with its prior.
    """

    def __init__(self, task: SearchTask) -> None:
        assert task.prior is not None
        self.constraint, self.space = task.constraint, task.constraint.space
        self.rng = np.random.default_rng(task.seed)
        self.free = np.array([unit for unit, choices in enumerate(self.space.choices) if len(choices) > 1])
        self.known = {one.allocation: one.score for one in task.prior.tried}

    @property
    def best(self) -> Allocation:
        """The best of what is known."""
        return max(self.known, key=self.known.__getitem__)

    def log_ratios(self, allocation: Allocation) -> Array:
        """Return natural logarithms of keep ratios, shape (units,)."""
        return self.space.log_ratios(allocation)

    def onto_budget(self, log_ratios: Array) -> Allocation:
        """Return the nearest allocation that holds the budget."""
        return self.constraint.allocation(log_ratios)

    def scored(self, allocations: Sequence[Allocation], evaluate: Evaluate) -> list[float]:
        """Return scores; what is known is not asked for again."""
        new = [one for one in dict.fromkeys(allocations) if one not in self.known]
        self.known.update(zip(new, evaluate(new), strict=True))
        return [self.known[one] for one in allocations]


class Preselected(_Around):
    """Score those of many samples around the best of which a Gaussian process expects the greatest improvement."""

    samples, together, spreads = 400, 5, (0.05, 0.1, 0.2)

    def run(self, evaluate: Evaluate) -> None:
        """Fit to all that is known, choose, score, again."""
        while True:
            known = list(self.known)
            scores = np.array([self.known[one] for one in known])
            scores = (scores - scores.mean()) / max(float(scores.std()), 1e-9)
            process = _Process(self._inputs(known), scores)
            tried = [one for one in dict.fromkeys(self._sample()) if one not in self.known]
            expected, deviation = process(self._inputs(tried))
            ahead = expected - scores.max()
            improvement = ahead * norm.cdf(ahead / deviation) + deviation * norm.pdf(ahead / deviation)
            self.scored([tried[place] for place in np.argsort(-improvement)[: self.together]], evaluate)

    def _inputs(self, allocations: Sequence[Allocation]) -> Array:
        return np.stack([self.log_ratios(one)[self.free] for one in allocations])

    def _sample(self) -> list[Allocation]:
        start, found = self.log_ratios(self.best), []
        for _ in range(self.samples):
            log_ratios = start.copy()
            log_ratios[self.free] += self.rng.choice(self.spreads) * self.rng.standard_normal(len(self.free))
            found.append(self.onto_budget(log_ratios))
        return found


class _Process:
    """A Gaussian process of the likeliest length, amplitude and noise (Rasmussen & Williams, 2006, chapter 2)."""

    def __init__(self, inputs: Array, scores: Array) -> None:
        self._inputs, self._scores = inputs, scores
        self._squares = cdist(inputs, inputs, "sqeuclidean")
        start = np.log([float(np.median(self._squares[self._squares > 0])) ** 0.5, 1.0, 0.03])
        bounds = [(value - 4, value + 4) for value in start]
        self._parameters = minimize(self._surprise, start, bounds=bounds, method="L-BFGS-B").x

    def __call__(self, inputs: Array) -> tuple[Array, Array]:
        """Return the expected scores, and their standard deviations."""
        factor, weights = self._solved(self._parameters)
        length, amplitude, _ = np.exp(self._parameters)
        to_known = amplitude**2 * np.exp(-cdist(inputs, self._inputs, "sqeuclidean") / (2 * length**2))
        explained = (cho_solve(factor, to_known.T).T * to_known).sum(1)
        return to_known @ weights, np.sqrt(np.maximum(amplitude**2 - explained, 1e-12))

    def _solved(self, parameters: Array) -> tuple[Any, Array]:
        length, amplitude, noise = np.exp(parameters)
        kernel = amplitude**2 * np.exp(-self._squares / (2 * length**2))
        factor = cho_factor(kernel + (noise**2 + 1e-8 * amplitude**2) * np.eye(len(kernel)), lower=True)
        return factor, cho_solve(factor, self._scores)

    def _surprise(self, parameters: Array) -> float:
        factor, weights = self._solved(parameters)
        return float(0.5 * self._scores @ weights + np.log(np.diag(factor[0])).sum())


class CemRl(_Around):
    """CEM-RL (Pourchot & Sigaud, ICLR 2019): a distribution of actors; half of each generation first climb a critic.

    The critic learns an episode's score from every state and action of it, as rewards come at the end only.
    """

    population, hidden, steps, rate = 10, 32, 50, 1e-3

    def __init__(self, task: SearchTask) -> None:
        super().__init__(task)
        assert task.prior is not None
        assert task.environment is not None
        self.env: Any = task.environment(task.prior.target_log_ratios, task.prior.sensitivity)()
        self.step = float(np.median(self.space.round_to / self.space.dense))

    def run(self, evaluate: Evaluate) -> None:
        """Have generations scored until no more may be."""
        with preserved_random_state():
            torch.manual_seed(int(self.rng.integers(2**31)))
            self._learn(evaluate)

    def _learn(self, evaluate: Evaluate) -> None:
        columns = self.env.observation_space.shape[0] + self.env.unwrapped.episode_steps
        actor, critic = _mlp(columns, self.hidden), _mlp(columns + 1, 64)
        parameters = nn.utils.parameters_to_vector(actor.parameters()).detach()
        parameters[-self.hidden - 1 :] = 0  # the last layer: at the mean every action is the prior's
        centre, variance = parameters, torch.full_like(parameters, 0.4 * self.step / self.hidden**0.5) ** 2
        optimizer = torch.optim.Adam(critic.parameters(), lr=self.rate)
        rows: list[torch.Tensor] = []
        scores: list[float] = []
        noise, idle = variance.clone(), 0  # added to the variance, which would vanish otherwise
        while idle < 20:
            actors = centre + variance.sqrt() * torch.randn(self.population, len(centre))
            if rows:
                targets = torch.tensor(scores)
                targets = (targets - targets.mean()) / targets.std().clamp_min(1e-6)
                for _ in range(self.steps * self.population):
                    self._fit(critic, optimizer, torch.stack(rows), targets)
                for place in range(self.population // 2):
                    actors[place] = self._climbed(actor, critic, actors[place], torch.stack(rows)[:, :, :-1])
            walks = [self._walk(actor, one) for one in actors]
            idle = idle + 1 if all(allocation in self.known for allocation, _ in walks) else 0
            found = self.scored([allocation for allocation, _ in walks], evaluate)
            rows += [row for _, row in walks]
            scores += found
            order = np.argsort(-np.array(found))[: self.population // 2]
            weights = torch.log(torch.tensor(1 + len(order))) - torch.log(torch.arange(1, len(order) + 1.0))
            weights /= weights.sum()
            elite = actors[order.copy()]
            variance = (weights[:, None] * (elite - centre) ** 2).sum(0) + noise
            centre, noise = weights @ elite, 0.9 * noise

    def _fit(
        self, critic: nn.Module, optimizer: torch.optim.Optimizer, rows: torch.Tensor, targets: torch.Tensor
    ) -> None:
        episodes, steps = torch.randint(len(rows), (64,)), torch.randint(rows.shape[1], (64,))
        loss = (critic(rows[episodes, steps])[:, 0] - targets[episodes]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def _climbed(
        self, actor: nn.Module, critic: nn.Module, parameters: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        """Return an actor's parameters after some steps up the critic."""
        nn.utils.vector_to_parameters(parameters.clone(), actor.parameters())
        optimizer = torch.optim.Adam(actor.parameters(), lr=self.rate)
        flat = states.reshape(-1, states.shape[-1])
        for _ in range(self.steps):
            some = flat[torch.randint(len(flat), (64,))]
            loss = -critic(torch.cat([some, actor(some)], 1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(actor.parameters()).detach()

    def _walk(self, actor: nn.Module, parameters: torch.Tensor) -> tuple[Allocation, torch.Tensor]:
        """Return where an actor's walk ends, and its states and actions, shape (steps, columns + 1)."""
        nn.utils.vector_to_parameters(parameters.clone(), actor.parameters())
        marks = torch.eye(self.env.unwrapped.episode_steps)
        state, _ = self.env.reset()
        rows: list[torch.Tensor] = []
        ended, info = False, {}
        while not ended:
            seen = torch.cat([torch.from_numpy(state), marks[len(rows)]])
            with torch.no_grad():
                action = actor(seen[None])[0]
            rows.append(torch.cat([seen, action]))
            state, _, ended, _, info = self.env.step(action.numpy())
        return info["allocation"], torch.stack(rows)


def _mlp(columns: int, hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(columns, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1)
    )


SEARCHERS: dict[str, Callable[[SearchTask], Strategy]] = {
    "ppo": StrategyName("ppo").spec.make,
    "ppo alone": AgentKind.PPO.alone,
    "polish": StrategyName("polish").spec.make,
    "Gaussian process": Preselected,
    "evolution": StrategyName("evolution").spec.make,
    "CEM-RL": CemRl,
}


def score_cell(detector: str, budget: str, path: Path) -> None:
    """Keep a cell's best scores in a file: of every searcher one for each seed, and of regrowth; none is made twice."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if found.keys() >= SEARCHERS.keys():
        return
    net = ap.load(model_of(detector), data=data_of(detector), imgsz=IMGSZ, device="cpu")
    env: Any = ap.make_env(net, budget=budget, images=IMAGES, seed=0, threads=1)
    problem: PruningProblem = env.unwrapped.problem
    constraint, evaluator = problem.constraint, problem.score.args[0]  # type: ignore[union-attr]
    prior = find_prior(constraint, evaluator.gains, problem.scores, SilentListener(), evaluations=EVALUATIONS)
    start, left = max(one.score for one in prior.tried), EVALUATIONS - prior.cost
    found["regrowth"] = start
    for name, make in SEARCHERS.items():
        if name in found:
            continue
        scores = []
        for seed in SEEDS:
            task = SearchTask(
                constraint=constraint,
                evaluations=left,
                seed=seed,
                prior=prior,
                environment=environment(constraint, Rule.PROJECTED),
            )
            result = search(make(task), problem.scores, constraint=constraint, evaluations=left)
            scores.append(max(result.best.score, start))
        path.write_text(json.dumps(found := {**found, name: scores}))


def table(cells: dict[str, dict[str, Any]]) -> str:
    """Return the cells in Markdown, as far as they are made."""
    lines = ["| | regrowth | " + " | ".join(SEARCHERS) + " |", "|---" * (len(SEARCHERS) + 2) + "|"]
    for name, found in cells.items():
        scores = [found.get(one) for one in SEARCHERS]
        each = ["" if one is None else f"{mean(one):+.4f} ± {stdev(one):.4f}" for one in scores]
        lines.append(f"| {name} | {found['regrowth']:+.4f} | {' | '.join(each)} |")
    return "\n".join(lines)


def main(runs: Path, words: Sequence[str]) -> None:
    """Score the cells that are missing, and print the table of those that are there."""
    runs.mkdir(parents=True, exist_ok=True)
    cells = {}
    for detector in DETECTORS:
        for budget in BUDGETS:
            path = runs / f"searchers-{detector}-{budget}.json"
            if asked(path.name, words):
                score_cell(detector, budget, path)
            if path.exists():
                cells[f"{detector} {budget}"] = json.loads(path.read_text())
    print(table(cells))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
