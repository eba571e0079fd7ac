"""How much faster several workers are: a stand-in that sleeps, and real candidates. Needs ``pip install ray``.

Usage: ``python -m tests.benchmarks.workers [asleep] [memory] [real] [model]``, on an idle machine.

``asleep``: a candidate that sleeps half a second or two, by 1 to 64 workers, eight for each: what the handing out
itself costs, whatever the number of cores. Its workers are spared torch, of which 64 would need 20 GB. ``memory``: what
this process holds while two workers answer ten thousand candidates that take no time, with and without a journal.
``real``: a yolov8n at 320 px (``../shared``), by one and two workers of one thread each, next to this process with one
thread. ``model``: what a candidate of a yolov8m at 640 px takes of a processor and of the network, and what a search of
400 would take on GPUs if they did what is assumed.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cloudpickle
import numpy as np
import psutil
import torch

import autoprune as ap
from autoprune.choices import Rule
from autoprune.evaluation.runners import RunnerOptions, open_runner
from autoprune.journal import Journal
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.strategies._base import SearchTask, search
from autoprune.strategies.registry import StrategyName
from autoprune.workflows.strategies import environment
from tests.benchmarks.accuracy import data_of, model_of

SECONDS, EACH, ROUNDS = (0.5, 2.0), 8, 3
COUNTS = (1, 2, 8, 64)
STARTING = 600
"""Seconds that a worker may take to start: 64 of them do at once, here on one core."""
CANDIDATES = 24
MANY, TOGETHER, UNITS = 10_000, 100, 60
ROLLOUT, IMAGES, GFLOPS, OVERHEAD = 5, 60, 40, 0.003
"""Candidates of PPO's rollout; of each its images, what one takes at flops=50%, and seconds to hand it out."""
GPU_GFLOPS = 10_000
"""Assumed: what a GPU computes in a second, fp32."""


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
    print(f"| workers | each candidate sleeps | candidates | median of {ROUNDS} | × linear | overhead per candidate |")
    print("|---|---|---|---|---|---|")
    with workers_without_torch():
        for workers in COUNTS:
            for seconds, took in zip(SECONDS, slept(workers), strict=True):
                number, ideal = EACH * workers, EACH * seconds
                overhead = (took - ideal) / number * 1e3
                print(f"| {workers} | {seconds} s | {number} | {took:.2f} s | {ideal / took:.2f} | {overhead:.1f} ms |")


def slept(workers: int) -> list[float]:
    """Return the seconds that workers take for a batch of candidates that sleep, per time of sleep."""
    with open_runner(RunnerOptions(str(workers))) as runner:
        list(runner.map(time.sleep, [SECONDS[0]] * workers))
        batches = [[seconds] * EACH * workers for seconds in SECONDS]
        return [
            statistics.median(timed(lambda items=items: list(runner.map(time.sleep, items))) for _ in range(ROUNDS))
            for items in batches
        ]


@contextmanager
def workers_without_torch() -> Iterator[None]:
    """Let workers that start meanwhile find, in place of torch, a module that takes their number of threads."""
    before = dict(os.environ)
    with TemporaryDirectory() as folder:
        (Path(folder) / "torch.py").write_text("set_num_threads = id\n")
        path = os.pathsep.join(filter(None, (folder, before.get("PYTHONPATH"))))
        os.environ |= {"PYTHONPATH": path, "RAY_worker_register_timeout_seconds": str(STARTING)}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= before


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
    net = ap.load(model_of("yolov8n"), data=data_of("yolov8n"), imgsz=320, device="cpu")
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


def model() -> None:
    """Print the measured parts of a yolov8m's candidate (in CPU seconds, one thread), and the model for GPUs."""
    torch.set_num_threads(1)
    data = data_of("yolov8n")
    with TemporaryDirectory() as folder:
        adapter = UltralyticsAdapter.untrained("yolov8m.yaml", data=data, image_size=640)
        adapter.save(adapter.module, Path(folder) / "yolov8m.pt")
        net = ap.load(Path(folder) / "yolov8m.pt", data=data, imgsz=640, device="cpu")
        problem = ap.make_env(net, budget="flops=50%", seed=0, threads=1, images=2, bf16=False).unwrapped.problem
    constraint, evaluator = problem.constraint, problem.score.args[0]
    candidate = constraint.allocation(np.random.default_rng(0).normal(0, 0.4, len(constraint.space)))
    module, made = cpu_seconds(lambda: evaluator.materialise(candidate))
    _, scored = cpu_seconds(lambda: evaluator._sums(module))
    task = SearchTask(
        constraint=constraint, evaluations=25, seed=0, environment=environment(constraint, Rule.PROJECTED)
    )
    agent = StrategyName("ppo").spec.make(task)
    _, own = cpu_seconds(lambda: search(agent, lambda tried: [0.0] * len(tried), constraint=constraint, evaluations=25))
    own *= ROLLOUT / 25
    held = ("adapter", "_moments", "_batches")
    sent = {name: len(cloudpickle.dumps(getattr(evaluator, name))) / 1e6 for name in held}
    print(f"slicing and compensation {made:.2f} s, one image {scored / 2:.2f} s, PPO {own:.2f} s per rollout")
    print(f"sent once: {sent['adapter']:.0f} + {sent['_moments']:.0f} MB, {sent['_batches'] / 2:.1f} MB per image")
    for gpus in (1, 4, 16):
        minutes = {width: modelled(gpus, made, own, width) / 60 for width in (ROLLOUT, 16)}
        print(f"{gpus} GPUs:", ", ".join(f"{one:.1f} min in rollouts of {width}" for width, one in minutes.items()))


def modelled(gpus: int, made: float, own: float, width: int) -> float:
    """Return the seconds of 400 candidates in rollouts of so many, by the model."""
    candidate = made + IMAGES * GFLOPS / GPU_GFLOPS
    return 400 / width * (math.ceil(width / gpus) * candidate + width * OVERHEAD + own)


def cpu_seconds(act: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call gives, and the processor's seconds that it takes."""
    start = time.process_time()
    found = act()
    return found, time.process_time() - start


if __name__ == "__main__":
    for word in sys.argv[1:] or ["asleep", "memory", "real", "model"]:
        {"asleep": asleep, "memory": memory, "real": real, "model": model}[word]()
