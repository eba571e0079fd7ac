"""``report.html`` at the end of a run, and ``autoprune report``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from autoprune.cli.main import main
from autoprune.report.detections import read_detections
from autoprune.report.page import PAGE, is_page
from tests.helpers.world import arguments, one_sentence

pytestmark = pytest.mark.filterwarnings("ignore")

UNIFORM = ("--report", "--strategy", "uniform", "--budget", "flops=80%", "--finetune-epochs", "1")


@pytest.fixture(scope="module")
def finished(quick: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "search"
    assert main(arguments("search", tiny, out, *UNIFORM)) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "search"))


def test_a_run_leaves_its_page_with_detections_and_the_fine_tune(finished: Path) -> None:
    text = (finished / PAGE).read_text()
    for heading in ("Before and after", "Detections", "Channels kept", "The search", "Score against cost"):
        assert f"<h2>{heading}</h2>" in text
    images = read_detections(finished)
    assert images
    assert all(list(image.found) == ["dense", "finetuned"] and image.truth for image in images)
    assert (finished / "finetune" / "epochs.json").exists()


def test_a_page_is_made_anew_of_a_finished_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / PAGE).unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.split() == f"The report is {run / PAGE}.".split()
    assert is_page(run / PAGE)


def test_several_runs_share_a_page(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = str(shutil.copytree(run, tmp_path / "other"))
    assert main(["report", str(run), other, str(run)]) == 0
    assert "<h1>2 runs</h1>" in (tmp_path / PAGE).read_text(), "each once"
    assert main(["report", str(run), other, "--page", "both.html"]) == 0
    assert is_page(tmp_path / "both.html")


def test_a_page_that_cannot_be_made_costs_a_warning_only(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no chart today")

    monkeypatch.setattr("autoprune.report.page.write_page", broken)
    for name in (PAGE, "summary.json"):
        (run / name).unlink()
    assert main(["search", "--resume", str(run)]) == 0
    assert "No report was made: no chart today" in capsys.readouterr().err
    assert (run / "summary.json").exists()
    assert not (run / PAGE).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "report needs RUN"),
        (["missing"], "A report is made of a run's folder, and missing is none"),
        (["."], "has no results"),
        ([".", "--page", "report.txt"], "--page must be an HTML file, such as report.html, got report.txt"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert said in one_sentence(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_others_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / PAGE).write_text("mine")
    assert main(["report", str(run)]) == 2
    assert "exists and is no report of autoprune" in one_sentence(capsys.readouterr().err)
    assert (run / PAGE).read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("search", 5),
        ("search", {"candidates": {"scores": ["high"], "costs": {}, "prior": 0, "chosen": 0}}),
        ("pinned", [5]),
        ("workers", {}),
        ("stages", {"dense": 5}),
    ],
)
def test_a_result_that_another_tool_wrote_is_refused_in_one_sentence(
    run: Path, name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    before = (run / PAGE).read_bytes()
    assert main(["report", str(run)]) == 2
    said = one_sentence(capsys.readouterr().err)
    assert str(run) in said
    assert said.endswith("; run the command again")
    assert (run / PAGE).read_bytes() == before


def test_a_page_is_not_read_from_a_pipe(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(run / "pipe.html")
    assert main(["report", str(run), "--page", str(run / "pipe.html")]) == 2
    assert "exists and is no report of autoprune" in one_sentence(capsys.readouterr().err)
