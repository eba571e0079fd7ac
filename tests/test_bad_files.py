"""Bad input that only the files show: networks, checkpoints, data sets, policies, curves, runs, places to write to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.cli import main
from autoprune.journal import Journal
from tests.detectors import build, write_detector
from tests.refusals import refuse
from tests.test_description import write_png
from tests.world import arguments

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> Path:
    """Run in an empty folder; networks are analysed once."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder with everything that is not what it is given for."""
    path = tmp_path_factory.mktemp("zoo")
    (path / "folder").mkdir()
    os.mkfifo(path / "fifo")
    os.mkfifo(path / "fifo.pt")
    os.mkfifo(path / "fifo.yaml")
    os.mkfifo(path / "fifo.cfg")
    (path / "loop.pt").symlink_to("loop.pt")
    (path / "gone.pt").symlink_to("nowhere")
    (path / "folder.pt").mkdir()
    for name in ("empty.pt", "empty.json", "empty.cfg", "empty.yaml"):
        (path / name).write_bytes(b"")
    for suffix in ("pt", "json", "cfg", "yaml", "weights"):
        (path / f"noise.{suffix}").write_bytes(np.random.default_rng(0).bytes(5000))
        (path / f"text.{suffix}").write_text("hello\n")
    whole = (tiny / "best.pt").read_bytes()
    (path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"model": None}, path / "none.pt")
    torch.save([1, 2], path / "list.pt")
    torch.save(build().state_dict(), path / "state.pt")
    torch.save(nn.Conv2d(3, 8, 1).state_dict(), path / "layer.pt")
    torch.save({"model": nn.Sequential(nn.Conv2d(3, 8, 1))}, path / "other.pt")
    fused = build()
    fused.fuse(verbose=False)
    write_detector(path / "fused.pt", fused)
    write_policy(path)
    return path


def write_policy(path: Path) -> None:
    """Write texts that are no policies; those that are, of another network, are made in their test."""
    (path / "deep.json").write_text("[" * 100_000)
    (path / "nan.json").write_text('{"schema_version": NaN}')
    (path / "twice.json").write_text('{"schema_version": 1, "schema_version": 1}')
    (path / "list.json").write_text("[]")
    (path / "null.json").write_text("null")
    (path / "version.json").write_text('{"schema_version": 99}')
    (path / "latin.json").write_bytes('{"schema_version": "é"}'.encode("latin-1"))


# -- networks --------------------------------------------------------------------------------------

MODELS: list[tuple[str, str]] = [
    ("nowhere.pt", "does not exist"),
    ("folder", "is a folder"),
    ("folder.pt", "is a folder"),
    ("fifo.pt", "fifo.pt"),
    ("/dev/null", "/dev/null"),
    ("loop.pt", "does not exist"),
    ("gone.pt", "does not exist"),
    ("empty.pt", "is corrupt, cut short, or no checkpoint"),
    ("text.pt", "is corrupt, cut short, or no checkpoint"),
    ("noise.pt", "is corrupt, cut short, or no checkpoint"),
    ("cut.pt", "is corrupt, cut short, or no checkpoint"),
    ("text.json", "must be a .pt file"),
    ("list.pt", "list.pt"),
    ("none.pt", "none.pt"),
    ("state.pt", "state.pt"),
    ("layer.pt", "layer.pt"),
    ("other.pt", "other.pt"),
    ("fused.pt", "was fused already"),
    ("nowhere.cfg", "cannot be read"),
    ("fifo.cfg", "fifo.cfg"),
    ("empty.cfg", "empty.cfg"),
    ("text.cfg", "text.cfg"),
    ("noise.cfg", "noise.cfg"),
    ("noise.weights", "give the cfg of that network"),
    ("nowhere.py:make", "does not exist; --model takes FILE.py:FUNCTION"),
]


def words(command: str, world: Path, *extra: str) -> list[str]:
    """Return the words of a command on the tiny world, which writes to ``run``."""
    budget = ("--budget", "flops=60%") if command in ("search", "netadapt", "compare") else ()
    return arguments(command, world, Path("run"), *extra, *budget)


@pytest.mark.parametrize(("name", "said"), MODELS)
def test_models(name: str, said: str, zoo: Path, tiny: Path, folder: Path, capsys: Capsys) -> None:
    argv = words("sensitivity", tiny, "--model", str(zoo / name))
    if ".py:" in name:
        del argv[argv.index("--data") : argv.index("--data") + 2]
    refuse(argv, [said], capsys, folder=folder)


