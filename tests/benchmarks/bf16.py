"""What scoring in bfloat16 saves, and whether it ranks candidates as float32 does. Needs ``../shared``.

Usage: ``python -m tests.benchmarks.bf16`` scores 30 random allocations of three detectors in both, in turn, in this
process with one thread, and prints a table in Markdown: CPU seconds of a candidate (medians),
Spearman correlation of the scores and their largest difference.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from scipy.stats import spearmanr

import autoprune as ap
from tests.benchmarks.accuracy import DETECTORS, data_of, model_of

BUDGETS, EACH = ("flops=50%", "flops=30%", "flops=20%"), 10
IMGSZ, IMAGES, SPREAD = 320, 60, 0.5


def main() -> None:
    """Score, and print the table."""
    torch.set_num_threads(1)
    print("| | float32, s | bfloat16, s | share of the time | Spearman | largest difference |")
    print("|---|---|---|---|---|---|")
    for detector in DETECTORS:
        net = ap.load(model_of(detector), data=data_of(detector), imgsz=IMGSZ, device="cpu")
        taken: dict[bool, list[float]] = {False: [], True: []}
        scores: dict[bool, list[float]] = {False: [], True: []}
        for budget in BUDGETS:
            problems = {
                bf16: ap.make_env(net, budget=budget, images=IMAGES, bf16=bf16, threads=1).unwrapped.problem
                for bf16 in taken
            }
            space, draws = problems[True].space, np.random.default_rng(0)
            for _ in range(EACH):
                counts = problems[True].constraint.project(draws.uniform(-SPREAD, SPREAD, size=len(space)))
                for bf16, problem in problems.items():
                    start = time.process_time()
                    scores[bf16] += problem.scores([tuple(counts.tolist())])
                    taken[bf16].append(time.process_time() - start)
        share = statistics.median(fast / slow for slow, fast in zip(taken[False], taken[True], strict=True))
        far = max(abs(one - other) for one, other in zip(scores[False], scores[True], strict=True))
        slow, fast = (f"{statistics.median(seconds):.2f}" for seconds in taken.values())
        rank = spearmanr(scores[False], scores[True])[0]
        print(f"| {detector} | {slow} | {fast} | {share:.0%} | {rank:.4f} | {far:.4f} |", flush=True)


if __name__ == "__main__":
    main()
