"""The run folder: what a refusal leaves, what a resume notices, and that no link in it is followed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autoprune as ap
from autoprune import __version__
from autoprune.cli.arguments import parse
from autoprune.cli.main import main
from autoprune.config import ApplyConfig, NetAdaptConfig, RunConfig, SearchConfig
from autoprune.errors import AutopruneError, BudgetUnreachableError, ConfigError, ModelError, RunError, TrainingError
from autoprune.journal import Journal
from autoprune.models import stock  # noqa: F401 (imports Ultralytics without its side effects)
from autoprune.workflows import folder as folders
from autoprune.workflows.folder import RunFolder, RunWarning
from tests.helpers.detectors import write_data
from tests.helpers.world import CALLER, arguments, one_sentence


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a data set and a file in place of a network: nothing opens it here."""
    write_data(tmp_path / "data", images=4)
    (tmp_path / "best.pt").write_text("weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search(out: Path | None = None, **options: object) -> SearchConfig:
    given = {"model": Path("best.pt"), "data": Path("data/data.yaml"), "budget": ("flops=50%",), "out": out, **options}
    return SearchConfig(**given)  # type: ignore[arg-type]


def ended(
    config: RunConfig, error: BaseException, *, command: str = "search", before: Callable[[RunFolder], object]
) -> str:
    """Let a run end with an error after ``before``, and return what the error says."""

    def run() -> None:
        with RunFolder.open(command, config, CALLER) as folder:
            before(folder)
            raise error

    with pytest.raises(type(error)) as caught:
        run()
    return str(caught.value)


def resumed(run: Path) -> RunFolder:
    command, config = parse(["search", "--resume", str(run)])
    assert isinstance(config, RunConfig)
    return RunFolder.open(command, config, CALLER)


# -- what a refusal leaves -------------------------------------------------------------------------


def prepare(folder: RunFolder) -> None:
    """Do what a search does before its first candidate."""
    folder.once("threads", lambda: 1)
    folder.once("scored in", lambda: "fp32")
    folder.once("validation", lambda: {"main": 0.5}, "dense")
    for kind in ("latency", "latency@onnxruntime", "evaluation dense"):
        folder.journal.append(kind, "dense", {"ms": 1.0})
    (folder.path / "iterations").mkdir()
    folder.write("model.txt", "about")


@pytest.mark.parametrize("error", [ConfigError("no"), BudgetUnreachableError("no"), ModelError("no"), RunError("no")])
@pytest.mark.parametrize("out", [None, Path("new"), Path("deep/er/new"), Path("there/new")])
def test_a_refused_run_leaves_nothing_and_touches_nothing_else(
    world: Path, out: Path | None, error: AutopruneError
) -> None:
    (world / "there").mkdir()
    before = sorted(world.rglob("*"))
    assert ended(search(out), error, before=prepare) == "no"
    assert sorted(world.rglob("*")) == before
    with RunFolder.open("search", search(out), CALLER) as folder:  # the corrected command
        assert folder.path.is_dir()


def test_runs_that_were_there_stay(world: Path) -> None:
    (world / "runs" / "search-1").mkdir(parents=True)
    ended(search(), ConfigError("no"), before=prepare)
    assert os.listdir("runs") == ["search-1"]


def score(folder: RunFolder) -> None:
    folder.journal.append("evaluation", [8, 8], {"score": -0.1, "seconds": 0.5})


def train(folder: RunFolder) -> None:
    (folder.path / "finetune" / "weights").mkdir(parents=True)
    (folder.path / "finetune" / "weights" / "last.pt").touch()


@pytest.mark.parametrize("found", [score, train])
@pytest.mark.parametrize("error", [TrainingError("no"), BudgetUnreachableError("no.")])
def test_a_run_that_fails_with_something_found_stays_and_says_how_to_go_on(
    world: Path, found: Callable[[RunFolder], None], error: AutopruneError
) -> None:
    said = ended(search(Path("new")), error, before=found)
    assert said == "no; what was found is kept, and autoprune search --resume new goes on there"
    with resumed(Path("new")) as folder:
        assert folder.resumed


def test_a_resumed_run_that_is_refused_stays(world: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt, match="go on with: autoprune search --resume new"),
        RunFolder.open("search", search(Path("new")), CALLER),
    ):
        raise KeyboardInterrupt
    with pytest.raises(ModelError, match="autoprune search --resume new goes on there"), resumed(Path("new")):
        raise ModelError("no")
    resumed(Path("new")).journal.close()


@pytest.mark.parametrize("error", [ConfigError("no"), KeyboardInterrupt()])
def test_of_a_run_that_cannot_be_resumed_an_error_leaves_nothing(world: Path, error: BaseException) -> None:
    config = ApplyConfig(policy=Path("policy.json"), model=Path("best.pt"), out=Path("new"))
    assert ended(config, error, command="apply", before=lambda folder: folder.write("pruned.pt", "x")) in ("no", "")
    assert not Path("new").exists()


