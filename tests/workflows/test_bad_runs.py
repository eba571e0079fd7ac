"""Bad input that only other files show: policies, curves, runs; environments; places to write to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.cli.main import main
from autoprune.journal import Journal
from tests.helpers.refusals import refuse, words
from tests.helpers.world import arguments

Capsys = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("folder")


# -- policies and curves ---------------------------------------------------------------------------

POLICIES: list[tuple[str, str]] = [
    ("nowhere.json", "cannot be read"),
    ("folder", "Is a directory"),
    ("fifo", "It is no regular file"),
    ("/dev/null", "It is no regular file"),
    ("empty.json", "not valid JSON at line 1"),
    ("text.json", "not valid JSON at line 1"),
    ("noise.json", "not a text in UTF-8"),
    ("latin.json", "not a text in UTF-8"),
    ("deep.json", "nested too deeply"),
    ("nan.json", "NaN is not a number"),
    ("twice.json", "is there twice"),
    ("list.json", "must be an object"),
    ("null.json", "must be an object"),
    ("version.json", "99"),
]


@pytest.mark.parametrize(("name", "said"), POLICIES)
def test_policies(name: str, said: str, zoo: Path, tiny: Path, folder: Path, capsys: Capsys) -> None:
    argv = ["apply", "--policy", str(zoo / name), "--model", str(tiny / "best.pt"), "--threads", "1", "--out", "run"]
    refuse(argv, [said], capsys, folder=folder)


@pytest.mark.parametrize(
    ("name", "said"), [(name, said if "UTF-8" not in said else "UTF-8") for name, said in POLICIES]
)
def test_curves(name: str, said: str, zoo: Path, tiny: Path, folder: Path, capsys: Capsys) -> None:
    argv = words("search", tiny, "--strategy", "knapsack", "--sensitivity", str(zoo / name))
    refuse(argv, [said], capsys, folder=folder)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny: Path, quick: None) -> Path:
    """A finished search with its policy, and the curves of the same network."""
    path = tmp_path_factory.mktemp("searched")
    options = ("--budget", "flops=60%", "--strategy", "random", "--episodes", "2", "--finalists", "1")
    assert main(arguments("search", tiny, path / "run", *options)) == 0
    return path / "run"


def edited(policy: Path, edit: Callable[[Any], object]) -> str:
    """Write a policy that was edited; return its name."""
    content = json.loads(policy.read_text())
    edit(content)
    Path("p.json").write_text(json.dumps(content))
    return "p.json"


EDITS: list[tuple[str, Callable[[Any], object], str]] = [
    ("other channels", lambda policy: policy["units"][0].update(channels=12), ""),
    ("keep too many", lambda policy: policy["units"][0].update(keep=10**6), ""),
    ("keep none", lambda policy: policy["units"][0].update(keep=0), ""),
    ("keep a text", lambda policy: policy["units"][0].update(keep="8"), "keep must be a whole number"),
    ("twice", lambda policy: policy["units"].append(policy["units"][0]), "twice"),
    ("criterion", lambda policy: policy.update(criterion="os.system"), "criterion"),
    ("round_to", lambda policy: policy.update(round_to=0), "round_to must be at least 1"),
    ("layers", lambda policy: policy["model"]["layers"].popitem(), "fingerprint does not belong to layers"),
    ("unknown entry", lambda policy: policy.update(more=1), "unknown entry 'more'"),
    ("no score", lambda policy: policy.pop("score"), "lacks the entry 'score'"),
    ("infinite", lambda policy: policy.update(score=10**400), "score must be a finite number"),
]


OTHERS: list[tuple[str, Callable[[Any], object], str]] = [
    ("no units", lambda policy: policy["units"].clear(), "unit"),
    ("a unit is missing", lambda policy: policy["units"].pop(), "unit"),
    ("another name", lambda policy: policy["units"][0].update(name="model.99.conv"), "model.99.conv"),
]
"""Policies of another network."""


@pytest.mark.parametrize(("name", "edit", "said"), EDITS + OTHERS)
def test_policies_that_were_edited(
    name: str, edit: Callable[[Any], object], said: str, searched: Path, tiny: Path, folder: Path, capsys: Capsys
) -> None:
    policy = edited(searched / "policy.json", edit)
    argv = ["apply", "--policy", policy, "--model", str(tiny / "best.pt"), "--threads", "1", "--out", "run"]
    refuse(argv, [said], capsys, folder=folder)


# -- runs ------------------------------------------------------------------------------------------


def of_kind(kind: str, value: Any) -> Callable[[Path], object]:
    """Return what appends a record with a right checksum to the journal of a run."""

    def change(run: Path) -> None:
        with Journal.open(run / "journal.jsonl") as journal:
            key = journal.records(kind)[0].key if journal.records(kind) else ""
            journal.append(kind, key, value)

    return change


def rewritten(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Return what rewrites a file of a run."""
    return lambda run: (run / name).write_bytes(edit((run / name).read_bytes()))