@pytest.mark.parametrize("command", ["search", "netadapt", "compare", "sensitivity", "profile", "export", "apply"])
def test_every_command_refuses_a_missing_network(command: str, tiny: Path, folder: Path, capsys: Capsys) -> None:
    options = {"profile": (), "export": (), "apply": ("--policy", str(tiny / "best.pt"))}
    argv = (
        [command, "--model", "nowhere.pt", *options[command]] if command in options
        else words(command, tiny, "--model", "nowhere.pt")
    )  # fmt: skip
    refuse(argv, ["best.pt" if command == "apply" else "nowhere.pt"], capsys, folder=folder)


SOURCES: list[tuple[str, str]] = [
    ("def make():\n    raise ValueError('no')\n", "raised ValueError: no"),
    ("import sys\ndef make():\n    sys.exit(0)\n", "raised SystemExit: 0"),
    ("def make():\n    raise SystemExit\n", "raised SystemExit"),
    ("import sys\nsys.exit(3)\n", "cannot be imported (SystemExit: 3)"),
    ("def make():\n    pass\n", "got nothing"),
    ("def make():\n    return make\n", "must return an autoprune.models.module.ModuleAdapter"),
    ("make = 3\n", "must have a function make"),
    ("def make(wanted):\n    pass\n", "raised TypeError"),
    ("def make(:\n", "cannot be imported (SyntaxError"),
    ("import no_such_module_here\n", "cannot be imported (ModuleNotFoundError"),
    ("def make():\n    return make()\n", "raised RecursionError"),
    ("\0", "cannot be imported"),
]


@pytest.mark.parametrize(("text", "said"), SOURCES)
def test_functions_that_build_a_network(text: str, said: str, folder: Path, capsys: Capsys) -> None:
    Path("own.py").write_text(text)
    refuse(["sensitivity", "--model", "own.py:make", "--threads", "1", "--out", "run"], [said], capsys, folder=folder)


# -- checkpoints -----------------------------------------------------------------------------------

CHECKPOINTS: list[tuple[Mapping[str, Any], tuple[str, ...]]] = [
    ({"train_args": {"imgsz": 10**7}}, ("imgsz",)),
    ({"train_args": {"imgsz": "large"}}, ("imgsz",)),
    ({"train_args": [1]}, ("train_args",)),
    ({"epoch": "last"}, ("epoch",)),
    ({"stopper": 3}, ("stopper",)),
    ({"modelopt": 1}, ("quantization",)),
    ({"model": "a text"}, ("b.pt",)),
    ({"format": "autoprune.module"}, ("FILE.py:FUNCTION@",)),
]


@pytest.mark.parametrize(("changes", "said"), CHECKPOINTS, ids=lambda value: str(value)[:40])
def test_checkpoints(
    changes: Mapping[str, Any], said: tuple[str, ...], tiny: Path, folder: Path, capsys: Capsys
) -> None:
    content = torch.load(tiny / "best.pt", weights_only=False)
    torch.save({**content, **changes}, "b.pt")
    argv = words("sensitivity", tiny, "--model", "b.pt")
    del argv[argv.index("--imgsz") : argv.index("--imgsz") + 2]
    refuse(argv, said, capsys, folder=folder)


# -- data sets -------------------------------------------------------------------------------------

PATHS: list[tuple[str, str]] = [
    ("nowhere.yaml", "does not exist"),
    ("folder", "does not exist"),
    ("fifo.yaml", "fifo.yaml"),
    ("/dev/null", "/dev/null"),
    ("empty.yaml", "must map names to values"),
    ("text.yaml", "must map names to values"),
    ("noise.yaml", "noise.yaml"),
    ("text.json", "must be described by a .yaml file"),
]


@pytest.mark.parametrize(("name", "said"), PATHS)
def test_what_is_no_data_set(name: str, said: str, zoo: Path, tiny: Path, folder: Path, capsys: Capsys) -> None:
    refuse(words("sensitivity", tiny, "--data", str(zoo / name)), [said], capsys, folder=folder)


DATA: list[tuple[Mapping[str, Any], str]] = [
    ({"names": {0: "green"}}, "tells 2 classes apart, but"),
    ({"names": {0: "green"}, "nc": 2}, "contradicts itself"),
    ({"names": None}, "must name its classes"),
    ({"names": ["blue", "green"]}, "in another order"),
    ({"names": [["green"], "blue"]}, "must be texts"),
    ({"names": {"a": "green", 1: "blue"}}, "must be numbered"),
    ({"nc": "two"}, "'nc' of"),
    ({"nc": 10**10, "names": None}, "'nc' of"),
    ({"train": 5}, "must be a path or a list of paths"),
    ({"train": None, "val": None}, "names no 'train' and no 'val' split"),
    ({"train": None}, "names no 'train' split"),
    ({"train": "nowhere"}, "does not exist"),
    ({"train": "."}, ""),
    ({"path": ["a"]}, "must be the path of a folder"),
    ({"path": 5}, "must be the path of a folder"),
    ({"path": "nowhere"}, "does not exist"),
    ({"path": "a" * 5000}, "names a path that no file can have"),
    ({"kpt_shape": "abc"}, "'kpt_shape' of"),
    ({"kpt_shape": [17, "x"]}, "'kpt_shape' of"),
    ({"channels": 1}, "channel"),
    ({"channels": "three"}, "'channels' of"),
]


