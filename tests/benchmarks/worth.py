"""Does a better score survive the fine-tune? Allocations from uniform to the best found, each trained three times.

Usage: ``python -m tests.benchmarks.worth RUNS [DETECTOR…]`` trains what is missing in RUNS and prints one table per
detector, with the Spearman correlation of score and fine-tuned accuracy and its bootstrap interval. It resumes.

The allocations lie on the line between the logarithms of two allocations' keep ratios, projected onto the budget. All
are pruned, compensated and trained alike, at 224 px, so that 24 trainings take about an hour on one core.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import autoprune as ap
from tests.benchmarks.accuracy import DETECTORS, data_of, model_of

BUDGET, IMGSZ, IMAGES, EPOCHS = "flops=30%", 224, 32, 20
ALLOCATIONS, SEEDS = 8, 3
RESAMPLES = 10_000


def study(detector: str, runs: Path) -> list[dict[str, Any]]:
    """Return one row per allocation: its score, and accuracy before and after training, a value per seed."""
    net = ap.load(model_of(detector), data=data_of(detector), imgsz=IMGSZ, device="cpu")
    folder = runs / f"worth-{detector}"
    plan = folder / "plan.json"
    if not plan.exists():
        best = folder / "search"
        ap.search(net, budget=BUDGET, images=IMAGES, seed=0, finetune_epochs=0, out=best)
        plan.write_text(json.dumps(planned(net, ap.Policy.load(best / "policy.json"))))
    rows: list[dict[str, Any]] = json.loads(plan.read_text())
    for place, row in enumerate(rows):
        trainings = [folder / f"{place}-{seed}.json" for seed in range(SEEDS)]
        if not all(path.exists() for path in trainings):
            small = net.policy(row["keep"]).apply(net)
            before = small.validate()["mAP50-95"]
            for seed, path in enumerate(trainings):
                if not path.exists():
                    tuned = ap.finetune(small, epochs=EPOCHS, seed=seed, out=path.with_suffix(""))
                    path.write_text(json.dumps({"before": before, "after": tuned.validate()["mAP50-95"]}))
        found = [json.loads(path.read_text()) for path in trainings]
        row |= {"before": found[0]["before"], "after": [one["after"] for one in found]}
    return rows


def planned(net: ap.Network, best: ap.Policy) -> list[dict[str, Any]]:
    """Return the allocations from uniform to the best, with their scores."""
    problem = ap.make_env(net, budget=BUDGET, images=IMAGES, seed=0).unwrapped.problem
    space, project = problem.space, problem.constraint.project
    uniform = space.ratios(project(np.zeros(len(space))))
    ends = np.log(uniform), np.log(np.array([unit.ratio for unit in best.units]))
    shares = np.linspace(0, 1, ALLOCATIONS)
    counts = [tuple(project((1 - share) * ends[0] + share * ends[1]).tolist()) for share in shares]
    return [
        {"share": float(share), "keep": keep, "score": score}
        for share, keep, score in zip(shares, counts, problem.scores(counts), strict=True)
    ]


def correlation(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Return Spearman of score and mean accuracy, and the bounds of its 95% bootstrap interval over the allocations."""
    scores = np.array([row["score"] for row in rows])
    accuracies = np.array([np.mean(row["after"]) for row in rows])
    draws = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    resampled = [spearmanr(scores[draw], accuracies[draw])[0] for draw in draws if len(set(draw.tolist())) > 2]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return float(spearmanr(scores, accuracies)[0]), float(low), float(high)


def main(runs: Path, detectors: Sequence[str]) -> None:
    """Train what is missing and print the tables."""
    for detector in detectors or DETECTORS:
        rows = study(detector, runs)
        print(f"\n{detector}, {BUDGET}, {IMGSZ} px, {EPOCHS} epochs, {SEEDS} seeds\n")
        print("| share of the best | score | before | after, mean ± standard deviation |\n|---|---|---|---|")
        for row in rows:
            mean, spread = np.mean(row["after"]), np.std(row["after"], ddof=1)
            print(f"| {row['share']:.2f} | {row['score']:+.4f} | {row['before']:.3f} | {mean:.4f} ± {spread:.4f} |")
        middle, low, high = correlation(rows)
        print(f"\nSpearman of score and accuracy after training {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