RUNS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no config", lambda run: (run / "config.yaml").unlink(), "is not a run that can be resumed"),
    ("no journal", lambda run: (run / "journal.jsonl").unlink(), "it has no journal.jsonl"),
    ("empty config", rewritten("config.yaml", lambda _: b""), "must map names to values"),
    ("changed config", rewritten("config.yaml", lambda old: old.replace(b"seed: 0", b"seed: 1")), "was changed since"),
    ("wrong config", rewritten("config.yaml", lambda old: old + b"more: 1\n"), "more is not an option"),
    ("endless config", rewritten("config.yaml", lambda old: b"a: &a [*a]\n" + old), "refers to an anchor"),
    ("of another command", rewritten("config.yaml", lambda old: old + b"epochs: 3\n"), "epochs is not an option"),
    ("empty journal", rewritten("journal.jsonl", lambda _: b""), "does not begin with a journal's header"),
    ("noise", rewritten("journal.jsonl", lambda _: bytes(range(256))), "is broken at line 1"),
    ("deep", rewritten("journal.jsonl", lambda old: b"[" * 100_000 + b"\n" + old), "is broken at line 1"),
    ("flipped", rewritten("journal.jsonl", lambda old: old.replace(b"score", b"scare", 1)), "is broken at line"),
    (
        "a score that is a text",
        of_kind("evaluation", {"score": "high", "seconds": 1.0}),
        "('evaluation') does not hold",
    ),
    ("a score that is missing", of_kind("evaluation", {}), "('evaluation') does not hold"),
    ("no loss", of_kind("evaluation dense", [1]), "('evaluation dense') does not hold"),
    (
        "a metric of text",
        of_kind("validation", {"metrics": {"mAP50": "x"}, "per_class": {}}),
        "('validation') does not hold",
    ),
    ("no threads", of_kind("threads", 0), "('threads') does not hold"),
    ("a batch of text", of_kind("batch", "8"), "('batch') does not hold"),
    ("a latency of nothing", of_kind("latency", []), "('latency') does not hold"),
]


@pytest.mark.parametrize(("change", "said"), [case[1:] for case in RUNS], ids=[case[0] for case in RUNS])
def test_runs_to_resume(
    change: Callable[[Path], object], said: str, searched: Path, folder: Path, capsys: Capsys
) -> None:
    shutil.copytree(searched, "r")
    change(Path("r"))
    refuse(["search", "--resume", "r"], [said], capsys, folder=folder)


