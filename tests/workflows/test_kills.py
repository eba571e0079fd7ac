"""Commands killed in every phase: resumed, each ends with what the uninterrupted one found, to the last bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.cli.main import main
from autoprune.models import open_adapter
from tests.helpers.detectors import write_data
from tests.helpers.kills import run
from tests.helpers.packages import need
from tests.helpers.world import arguments, quick_commands

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

KILL, TERM = signal.SIGKILL, signal.SIGTERM
TRAINED = ("--finetune-epochs", "2")
SEARCH = ("--episodes", "6", "--finalists", "2", "--no-tensorboard", *TRAINED)

Words = Callable[[Path, Path], list[str]]
"""A command's words, from the folder of its world and its run folder."""


def _sparsify(world: Path, out: Path) -> list[str]:
    named = ["--model", str(world / "best.pt"), "--data", str(world / "data" / "data.yaml"), "--out", str(out)]
    return [
        "sparsify",
        *named,
        "--imgsz",
        "64",
        "--epochs",
        "3",
        "--batch",
        "3",
        "--sparsity",
        "50",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]


def _quantize(world: Path, out: Path) -> list[str]:
    named = ["--model", str(world / "best.pt"), "--data", str(world / "more" / "data.yaml"), "--out", str(out)]
    return ["quantize", *named, "--threads", "1", "--device", "cpu", "--qat-epochs", "2"]


COMMANDS: dict[str, Words] = {
    "search": lambda world, out: arguments("search", world, out, "--budget", "flops=60%", *SEARCH),
    "latency": lambda world, out: arguments(
        "search", world, out, "--budget", "latency=80%", "--budget", "params=80%", "--distill", *SEARCH
    ),
    "netadapt": lambda world, out: arguments(
        "netadapt",
        world,
        out,
        "--budget",
        "flops=85%,70%",
        "--initial-step",
        "0.1",
        "--short-term-steps",
        "1",
        *TRAINED,
    ),
    "compare": lambda world, out: arguments(
        "compare",
        world,
        out,
        "--budget",
        "flops=60%",
        "--strategies",
        "random,uniform+ppo",
        "--evaluations",
        "30",
        "--seeds",
        "1",
        "--correlated",
        "3",
        *TRAINED,
    ),
    "sparsify": _sparsify,
    "slim": lambda world, out: arguments(
        "slim",
        world,
        out,
        "--budget",
        "channels=50%",
        "--sparsity-epochs",
        "2",
        "--sparsity",
        "0.1",
        "--distill",
        *TRAINED,
    ),
    "quantize": _quantize,
}


@dataclass(frozen=True)
class Moment:
    """When a command is killed, and how: the n-th time that a phase of `tests.helpers.kills` is reached."""

    phase: str
    count: int = 1
    signal: signal.Signals = KILL

    def __str__(self) -> str:
        return f"{self.phase} {self.count} {self.signal.name}"


MOMENTS: dict[str, tuple[Moment, ...]] = {
    "search": (
        Moment("record validation"),
        Moment("record latency", 2, TERM),
        Moment("record evaluation dense"),
        Moment("record scored in"),
        Moment("record gains"),
        Moment("record evaluation", 5),
        Moment("record accuracy", 2, TERM),
        Moment("record created"),
        Moment("file policy.json"),
        Moment("file pruned.pt"),
        Moment("batch of finetune, epoch 1", 2),
        Moment("end of finetune, epoch 1"),
        Moment("batch of finetune, epoch 2", 3),
        Moment("file last.pt", 2),
        Moment("file state.pt", 2),
        Moment("file model.pt", 1, TERM),
        Moment("record validation", 3),
        Moment("file summary.json"),
    ),
    "latency": (
        Moment("record latency", 3),
        Moment("record latency", 40, TERM),
        Moment("record latency", 60),
        Moment("record evaluation", 6),
        Moment("record accuracy"),
        Moment("batch of finetune, epoch 2", 2),
        Moment("record validation", 3),
    ),
    "netadapt": (
        Moment("record netadapt 1 dense"),
        Moment("record netadapt 1", 2),
        Moment("short fine-tune", 5, TERM),
        Moment("file 001.pt"),
        Moment("file 001.json"),
        Moment("record iteration", 2),
        Moment("record netadapt 3", 2),
        Moment("batch of finetune, epoch 2", 2),
        Moment("file state.pt", 3),
        Moment("batch of finetune, epoch 1", 5),
    ),
    "compare": (
        Moment("record evaluation", 20),
        Moment("record outcome"),
        Moment("record evaluation", 24, TERM),
        Moment("batch of finetune, epoch 2", 2),
        Moment("record tuned"),
        Moment("batch of finetune, epoch 2", 8),
        Moment("record reference"),
        Moment("file compare.json"),
    ),
    "sparsify": (
        Moment("batch of sparsity, epoch 1", 2),
        Moment("file sparsity.json", 2),
        Moment("file last.pt", 2),
        Moment("file state.pt", 3),
        Moment("batch of sparsity, epoch 3", 2, TERM),
        Moment("file sparse.pt"),
        Moment("record validation", 2),
    ),
    "slim": (
        Moment("batch of sparsity, epoch 2", 2),
        Moment("file sparse.pt"),
        Moment("record evaluation"),
        Moment("batch of finetune, epoch 2", 1, TERM),
        Moment("end of finetune, epoch 2"),
        Moment("file channels.png"),
    ),
    "quantize": (
        Moment("batch of qat, epoch 2"),
        Moment("end of qat, epoch 2", 1, TERM),
        Moment("file qat.pt"),
        Moment("int8 file", 3),
        Moment("record quantize", 4),
        Moment("record latency"),
        Moment("file model.int8.onnx"),
        Moment("file quantize.json"),
    ),
}

