"""What wider rollouts cost PPO in score: searches that differ in nothing else, by the best score of three seeds.

Usage: ``python -m tests.benchmarks.rollouts RUNS [WORD…]`` runs what is missing in RUNS, one after another, and prints
the table in Markdown. What is finished is not repeated, what was interrupted goes on. With words only the runs that
have one of them in their name are made: ``100by``, ``yolov8n``.

Each search takes 49 evaluations of regrowth before PPO's own 100 or 400. One thread each.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.accuracy import Run, asked, finished, make

PRIOR = 49
"""Evaluations that regrowth takes."""

WIDTHS = {100: (5, 16, 32, 64), 400: (5, 16, 32, 64)}
"""How wide rollouts are, by the candidates that PPO may try."""

STUDIED = ("yolov8n", "yolov5nu")
OPTIONS = "--budget flops=30% --strategies ppo --seeds 3 --imgsz 224 --images 32 --finetune-epochs 0 --no-references"


def planned() -> Iterator[tuple[Run, int, int]]:
    """Yield the runs with their candidates and width, the short ones first."""
    for candidates, widths in WIDTHS.items():
        for detector in STUDIED:
            for width in widths:
                words = ("compare", *OPTIONS.split(), "--correlated", "0", "--evaluations", str(PRIOR + candidates))
                words += ("--rollout", str(width))
                yield Run("rollouts", detector, f"{candidates} by {width}", 0, words, "compare.json"), candidates, width


def table(runs: Path) -> Iterator[str]:
    """Yield the lines of the table of what has finished."""
    yield "| | candidates | rollout | updates | best score, mean ± standard deviation | each seed |"
    yield "|---|---|---|---|---|---|"
    for run, candidates, width in planned():
        if (found := finished(run, runs)) is not None:
            (row,) = found["compared"]["strategies"]
            scores = row["scores"]
            best = f"{statistics.mean(scores):.4f} ± {statistics.stdev(scores):.4f}"
            each = ", ".join(f"{score:.4f}" for score in scores)
            yield f"| {run.detector} | {candidates} | {width} | {(candidates - 1) // width} | {best} | {each} |"


def main(runs: Path, words: Sequence[str]) -> None:
    """Make what is missing and print what there is."""
    runs.mkdir(parents=True, exist_ok=True)
    for run, _, _ in planned():
        if asked(run.folder(runs).name, words):
            make(run, runs)
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
