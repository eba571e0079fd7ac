"""What is left of the accuracy at a tight budget: searches, trainings and comparisons on three detectors.

Usage: ``python -m tests.benchmarks.accuracy RUNS [WORD…]`` runs what is missing in RUNS, one after another, and prints
one table per study in Markdown, the command above it. What is finished is not repeated, what was interrupted goes on.
With words only the runs that have one of them in their name are made: ``search``, ``yolo11n``, ``seed1``.

All of it takes a day on two cores. One thread each, so that two processes may run side by side, with different words.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

SHARED = Path(__file__).resolve().parents[3] / "shared"

DETECTORS = {
    "yolov5nu": ("bccd-yolov5nu-320", "bccd"),
    "yolov8n": ("bccd-yolov8n-320", "bccd"),
    "yolo11n": ("deeppcb-yolo11n-320", "deeppcb"),
}
"""The checkpoint and the data set of each."""


def model_of(detector: str) -> Path:
    """Return a detector's checkpoint."""
    return SHARED / "models" / f"{DETECTORS[detector][0]}.pt"


def data_of(detector: str) -> Path:
    """Return a detector's data set."""
    name = DETECTORS[detector][1]
    return SHARED / "data" / name / f"{name}.yaml"


BUDGETS = ("flops=30%", "flops=20%", "latency=50%")
THREE_LIMITS = ("params=20%", "flops=30%", "latency=50%")
"""A fifth of the parameters, 30% of the FLOPs, half of the latency, in one search."""

SEEDS = range(3)
EPOCHS = 20

ADAMW = "--train-args optimizer=AdamW"
"""What trained the dense networks, at their rates."""

RECIPES = {
    "default": "",
    "lr2": "--lr-scale 2",
    "lr0.3": "--lr-scale 0.3",
    "adamw": ADAMW,
    "adamw lr2": f"{ADAMW} --lr-scale 2",
    "adamw lr0.3": f"{ADAMW} --lr-scale 0.3",
    "adamw lr0.1": f"{ADAMW} --lr-scale 0.1",
    "teacher": "--distill TEACHER",
    "soften": "--soften",
    "40 epochs": "--epochs 40",
    "10 epochs": "--epochs 10",
    "batch 8": "--batch 8",
    "batch 4": "--batch 4",
}
"""How a pruned network may be trained, as options of ``autoprune train`` next to the defaults."""

DENSE_RECIPES = ("default", "adamw", "40 epochs")
"""Those that the dense network is trained on by, too."""


@dataclass(frozen=True)
class Run:
    """One command.

    Attributes:
        study: the table it belongs to.
        detector: a key of ``DETECTORS``.
        name: what is tried, a row of the table.
        seed: of the run.
        words: the command, without model, data, device and folder.
        result: the file that is there when it has finished.
        needs: a run whose policy this one takes.
        starts: a run whose network this one prunes further; its budget is a share of that run's dense network.
    """

    study: str
    detector: str
    name: str
    seed: int
    words: tuple[str, ...]
    result: str = "summary.json"
    needs: Run | None = None
    starts: Run | None = None

    def folder(self, runs: Path) -> Path:
        """Return where the run lies."""
        return runs / f"{self.study}-{self.detector}-{self.name.replace(' ', '')}-seed{self.seed}"

    def command(self, runs: Path) -> list[str]:
        """Return the words of the command line."""
        model = str(model_of(self.detector))
        words = [model if word == "TEACHER" else word for word in self.words]
        if self.starts is not None:
            model = str(self.starts.folder(runs) / "model.pt")
            first = json.loads((self.starts.folder(runs) / self.starts.result).read_text())
            most = SHARE * first["stages"]["dense"]["costs"]["flops"] / 1e9
            words = [f"flops={most:.4f}G" if word == "FLOPS" else word for word in words]
        if self.needs is not None:
            words += ["--policy", str(_policy(self, runs))]
        size = () if "--imgsz" in words else ("--imgsz", "320")
        return [
            *words,
            *size,
            "--model",
            model,
            "--data",
            str(data_of(self.detector)),
            "--device",
            "cpu",
            "--threads",
            "1",
            "--seed",
            str(self.seed),
            "--out",
            str(self.folder(runs)),
        ]


SHARE = 0.3
"""Of the FLOPs, where a search starts from a network that is pruned already."""