ESSENTIAL = ("record", "batch", "short", "int8")
"""Phases of these kinds must all be hit, in whatever epoch or iteration."""

_PROVENANCE = {"created", "command"}
"""When a policy was written, and by which command line: a resumed process writes its own."""

_DATE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")

_MEASURED = {"latencies", "speed_up"}
"""What ``quantize`` measures on the real machine; the others measure on the device in closed form."""


@dataclass(frozen=True)
class Whole:
    """A command that was not interrupted."""

    out: Path
    code: int
    phases: frozenset[str]


@pytest.fixture(scope="module")
def world(tiny: Path) -> Path:
    write_data(tiny / "more", images=17)
    return tiny


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """Return an uninterrupted run of a command, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def made(name: str) -> Whole:
        if name == "quantize":
            need("onnxruntime")
        code, phases = run(COMMANDS[name](world, folder / name), folder / f"{name}-latency")
        return Whole(folder / name, code, frozenset(phases))

    return made


@pytest.mark.parametrize("name", COMMANDS)
def test_every_phase_is_hit(whole: Callable[[str], Whole], name: str) -> None:
    def kind(phase: str) -> str:
        return re.sub(r"\d+", "#", phase)

    there = {kind(phase) for phase in whole(name).phases if phase.startswith(ESSENTIAL)} - {"record threads"}
    shared = {kind(one.phase) for one in MOMENTS["search"]} if name != "search" else set()
    assert there - shared <= {kind(one.phase) for one in MOMENTS[name]}
    assert sum(map(len, MOMENTS.values())) >= 20


@pytest.mark.parametrize(
    ("name", "moment"), [(name, one) for name, moments in MOMENTS.items() for one in moments], ids=str
)
def test_a_killed_command_ends_as_one_that_was_not(
    whole: Callable[[str], Whole], world: Path, tmp_path: Path, root: Path, name: str, moment: Moment
) -> None:
    expected, out, latency = whole(name), tmp_path / "run", tmp_path / "latency"
    words = COMMANDS[name](world, out)
    order = {
        "words": words,
        "cache": str(latency),
        "journal": str(out / "journal.jsonl"),
        "phase": moment.phase,
        "count": moment.count,
        "signal": int(moment.signal),
    }
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.helpers.kills", json.dumps(order)],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert killed.returncode == (-KILL if moment.signal == KILL else 143), killed.stderr
    if moment.signal == TERM:
        assert killed.stderr.strip().endswith(f"go on with: autoprune {words[0]} --resume {out}")
        assert "Traceback" not in killed.stderr
    shown = [word for word in words if word == "--no-report"]
    with quick_commands(latency):
        assert main([words[0], "--resume", str(out), *shown]) == expected.code
    assert differing(found(out), found(expected.out)) == {}
    assert_same_networks(out, expected.out)
    left = {path.relative_to(out) for path in files(out)} ^ {
        path.relative_to(expected.out) for path in files(expected.out)
    }
    assert left == set()


def files(out: Path) -> Iterator[Path]:
    """Yield what a run leaves, but for what trackers read: that is named by the time and the process."""
    for path in out.rglob("*"):
        if path.is_file() and "tensorboard" not in path.parts and path.name != "tracking.json":
            yield path


def names(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in files(out)}


def found(out: Path) -> dict[str, Any]:
    """Return all figures and words in a run's JSON files by their place, but for what tells a process and durations."""
    left_out = _PROVENANCE | (_MEASURED if (out / "quantize.json").exists() else set())

    def told(value: Any, place: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, (dict, list)):
            yield place, value
            return
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in left_out and not str(key).startswith("seconds"):
                yield from told(one, f"{place} {key}")

    named = {str(path.relative_to(out)): path for path in files(out) if path.suffix == ".json"}
    return dict(pair for name, path in named.items() for pair in told(json.loads(path.read_text()), name))


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (one.get(key), other.get(key)) for key in one | other if one.get(key) != other.get(key)}


def assert_same_networks(one: Path, other: Path) -> None:
    """Compare every tensor of every checkpoint but those that trainings go on from, and int8 files byte for byte.

    The files say when they were written, which is left out.
    """
    checkpoints = [path.relative_to(other) for path in files(other) if path.suffix == ".pt"]
    results = [path for path in checkpoints if path.parent.name != "weights"]
    assert results
    for path in results:
        mine, theirs = (open_adapter(folder / path).module.state_dict() for folder in (one, other))
        assert [name for name, tensor in theirs.items() if not torch.equal(mine[name], tensor)] == [], path
    for file in other.glob("*.onnx"):
        mine, theirs = (_DATE.sub(b"", path.read_bytes()) for path in (one / file.name, file))
        assert mine == theirs