def test_what_profile_measured_is_what_it_is_for(world: Path) -> None:
    command, config = parse(["profile", "--model", "best.pt", "--out", "new"])
    assert isinstance(config, RunConfig)
    ended(config, ModelError("no"), command=command, before=lambda folder: folder.once("threads", lambda: 1))
    assert not Path("new").exists()
    ended(config, ModelError("no"), command=command, before=prepare)
    assert Path("new").exists()


def test_a_mistake_of_the_program_keeps_the_folder(world: Path) -> None:
    ended(search(Path("new")), ZeroDivisionError("no"), before=prepare)
    assert Path("new").exists()


def test_a_folder_that_cannot_be_filled_is_gone(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RunError("disk full")

    for step in ("save", "write_atomic"):
        with monkeypatch.context() as patch:
            patch.setattr(folders, step, full)
            with pytest.raises(RunError, match="disk full"):
                RunFolder.open("search", search(Path("deep/new")), CALLER)
        assert not Path("deep").exists()
    with pytest.raises(RunError, match="cannot be written: File name too long"):
        RunFolder.open("search", search(Path("deep") / ("x" * 300)), CALLER)
    assert not Path("deep").exists()


@pytest.mark.parametrize("content", [None, "file", "folder"])
def test_an_out_that_is_there_is_refused_whatever_it_is(world: Path, content: str | None) -> None:
    if content == "file":
        Path("target").write_text("mine")
    elif content == "folder":
        Path("target").mkdir()
    Path("link").symlink_to("target")
    for name in ("link", "target")[: 1 if content is None else 2]:
        with pytest.raises(RunError, match=f"The run folder {name} exists already; choose another `out`"):
            RunFolder.open("search", search(Path(name)), CALLER)
    assert Path("link").is_symlink()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("search", ["--budget", "flops=0.001%"]),
        ("search", ["--budget", "latency=0.0001ms"]),
        ("search", ["--budget", "flops=50%", "--data", "absent.yaml"]),
        ("netadapt", ["--budget", "flops=0.001%"]),
        ("compare", ["--budget", "flops=0.001%", "--strategies", "uniform"]),
        ("sensitivity", ["--min-keep", "1"]),
    ],
)
def test_a_command_that_is_refused_leaves_nothing(
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    quick: None,
    command: str,
    options: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments(command, tiny, Path("a/b"), *options)) in (2, 3)
    assert "--resume" not in one_sentence(capsys.readouterr().err)
    assert os.listdir() == []


# -- what a resume notices -------------------------------------------------------------------------


@pytest.fixture
def stopped(world: Path) -> Path:
    """A run that was interrupted."""
    with RunFolder.open("search", search(Path("run")), CALLER) as folder:
        folder.once("threads", lambda: 1)
    return Path("run")


def test_a_resume_with_the_same_files_goes_on_without_a_word(stopped: Path) -> None:
    with resumed(stopped) as folder:
        assert folder.journal.lookup("threads", "") == 1


def test_a_resume_names_what_changed_in_one_sentence(stopped: Path) -> None:
    Path("best.pt").write_text("other weights")
    Path("data/images/train/0.png").unlink()
    before = sorted(stopped.rglob("*"))
    with pytest.raises(RunError) as caught:
        resumed(stopped)
    assert str(caught.value) == (
        f"run began with other input files (--model: {Path.cwd().name}/best.pt has changed; --data (train): 2 files "
        "are gone, images/train/0.png the first), and old figures must not mix with new ones; put back what it began "
        "with, or start a new run"
    )
    assert sorted(stopped.rglob("*")) == before
    Path("best.pt").write_text("weights")
    shutil.copy("data/images/val/0.png", "data/images/train/0.png")
    with pytest.raises(RunError, match=r"\(--data \(train\): 2 files are|images/train/0.png has changed\)"):
        resumed(stopped)


def test_a_resume_by_another_command_names_the_one_that_began(stopped: Path) -> None:
    """Also where the options fit both: they are not what is wrong."""
    said = "^run is a run of search, which netadapt cannot go on with; `resume` it with search$"
    config = NetAdaptConfig(
        model=Path("best.pt"), data=Path("data/data.yaml"), budget=("flops=50%",), out=stopped, resume=stopped
    )
    before = sorted(stopped.rglob("*"))
    with pytest.raises(RunError, match=said):
        RunFolder.open("netadapt", config, CALLER)
    with pytest.raises(RunError, match=said):
        ap.netadapt(resume=stopped)
    assert sorted(stopped.rglob("*")) == before
    resumed(stopped).journal.close()


def rewritten(run: Path, **changes: object) -> None:
    """Change entries of a journal's header; None removes one."""
    with Journal.open(run / "journal.jsonl") as journal:
        header = {key: value for key, value in {**journal.header, **changes}.items() if value is not None}
    (run / "journal.jsonl").unlink()
    Journal.create(run / "journal.jsonl", header).close()


def test_a_run_whose_inputs_are_not_noted_does_not_go_on(stopped: Path) -> None:
    rewritten(stopped, inputs=None)
    with pytest.raises(RunError, match="began with other input files"):
        resumed(stopped)