def _policy(run: Run, runs: Path) -> Path:
    """Return the policy that a run takes; for the dense network, one that keeps every channel."""
    assert run.needs is not None
    path = run.needs.folder(runs) / "policy.json"
    if not run.name.startswith("dense"):
        return path
    policy = json.loads(path.read_text())
    for unit in policy["units"]:
        unit["keep"], unit["ratio"] = unit["channels"], 1.0
    keeps_all = runs / f"{run.detector}-dense.json"
    keeps_all.write_text(json.dumps(policy))
    return keeps_all


def _searches() -> Iterator[Run]:
    for seed in SEEDS:
        for detector in DETECTORS:
            for budget in BUDGETS:
                runtime = ("--runtime", "onnxruntime") if budget.startswith("latency") else ()
                words = ("search", "--budget", budget, "--finetune-epochs", str(EPOCHS), *runtime)
                yield Run("search", detector, budget, seed, words)
    for detector in DETECTORS:
        limits = [word for budget in THREE_LIMITS for word in ("--budget", budget)]
        words = ("search", *limits, "--finetune-epochs", str(EPOCHS), "--runtime", "onnxruntime")
        yield Run("search", detector, "three limits", 0, words)


def _trainings() -> Iterator[Run]:
    """Yield the dense network trained on, and recipes for the networks that the first searches found."""
    searched = {(run.detector, run.name): run for run in _searches() if run.seed == 0}
    for seed in SEEDS:
        for detector in DETECTORS:
            needs = searched[detector, BUDGETS[0]]
            for name in DENSE_RECIPES:
                words = ("train", "--epochs", str(EPOCHS), *RECIPES[name].split())
                yield Run("train", detector, f"dense {name}".removesuffix(" default"), seed, words, needs=needs)
    for seed in SEEDS:
        for name, options in RECIPES.items():
            for detector in DETECTORS:
                for budget in BUDGETS[:2]:
                    words = ("train", "--epochs", str(EPOCHS), *options.split())
                    yield Run("recipe", detector, f"{budget} {name}", seed, words, needs=searched[detector, budget])


