"""``autoprune sensitivity`` as a user runs it, small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autoprune.cli.main import main
from autoprune.evaluation.evaluator import Evaluator
from autoprune.models import open_adapter
from autoprune.models._base import LossSum
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.strategies.curves import SensitivityCurves
from autoprune.structure.space import Allocation, Space
from tests.helpers.world import SIZE, analysed, arguments, cut, one_sentence, records, summary

RATIOS = ("--ratios", "0.5,0.25")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick")]


@pytest.fixture(scope="module")
def finished(quick: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(arguments("sensitivity", tiny, out, *RATIOS)) == 0
    return out


@pytest.fixture(scope="module")
def space(tiny: Path) -> Space:
    adapter = open_adapter(tiny / "best.pt", image_size=SIZE)
    return Space(analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs))


def test_the_curves_fit_the_model_and_say_how_they_were_measured(finished: Path, space: Space) -> None:
    header, curves = SensitivityCurves.load(finished / "sensitivity.json")
    curves.check(space)
    assert (header.criterion, header.images, header.seed) == ("covariance", 4, 0)
    assert header.model.name == "best"
    asked = np.array([space.round_down(np.full(len(space), ratio)) for ratio in (0.5, 0.25)])
    for curve, counts in zip(curves.curves, asked.T, strict=True):
        assert [keep for keep, _ in curve.points] == sorted({*counts.tolist()} - {curve.width})


def test_every_point_is_a_score_of_its_unit_pruned_alone(finished: Path, space: Space) -> None:
    _, curves = SensitivityCurves.load(finished / "sensitivity.json")
    scored = {tuple(record["key"]): record["value"]["score"] for record in records(finished, "evaluation")}
    points = {
        tuple(keep if place == index else int(width) for place, width in enumerate(space.dense)): score
        for index, curve in enumerate(curves.curves)
        for keep, score in curve.points
    }
    assert points == scored


def test_the_result_has_the_curves(finished: Path) -> None:
    _, curves = SensitivityCurves.load(finished / "sensitivity.json")
    found = {one["unit"]: [tuple(point) for point in one["scores"]] for one in summary(finished)["curves"]}
    assert found == {curve.unit: list(curve.points) for curve in curves.curves if curve.points}


def test_both_pictures_are_drawn(finished: Path) -> None:
    for name in ("curves.png", "heatmap.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_goes_on_where_it_was(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is cut off within a record, as by ``kill -9``."""
    scores = len(records(finished, "evaluation"))
    lines = len((finished / "journal.jsonl").read_bytes().splitlines())
    killed = cut(finished, tmp_path / "killed", keep=lines - scores // 2)
    known = len(records_of_a_torn_journal(killed))
    original, computed = Evaluator._score, []

    def counted(self: Evaluator, allocation: Allocation) -> float:
        computed.append(allocation)
        return original(self, allocation)

    monkeypatch.setattr(Evaluator, "_score", counted)
    assert main(["sensitivity", "--resume", str(killed)]) == 0
    assert 0 < known < scores
    assert len(computed) == scores - known
    (_, resumed), (_, whole) = (SensitivityCurves.load(run / "sensitivity.json") for run in (killed, finished))
    for one, other in zip(resumed.curves, whole.curves, strict=True):
        assert [keep for keep, _ in one.points] == [keep for keep, _ in other.points]
        assert [score for _, score in one.points] == pytest.approx([score for _, score in other.points], abs=1e-5)
    assert (killed / "heatmap.png").exists()


def records_of_a_torn_journal(run: Path) -> list[bytes]:
    lines = (run / "journal.jsonl").read_bytes().split(b"\n")[:-1]
    return [line for line in lines if b'"kind": "evaluation"' in line]


@pytest.mark.parametrize("ratios", ["0,0.5", "1.0", "half", "", "0.5,,0.25", "nan", "-0.5", "0.5;0.25"])
def test_ratios_that_are_none_are_told(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ratios: str
) -> None:
    out = tmp_path / "run"
    assert main(arguments("sensitivity", tiny, out, f"--ratios={ratios}")) == 2
    said = one_sentence(capsys.readouterr().err)
    assert said == f"autoprune: --ratios must be keep ratios in (0, 1), such as 0.75,0.5,0.25, got {ratios}".strip()
    assert not out.exists()


def test_where_no_unit_can_be_pruned_it_says_so(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (("--min-keep", "1.0"), "--min-keep 1.0 and --round-to 8; lower --min-keep"),
        (("--round-to", "100000"), "--min-keep 0.1 and --round-to 100000; lower --round-to"),
        (("--min-keep", "1.0", "--round-to", "100000"), "--min-keep 1.0 and --round-to 100000; lower both"),
    ):
        assert main(arguments("sensitivity", tiny, tmp_path / "run", *RATIOS, *words)) == 2
        assert one_sentence(capsys.readouterr().err).endswith(f"No unit can be pruned with {said}")


def test_a_loss_that_is_no_number_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(UltralyticsAdapter, "loss_sum", lambda *_: LossSum.of_mean(torch.tensor(float("nan")), 1))
    assert main(arguments("sensitivity", tiny, tmp_path / "run", *RATIOS)) == 2
    assert "must be a positive number, got nan" in one_sentence(capsys.readouterr().err)