def test_other_versions_are_told_and_the_run_goes_on(stopped: Path) -> None:
    with Journal.open(stopped / "journal.jsonl") as journal:
        environment = journal.header["environment"]
    assert {"autoprune", "torch", "numpy", "ultralytics", "stable_baselines3"} <= environment.keys()
    rewritten(stopped, environment={**environment, "torch": "1.0", "autoprune": "0.0.1"})
    now = environment["torch"]
    with pytest.warns(RunWarning) as told:
        resumed(stopped).journal.close()
    said = f"run goes on with other versions than it began with (autoprune 0.0.1 → {__version__}, torch 1.0 → {now})"
    assert str(told[0].message).startswith(said)


@settings(max_examples=15)
@given(
    header=st.dictionaries(
        st.sampled_from(["inputs", "environment", "command", "config"]),
        st.none() | st.integers() | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers() | st.text()),
    )
)
@pytest.mark.filterwarnings("ignore::autoprune.workflows.folder.RunWarning")
def test_any_header_is_refused_in_a_sentence_or_accepted(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("world")
    (folder / "best.pt").touch()
    out, model, data = folder / "run", folder / "best.pt", folder / "absent.yaml"
    with RunFolder.open("search", search(out, model=model, data=data), CALLER) as run:
        began = run.journal.header
    rewritten(out, **{**{key: began[key] for key in ("command", "config")}, **header})
    with suppress(RunError):
        resumed(out).journal.close()


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["journal.jsonl", "config.yaml", "inputs.json", "finetune", "a/b/last.pt"])
def test_a_run_with_a_link_in_it_is_not_gone_on_with(stopped: Path, world: Path, name: str) -> None:
    link, target = stopped / name, world / "elsewhere"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        link.rename(target)
    else:
        target.mkdir()
    before = target.read_bytes() if target.is_file() else None
    link.symlink_to(target)
    with pytest.raises(RunError, match=rf"{name} is a symbolic link, and nothing is written through one"):
        resumed(stopped)
    assert before is None or target.read_bytes() == before


def test_a_run_may_be_reached_through_a_link(stopped: Path) -> None:
    Path("latest").symlink_to(stopped)
    resumed(Path("latest")).journal.close()


def test_the_listing_of_inputs_is_for_people_too(stopped: Path) -> None:
    listed = json.loads((stopped / "inputs.json").read_text())
    assert listed["--data (train)"]["images/train/0.png"] == str(Path("data/images/train/0.png").stat().st_size)


# -- project and name, as Ultralytics has them -------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({"project": Path("P"), "name": "exp"}, ["P/exp", "P/exp-2", "P/exp-3"]),
        ({"project": Path("P")}, ["P/search", "P/search-2"]),
        ({"name": "exp"}, ["runs/exp", "runs/exp-2"]),
        ({"name": "a/b"}, ["runs/a/b", "runs/a/b-2"]),
        ({}, ["runs/search-1", "runs/search-2"]),
    ],
)
def test_a_run_gets_a_folder_of_its_own_as_ultralytics_counts(
    world: Path, options: Mapping[str, Any], paths: list[str]
) -> None:
    for path in paths:
        if options:
            assert importlib.import_module("ultralytics.utils.files").increment_path(paths[0]) == Path(path)
        with RunFolder.open("search", search(None, **options), CALLER) as folder:
            assert folder.path == Path(path)
            folder.once("threads", lambda: 1)


def test_of_runs_that_begin_together_each_gets_a_folder(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = folders._free

    def taken(command: str, config: RunConfig) -> Path:
        path = free(command, config)
        if path.name == "search-1":
            path.mkdir(parents=True)  # another run does, before this one can
        return path

    monkeypatch.setattr(folders, "_free", taken)
    with RunFolder.open("search", search(None), CALLER) as folder:
        assert folder.path == Path("runs/search-2")


def test_a_folder_that_cannot_be_made_is_said_once(world: Path) -> None:
    Path("P").touch()
    with pytest.raises(RunError, match="P/search cannot be written: Not a directory"):
        RunFolder.open("search", search(None, project=Path("P")), CALLER)


def test_a_run_of_a_project_goes_on_where_it_lies(world: Path) -> None:
    config = search(None, project=Path("P"), name="exp")
    with RunFolder.open("search", config, CALLER) as folder:
        score(folder)
    with resumed(Path("P/exp")) as again:
        assert (again.path, again.resumed) == (Path("P/exp"), True)
    assert not Path("P/exp-2").exists()
    moved = Path("elsewhere")
    Path("P/exp").rename(moved)
    with resumed(moved) as again:  # where it lies does not make it another run
        assert again.path == moved


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "--out a --project P",
            "--out is the run folder itself, and --project says where it is made: give one of them",
        ),
        ("--out a --name N", "--out is the run folder itself, and --name says where it is made: give one of them"),
        ("--name ../x", "--name must name a folder within --project, got '../x'"),
        ("--name=/x", "--name must name a folder within --project, got '/x'"),
        ("--name=", "--name must name a folder within --project, got ''"),
        ("--name x --exist-ok", "a run never writes into the folder of another; with --name it counts on"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["search", "--budget", "flops=50%", *line.split()])
    assert said in str(caught.value)