def _progressive() -> Iterator[Run]:
    """Yield searches in two steps, each followed by half of the epochs."""
    half = ("--finetune-epochs", str(EPOCHS // 2))
    for detector in DETECTORS:
        first = Run("progressive", detector, "flops=55%", 0, ("search", "--budget", "flops=55%", *half))
        yield first
        yield Run("progressive", detector, "then 30%", 0, ("search", "--budget", "FLOPS", *half), starts=first)


def _comparisons() -> Iterator[Run]:
    options = ("--evaluations", "100", "--seeds", "5", "--finetune-epochs", "0")
    small = (
        "--imgsz",
        "224",
        "--images",
        "32",
        "--no-references",
        "--correlated",
        "0",
        "--strategies",
        "regrowth,ppo,polish,evolution,ddpg",
    )
    for detector in DETECTORS:
        for budget in ("flops=50%", "flops=30%", "flops=20%", "latency=50%"):
            runtime = ("--runtime", "onnxruntime") if budget.startswith("latency") else ()
            words = ("compare", "--budget", budget, *options, *small, *runtime)
            yield Run("strategies", detector, budget, 0, words, result="compare.json")
    for detector in DETECTORS:
        words = ("compare", "--budget", "flops=30%", *options)
        yield Run("compare", detector, "flops=30%", 0, words, result="compare.json")
    words = ("compare", "--evaluations", "100", "--seeds", "3", "--finetune-epochs", "0", "--no-references")
    words += ("--correlated", "0", "--strategies", "regrowth,ppo,polish,evolution")
    for detector, budget in (*((detector, "flops=30%") for detector in DETECTORS), ("yolo11n", "flops=20%")):
        yield Run("confirm", detector, budget, 0, (*words, "--budget", budget), result="compare.json")


def _alternatives() -> Iterator[Run]:
    """Yield what else meets a budget, with the same fine-tune: the uniform ratio, and what needs no pruning."""
    words = ("compare", "--budget", "flops=30%", "--strategies", "uniform", "--evaluations", "1", "--correlated", "0")
    words += ("--finetune-epochs", str(EPOCHS))
    for detector in DETECTORS:
        yield Run("alternatives", detector, "all", 0, words, result="compare.json")
        plain = (*words, "--no-references", "--no-compensate")
        yield Run("alternatives", detector, "uncompensated", 0, plain, result="compare.json")


def planned() -> list[Run]:
    """Return all runs, in the order in which they are made."""
    return [*_searches(), *_trainings(), *_progressive(), *_comparisons(), *_alternatives()]


def asked(name: str, words: Sequence[str]) -> bool:
    """Return whether a name has one of the words in it; without words every name is asked for."""
    return not words or any(word in name for word in words)


def finished(run: Run, runs: Path) -> dict[str, Any] | None:
    """Return what a run found, or None where it has not finished."""
    result = run.folder(runs) / run.result
    return json.loads(result.read_text()) if result.exists() else None


def make(run: Run, runs: Path) -> None:
    """Make a run, or go on with it."""
    if finished(run, runs) is not None:
        return
    if any(before is not None and finished(before, runs) is None for before in (run.needs, run.starts)):
        return
    folder = run.folder(runs)
    words = [run.words[0], "--resume", str(folder)] if folder.exists() else run.command(runs)
    print(" ".join(["autoprune", *words]), flush=True)
    done = subprocess.run([sys.executable, "-m", "autoprune", *words], check=False, capture_output=True, text=True)
    if finished(run, runs) is None:
        print(f"It ended with {done.returncode}: {done.stderr[-2000:]}", file=sys.stderr)


def _accuracies(found: dict[str, Any]) -> list[str]:
    """Return mAP50-95 dense, pruned and fine-tuned, and the shares of parameters and FLOPs that are left."""
    stages = found["stages"]
    metrics = [f"{stages[stage]['metrics']['mAP50-95']:.3f}" for stage in ("dense", "pruned", "finetuned")]
    shares = [1 / stages["finetuned"]["speed_up"].get(cost, float("nan")) for cost in ("params", "flops")]
    return [*metrics, *(f"{share:.0%}" for share in shares)]


def tables(runs: Path) -> Iterator[str]:
    """Yield the tables of what has finished."""
    rows: dict[str, Callable[[dict[str, Any]], Sequence[str]]] = {
        "search": _accuracies,
        "train": _accuracies,
        "recipe": _accuracies,
        "progressive": _accuracies,
        "strategies": _scores,
        "confirm": _scores,
        "compare": _scores,
        "alternatives": _fine_tuned,
    }
    for study, row in rows.items():
        made = [(run, found) for run in planned() if run.study == study and (found := finished(run, runs)) is not None]
        if made:
            yield f"\n### {study}\n\n`autoprune {' '.join(made[0][0].words)} …`\n"
            yield from (
                f"| {run.detector} | {run.name} | {run.seed} | {' | '.join(row(found))} |" for run, found in made
            )
        if row is _accuracies:
            yield from _means(made)
        if made and study == "strategies":
            ranks = mean_ranks([found for _, found in made])
            yield "\nMean ranks: " + ", ".join(f"{name} {rank:.2f}" for name, rank in ranks.items())


def _means(made: Sequence[tuple[Run, dict[str, Any]]]) -> Iterator[str]:
    """Yield mAP50-95 after training of every row that has several seeds: the mean, the standard deviation, each."""
    rows: dict[tuple[str, str], list[float]] = {}
    for run, found in made:
        rows.setdefault((run.detector, run.name), []).append(found["stages"]["finetuned"]["metrics"]["mAP50-95"])
    several = {key: values for key, values in rows.items() if len(values) > 1}
    if several:
        yield "\nOver the seeds:\n"
    for (detector, name), values in several.items():
        each = ", ".join(f"{value:.3f}" for value in values)
        yield f"| {detector} | {name} | {mean(values):.3f} ± {stdev(values):.3f} | {each} |"


def mean_ranks(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean rank of every strategy over comparisons by the mean of its scores, the best first."""
    ranks: dict[str, list[int]] = {}
    for one in found:
        means = {row["name"]: -sum(row["scores"]) / len(row["scores"]) for row in one["compared"]["strategies"]}
        for place, name in enumerate(sorted(means, key=means.__getitem__), start=1):
            ranks.setdefault(name, []).append(place)
    means = {name: sum(places) / len(places) for name, places in ranks.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def _scores(found: dict[str, Any]) -> list[str]:
    return [
        f"{row['name']} {sum(row['scores']) / len(row['scores']):+.4f}"
        for row in sorted(found["compared"]["strategies"], key=lambda row: -sum(row["scores"]) / len(row["scores"]))
    ]


def _fine_tuned(found: dict[str, Any]) -> list[str]:
    rows = [row for kind in ("strategies", "references") for row in found["compared"].get(kind, ())]
    return [f"{row['name']} {row['after'][0]['metrics']['mAP50-95']:.3f}" for row in rows]


def main(runs: Path, words: Sequence[str]) -> None:
    """Make what is missing and print what there is."""
    runs.mkdir(parents=True, exist_ok=True)
    for run in planned():
        if asked(run.folder(runs).name, words):
            make(run, runs)
    print("\n".join(tables(runs)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