@pytest.mark.parametrize(("changes", "said"), [case for case in DATA if case[1]], ids=lambda value: str(value)[:40])
def test_descriptions_of_data_sets(
    changes: Mapping[str, Any], said: str, tiny: Path, folder: Path, capsys: Capsys
) -> None:
    described = {"path": str(tiny / "data"), "train": "images/train", "val": "images/val", "names": ["green", "blue"]}
    Path("d.yaml").write_text(json.dumps({**described, **changes}, ensure_ascii=False))
    if any(isinstance(name, int) for name in changes.get("names") or {} if isinstance(changes["names"], dict)):
        names = ", ".join(f"{index}: {name}" for index, name in changes["names"].items())
        rest = {name: value for name, value in {**described, **changes}.items() if name != "names"}
        Path("d.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in rest.items()) + f"names: {{{names}}}\n")
    refuse(words("sensitivity", tiny, "--data", "d.yaml"), [said], capsys, folder=folder)


def only_image(make: Callable[[Path], None]) -> Callable[[Path], str]:
    """Return what writes a data set whose training image is made so, with a label."""

    def write(data: Path) -> str:
        for kind in ("images", "labels"):
            shutil.rmtree(data / kind / "train")
            (data / kind / "train").mkdir()
        make(data / "images" / "train" / "a.png")
        (data / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        return str(data / "data.yaml")

    return write


def labels(text: str) -> Callable[[Path], str]:
    """Return what gives every training image of a data set these labels."""

    def write(data: Path) -> str:
        for file in (data / "labels" / "train").glob("*.txt"):
            file.write_text(text)
        return str(data / "data.yaml")

    return write


IMAGES: list[tuple[str, Callable[[Path], str], str]] = [
    ("bomb", only_image(lambda path: write_png(path, 20_000, 20_000)), "decompression bomb"),
    ("empty", only_image(lambda path: path.write_bytes(b"")), "can be read"),
    ("noise", only_image(lambda path: path.write_bytes(bytes(range(256)) * 20)), "can be read"),
    ("fifo", only_image(os.mkfifo), "can be read"),
    ("folder", only_image(Path.mkdir), "image"),
    ("link", only_image(lambda path: path.symlink_to(path)), "can be read"),
    ("none", only_image(lambda path: None), "holds no image"),
    ("no labels", labels(""), "label"),
    ("class 7", labels("7 0.5 0.5 0.2 0.2\n"), "can be read"),
    ("outside", labels("0 1.5 0.5 0.2 0.2\n"), "can be read"),
    ("text", labels("a b c d e\n"), "can be read"),
]


@pytest.mark.parametrize(("write", "said"), [case[1:] for case in IMAGES], ids=[case[0] for case in IMAGES])
def test_images_and_labels(
    write: Callable[[Path], str],
    said: str,
    tiny: Path,
    folder: Path,
    capsys: Capsys,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = tmp_path_factory.mktemp("data") / "data"
    shutil.copytree(tiny / "data", data)
    argv = words("sensitivity", tiny, "--data", write(data))
    before = len(os.listdir(data / "labels"))
    refuse(argv, [said], capsys, folder=folder)
    assert len(os.listdir(data / "labels")) == before


# -- policies and curves ---------------------------------------------------------------------------

POLICIES: list[tuple[str, str]] = [
    ("nowhere.json", "cannot be read"),
    ("folder", "it is a folder"),
    ("fifo", "it is no file"),
    ("/dev/null", "it is no file"),
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
    ("no units", lambda policy: policy["units"].clear(), "units"),
    ("a unit is missing", lambda policy: policy["units"].pop(), "unit"),
    ("another name", lambda policy: policy["units"][0].update(name="model.99.conv"), "model.99.conv"),
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


@pytest.mark.parametrize(("edit", "said"), [case[1:] for case in EDITS], ids=[case[0] for case in EDITS])
def test_policies_that_were_edited(
    edit: Callable[[Any], object], said: str, searched: Path, tiny: Path, folder: Path, capsys: Capsys
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
    ("an accuracy of text", of_kind("validation", {"main": "x", "lenient": None}), "('validation') does not hold"),
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
        ("netadapt", "search", "not an option of autoprune netadapt"),
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
    ("--imgsz 32032", "32032"),
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