@pytest.mark.parametrize(
    ("command", "run", "said"),
    [
        ("search", "nowhere", "is not a run that can be resumed"),
        ("search", "file", "is not a run that can be resumed"),
        ("search", "fifo", "is not a run that can be resumed"),
        ("search", "/dev/null", "is not a run that can be resumed"),
        ("search", "/dev/full/x", "is not a run that can be resumed"),
        *(
            (command, "search", f"is a run of search, which {command} cannot go on with; --resume it with search")
            for command in ("netadapt", "compare", "sensitivity", "quantize")
        ),
    ],
)
def test_what_is_no_run(command: str, run: str, said: str, searched: Path, folder: Path, capsys: Capsys) -> None:
    Path("file").write_text("")
    os.mkfifo("fifo")
    shutil.copytree(searched, "search")
    refuse([command, "--resume", run], [said], capsys, folder=folder)


def test_a_warm_start_from_a_journal_of_something_else(
    searched: Path, tiny: Path, folder: Path, capsys: Capsys
) -> None:
    shutil.copytree(searched, "r")
    of_kind("evaluation", {"score": "high", "seconds": 1.0})(Path("r"))
    argv = words("search", tiny, "--warm-start", "r", "--strategy", "evolution", "--episodes", "6")
    refuse(argv, ["('evaluation') does not hold"], capsys, folder=folder)


@pytest.mark.parametrize("run", ["nowhere", "file", "folder"])
def test_a_warm_start_from_no_run(run: str, tiny: Path, folder: Path, capsys: Capsys) -> None:
    Path("file").write_text("")
    Path("folder").mkdir()
    refuse(
        words("search", tiny, "--warm-start", run), ["--warm-start takes the folder of a search"], capsys, folder=folder
    )


# -- environments ----------------------------------------------------------------------------------

ENVIRONMENTS: list[tuple[str, str]] = [
    ("--device cuda:7", "cuda"),
    ("--runtime cudagraph --budget latency=60%", "cudagraph"),
    ("--budget latency@cudagraph=60%", "cudagraph"),
    ("--runtime torch-compile --precision int8 --budget latency=60%", "int8"),
    ("--budget flops=0.001%", "flops=0.001%"),
    ("--budget latency=0.1us", "latency=0.1us"),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(("line", "said"), ENVIRONMENTS)
def test_environments(line: str, said: str, tiny: Path, folder: Path, capsys: Capsys) -> None:
    argv = arguments(
        "search", tiny, Path("run"), *line.split(), *(() if "--budget" in line else ("--budget", "flops=60%"))
    )
    code = 3 if "=0." in line else 2
    refuse(argv, [said], capsys, folder=folder, code=code)


def test_what_may_not_be_read(tiny: Path, folder: Path, capsys: Capsys) -> None:
    Path("p.json").write_text("{}")
    Path("p.json").chmod(0)
    Path("closed").mkdir(mode=0)
    if os.access("p.json", os.R_OK):
        pytest.skip("this user may read everything")
    argv = ["apply", "--model", str(tiny / "best.pt"), "--out", "run", "--threads", "1"]
    for policy, said in (("p.json", "cannot be read"), ("closed/p.json", "--policy must be a path")):
        refuse([*argv, "--policy", policy], [said], capsys, folder=folder)


def test_a_cache_that_is_a_file_costs_time_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("cache").write_text("")
    monkeypatch.setenv("AUTOPRUNE_CACHE", "cache")
    assert main(words("sensitivity", tiny, "--ratios", "0.5")) == 0


# -- outputs ---------------------------------------------------------------------------------------

PLACES: list[tuple[str, str]] = [
    ("file", "exists already"),
    ("folder", "exists already"),
    ("fifo", "exists already"),
    ("loop", "loop"),
    ("/dev/null", "exists already"),
    ("file/run", "cannot be written"),
    ("/dev/null/run", "cannot be written"),
    ("/proc/run", "cannot be written"),
    (".", "exists already"),
]


@pytest.mark.parametrize(("place", "said"), PLACES)
def test_places_to_write_to(place: str, said: str, tiny: Path, folder: Path, capsys: Capsys) -> None:
    Path("file").write_text("")
    Path("folder").mkdir()
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    refuse(words("sensitivity", tiny, "--out", place), [said], capsys, folder=folder)
