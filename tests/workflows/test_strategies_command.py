"""``autoprune search --strategy …``, ``--sensitivity`` and ``--warm-start`` as a user uses them, small."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoprune.cli.main import main
from autoprune.config import SearchConfig
from autoprune.errors import ConfigError
from autoprune.image_size import ImageSize
from autoprune.journal import Journal
from autoprune.policy import Policy, PolicyModel
from autoprune.strategies._base import Candidate
from autoprune.strategies.curves import SensitivityCurves
from autoprune.strategies.registry import StrategyName
from autoprune.workflows.inputs import Inputs
from autoprune.workflows.warmstart import candidates_of_runs, check_runs
from tests.helpers.detectors import write_data
from tests.helpers.world import arguments, one_sentence, records, summary

EPISODES = 6
STRATEGIES = [
    *("uniform", "global", "random", "greedy", "sensitivity", "knapsack", "evolution", "ddpg")
]  # ppo is the one of test_search_command
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick")]


def search(world: Path, out: Path, strategy: str, *extra: str) -> int:
    words = ["--strategy", strategy, "--no-tensorboard", *extra]
    for option, value in (("--budget", "flops=60%"), ("--episodes", str(EPISODES)), ("--finalists", "1")):
        if option not in extra:
            words += [option, value]
    return main(arguments("search", world, out, *words))


@pytest.fixture(scope="module")
def curves(quick: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a sensitivity run."""
    out = tmp_path_factory.mktemp("sensitivity") / "run"
    assert main(arguments("sensitivity", tiny, out, "--ratios", "0.5")) == 0
    return out / "sensitivity.json"


