"""How much faster several workers are: a stand-in that sleeps, and real candidates. Needs ``pip install ray``.

Usage: ``python -m tests.benchmarks.workers [asleep] [memory] [real]``, on an idle machine.

``asleep``: a candidate that takes half a second of sleep, by 1 to 8 workers, eight for each: what the handing out
itself costs, whatever the number of cores. ``memory``: what this process holds while two workers answer ten thousand
candidates that take no time, with and without a journal. ``real``: a yolov8n at 320 px (``../shared``), by one and two
workers of one thread each, next to this process with one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

import autoprune as ap
from autoprune.evaluation.runners import RunnerOptions, open_runner
from autoprune.journal import Journal
from tests.benchmarks.accuracy import DETECTORS, SHARED

SECONDS, EACH, ROUNDS = 0.5, 8, 3
COUNTS = (1, 2, 8)
"""More need memory: each worker has torch in it, some 0.3 GB."""
CANDIDATES = 24
MANY, TOGETHER, UNITS = 10_000, 100, 60


def slept(item: int) -> int:
    """Stand in for a candidate."""
    time.sleep(SECONDS)
    return item


def measured(workers: int, function: Callable[[Any], Any], items: Sequence[Any]) -> list[float]:
    """Return the seconds of a batch, several times, once the workers have what they need."""
    with open_runner(RunnerOptions(str(workers))) as runner:
        list(runner.map(function, items[:workers]))
        return [timed(lambda: list(runner.map(function, items))) for _ in range(ROUNDS)]


def timed(act: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def asleep() -> None:
    """Print the share of linear speed-up that sleeping candidates reach, and what handing out one costs."""
    print(f"| workers | candidates of {SECONDS} s | seconds (median of {ROUNDS}) | × linear | overhead per candidate |")
    print("|---|---|---|---|---|")
    for workers in COUNTS:
        items = range(EACH * workers)
        seconds = statistics.median(measured(workers, slept, items))
        overhead = (seconds - EACH * SECONDS) / len(items) * 1e3
        print(f"| {workers} | {len(items)} | {seconds:.2f} | {EACH * SECONDS / seconds:.2f} | {overhead:.1f} ms |")


def memory() -> None:
    """Print the memory of this process over many candidates, of the runner alone and with a journal."""
    print("| candidates | memory of this process | with a journal |")
    print("|---|---|---|")
    with TemporaryDirectory() as folder, Journal.create(Path(folder) / "journal.jsonl", {}) as journal:
        alone, kept = held(None), held(journal)
    for done, megabytes in alone.items():
        print(f"| {done} | {megabytes:.1f} MB | {kept[done]:.1f} MB |")


def held(journal: Journal | None) -> dict[int, float]:
    """Return the megabytes of this process after so many candidates."""
    process, found = psutil.Process(), {}
    with open_runner(RunnerOptions("2")) as runner:
        for first in range(0, MANY, TOGETHER):
            keys = [[place, *range(UNITS)] for place in range(first, first + TOGETHER)]
            answers = iter(runner.map(at_once, keys))
            for key in keys:
                if journal is None:
                    next(answers)
                else:
                    journal.once("evaluation", key, partial(next, answers))
            done = first + TOGETHER
            if done == TOGETHER or done % (MANY // 10) == 0:
                found[done] = process.memory_info().rss / 1e6
    return found


def at_once(item: Sequence[int]) -> dict[str, float]:
    """Stand in for a candidate that takes no time."""
    return {"score": -1.0 / (1 + item[0]), "seconds": 0.0}


def real() -> None:
    """Print how much faster two workers score real candidates than one."""
    checkpoint, data = DETECTORS["yolov8n"]
    net = ap.load(
        SHARED / "models" / f"{checkpoint}.pt", data=SHARED / "data" / data / f"{data}.yaml", imgsz=320, device="cpu"
    )
    problem = ap.make_env(net, budget="flops=30%", seed=0, threads=1).unwrapped.problem
    score, draw = problem.score.args[0]._scored, np.random.default_rng(0)
    project, units = problem.constraint.project, len(problem.space)
    items = [tuple(project(draw.normal(0, 0.4, units)).tolist()) for _ in range(CANDIDATES)]
    here = [timed(lambda: [score(item) for item in items]) for _ in range(ROUNDS)]
    one, two = (measured(workers, score, items) for workers in (1, 2))
    print(f"{CANDIDATES} candidates of a yolov8n at 320 px, one thread each, seconds (median of {ROUNDS}):")
    print(f"this process {statistics.median(here):.1f}, one worker {statistics.median(one):.1f}, ", end="")
    print(f"two {statistics.median(two):.1f}: {statistics.median(one) / statistics.median(two):.2f} times as fast")
    print(f"memory of this process: {psutil.Process().memory_info().rss / 1e6:.0f} MB")


if __name__ == "__main__":
    for word in sys.argv[1:] or ["asleep", "memory", "real"]:
        {"asleep": asleep, "memory": memory, "real": real}[word]()