@pytest.fixture(scope="module")
def finished(quick: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a strategy's finished search."""
    runs = tmp_path_factory.mktemp("finished")

    def run(strategy: str) -> Path:
        if not (runs / strategy).exists():
            assert search(tiny, runs / strategy, strategy) == 0
        return runs / strategy

    return run


@pytest.fixture
def earlier(finished: Callable[[str], Path]) -> Path:
    """The folder of a finished random search."""
    return finished("random")


def scored(run: Path) -> dict[tuple[int, ...], float]:
    return {tuple(record["key"]): record["value"]["score"] for record in records(run, "evaluation")}


def keeps(policy: Policy) -> tuple[int, ...]:
    return tuple(unit.keep for unit in policy.units)


# -- strategies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_ends_within_the_budget(finished: Callable[[str], Path], strategy: str) -> None:
    out = finished(strategy)
    found, policy = summary(out), Policy.load(out / "policy.json")
    assert found["budget"][0]["satisfied"]
    assert found.stages["pruned"].cost("flops") == policy.costs["flops"].value <= found["budget"][0]["limit"]
    assert found["search"]["strategy"] == policy.provenance.strategy == strategy
    assert 1 <= found["search"]["evaluations"] <= EPISODES + 8  # the prior's trials come on top
    assert policy.score == scored(out)[keeps(policy)]
    assert (found["search"]["prior_cost"] > 0) == (strategy in ("evolution", "ddpg"))


def test_a_share_of_the_channels_is_a_budget_like_any_other(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert search(tiny, out, "uniform", "--budget", "channels=60%") == 0
    found, policy = summary(out), Policy.load(out / "policy.json")
    (row,) = found["budget"]
    assert (row["metric"], row["satisfied"]) == ("channels", True)
    assert row["dense"] == found.stages["dense"].cost("channels")
    assert (
        found.stages["pruned"].cost("channels")
        == policy.costs["channels"].value
        == row["achieved"]
        <= 0.6 * row["dense"]
    )


def test_a_probe_never_ships_however_well_it_scores(tiny: Path, tmp_path: Path) -> None:
    """With many evaluations most are probes of one unit, which may score best and are not within the budget."""
    out = tmp_path / "run"
    assert search(tiny, out, "sensitivity", "--episodes", "36") == 0
    found = summary(out)
    assert found["budget"][0]["satisfied"]
    assert found["search"]["best_score"] == Policy.load(out / "policy.json").score <= max(scored(out).values())


def test_a_misspelt_strategy_is_told_what_there_is(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tiny, tmp_path / "run", "knapsak") == 2
    there_is = ", ".join(member.value for member in StrategyName)
    assert one_sentence(capsys.readouterr().err) == f"autoprune: --strategy must be one of {there_is}, got knapsak"
    assert not (tmp_path / "run").exists()


# -- curves measured before --------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["knapsack", "sensitivity"])
def test_with_curves_nothing_is_probed(tiny: Path, curves: Path, tmp_path: Path, strategy: str) -> None:
    out = tmp_path / "run"
    assert search(tiny, out, strategy, "--sensitivity", str(curves), "--episodes", "2") == 0
    _, known = SensitivityCurves.load(curves)
    dense = tuple(curve.width for curve in known.curves)
    assert 1 <= len(scored(out)) <= 2
    assert all(np.count_nonzero(np.array(key) != dense) > 1 for key in scored(out))
    assert summary(out)["budget"][0]["satisfied"]


def test_curves_of_another_model_are_refused_before_anything_is_measured(
    tiny: Path, curves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = tmp_path / "sensitivity.json", tmp_path / "run"
    header, ours = SensitivityCurves.load(curves)
    renamed = [replace(curve, unit="stem") if curve.unit == "model.1" else curve for curve in ours.curves]
    model = PolicyModel("other", {curve.unit: curve.width for curve in renamed})
    SensitivityCurves(tuple(renamed)).save(theirs, replace(header, model=model))
    assert search(tiny, out, "knapsack", "--sensitivity", str(theirs)) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "The sensitivity curves do not fit this model" in said
    assert "stem with 32 channels in the curves, model.1 with 32 channels in the model" in said
    assert not out.exists()


@pytest.mark.parametrize(("text", "said"), [(None, "cannot be read"), ("{}", "schema_version"), ("no", "curves.json")])
def test_a_file_without_curves_is_told(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    file = tmp_path / "curves.json"
    if text is not None:
        file.write_text(text)
    assert search(tiny, tmp_path / "run", "knapsack", "--sensitivity", str(file)) == 2
    line = one_sentence(capsys.readouterr().err)
    assert str(file) in line
    assert said in line


# -- warm starts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["evolution", "ddpg"])
def test_a_search_starts_from_what_another_found(
    tiny: Path, finished: Callable[[str], Path], earlier: Path, tmp_path: Path, strategy: str
) -> None:
    cold, warm = finished(strategy), tmp_path / "warm"
    assert search(tiny, warm, strategy, "--warm-start", str(earlier)) == 0
    assert summary(warm)["budget"][0]["satisfied"]
    assert scored(warm).keys() != scored(cold).keys()


class Holding:
    """A constraint that holds where the first unit keeps at most so much."""

    def __init__(self, most: int, units: int = 2, least: int = 1) -> None:
        self.most, self.space = most, SimpleNamespace(choices=[range(least, 17)] * units)

    def holds(self, counts: Any) -> bool:
        return bool(counts[0] <= self.most)


def finished_search(path: Path, config: SearchConfig, scores: dict[tuple[int, ...], float]) -> str:
    from autoprune.config.files import save

    path.mkdir()
    save(config, path)
    with Journal.create(path / "journal.jsonl", {"inputs": Inputs.of(config).digests}) as journal:
        for key, score in scores.items():
            journal.append("evaluation", list(key), {"score": score, "seconds": 0.0})
    return str(path)


def test_candidates_within_the_budget_are_taken_from_all_runs_once(tmp_path: Path) -> None:
    config = SearchConfig(budget=("flops=50%",), model=Path("m.pt"), data=Path("d.yaml"))
    runs = [
        finished_search(tmp_path / "one", config, {(8, 8): -0.5, (16, 8): -0.1}),
        finished_search(tmp_path / "two", replace(config, strategy=StrategyName.RANDOM, episodes=9), {(8, 8): -0.5}),
    ]
    journals = check_runs(runs, config)
    for run in runs:
        shutil.rmtree(run)  # each was read once
    constraint: Any = Holding(8)
    assert candidates_of_runs(journals, constraint) == (Candidate((8, 8), -0.5),)
    strangers: Any = Holding(8, units=3)
    assert candidates_of_runs(journals, strangers) == ()
    wider: Any = Holding(8, least=9)
    assert candidates_of_runs(journals, wider) == (), "a search with a higher `min_keep` may not choose them"


@pytest.mark.parametrize(
    "change",
    [
        {"images": 8},
        {"batch": 4},
        {"seed": 1},
        {"imgsz": ImageSize(320, 320)},
        {"imgsz": ImageSize(320, 640)},
        {"round_to": 16},
        {"model": Path("other.pt")},
        {"data": Path("other.yaml")},
        {"model": None, "data": None},
    ],
)
def test_scores_that_cannot_be_compared_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    for module in ("run", "inputs"):
        monkeypatch.setattr(f"autoprune.workflows.{module}.shapes_dataset", lambda: Path("shapes.yaml"))
    config = SearchConfig(budget=("flops=50%",), model=Path("m.pt"), data=Path("d.yaml"))
    run = finished_search(tmp_path / "run", replace(config, **change), {})
    with pytest.raises(ConfigError, match=f"{run} has `(images|batch|seed|imgsz|round_to|model|data)` "):
        check_runs([run], config)


def test_searches_of_the_bundled_detector_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoprune.workflows.run import with_model

    for module in ("run", "inputs"):
        monkeypatch.setattr(f"autoprune.workflows.{module}.shapes_dataset", lambda: Path("shapes.yaml"))
    config = SearchConfig(budget=("flops=50%",))
    check_runs([finished_search(tmp_path / "run", config, {})], with_model(config))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("best.pt", "--model"),
        ("data/data.yaml", "--data"),
        ("data/labels/train/0.txt", r"--data \(train\)"),
        ("data/labels/val/0.txt", None),
    ],
)
def test_scores_of_other_files_are_refused(tmp_path: Path, change: str, named: str | None) -> None:
    (tmp_path / "best.pt").write_text("weights")
    config = SearchConfig(
        budget=("flops=50%",), model=tmp_path / "best.pt", data=write_data(tmp_path / "data", images=2)
    )
    run = finished_search(tmp_path / "run", config, {(8, 8): -0.5})
    check_runs([run], config)
    with (tmp_path / change).open("a") as file:
        file.write("# changed\n")
    if named is None:  # no score depends on it
        check_runs([run], config)
    else:
        with pytest.raises(ConfigError, match=f"{run} was made with another {named} than is there now"):
            check_runs([run], config)


def test_a_run_on_other_images_is_refused_before_anything_is_measured(
    tiny: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert search(tiny, out, "evolution", "--warm-start", str(earlier), "--images", "3") == 2
    said = one_sentence(capsys.readouterr().err)
    assert "needs scores of the same network on the same images" in said
    assert said.endswith(f"{earlier} has --images 4, this search 3")
    assert not out.exists()


def test_a_folder_that_is_no_search_is_refused(
    tiny: Path, curves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tiny, tmp_path / "one", "evolution", "--warm-start", str(tmp_path)) == 2
    assert "--warm-start takes the folder of a search" in one_sentence(capsys.readouterr().err)
    assert search(tiny, tmp_path / "two", "evolution", "--warm-start", str(curves.parent)) == 2
    assert str(curves.parent) in one_sentence(capsys.readouterr().err)
