"""``autoprune compare`` as a user runs it, small."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from autoprune.cli.main import main
from autoprune.config import CompareConfig
from autoprune.errors import ConfigError
from autoprune.journal import Journal
from autoprune.listener import SilentListener
from autoprune.models import open_adapter
from autoprune.models.ultralytics.scaling import scaled
from autoprune.report.detections import read_detections
from autoprune.results import Compared, Metrics
from autoprune.strategies._base import Candidate
from autoprune.strategies.regrowth import GAINS_COST
from autoprune.workflows.benchmark import BenchmarkResult
from autoprune.workflows.compare import agents_verdict, run
from autoprune.workflows.run import DEFAULT_EPOCHS
from tests.helpers.networks import build
from tests.helpers.world import CALLER, arguments, stages_of

pytestmark = pytest.mark.filterwarnings("ignore")

EVALUATIONS = 12


def compare(world: Path, out: Path, *extra: str) -> list[str]:
    options = ["--evaluations", str(EVALUATIONS), "--no-references", "--budget", "flops=60%"]
    return [*arguments("compare", world, out), *options, *extra]


@pytest.fixture(scope="module")
def finished(tiny: Path, quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of searches."""
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main(compare(tiny, out, "--strategies", "uniform,random,uniform+ppo", "--seeds", "2")) == 0
    return out


@pytest.fixture(scope="module")
def trained(tiny: Path, quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison with its fine-tunes."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    options = ["--strategies", "random", "--evaluations", "4", "--seeds", "1", "--finetune-epochs", "1", "--report"]
    line = [*arguments("compare", tiny, out, *options), "--budget", "flops=60%", "--correlated", "3"]
    assert main(line) == 0
    return out


def results(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "compare.json").read_text()))


def outcomes(run: Path) -> dict[str, Any]:
    with Journal.open(run / "journal.jsonl") as journal:
        return {str(record.key): record.value for record in journal.records("outcome")}


def test_every_strategy_gets_the_same_and_holds_the_budget(finished: Path) -> None:
    rows = {row["name"]: row for row in results(finished)["compared"]["strategies"]}
    assert {name: row["seeds"] for name, row in rows.items()} == {
        "uniform": [0],
        "random": [0, 1],
        "uniform+ppo": [0, 1],
    }
    for row in rows.values():
        assert all(share <= 0.6 for share in row["costs"]["flops"])
        assert all(1 <= count <= EVALUATIONS for count in row["evaluations"])
        assert len(row["before"]) == len(row["seeds"])
    assert rows["random"]["evaluations"] == [EVALUATIONS] * 2
    assert rows["uniform+ppo"]["evaluations"] == [EVALUATIONS] * 2, "the warm start and the priors are counted"
    assert min(rows["uniform+ppo"]["scores"]) >= rows["uniform"]["scores"][0], "the agent starts from the uniform ratio"


def test_what_needs_no_pruning_is_compared_too(trained: Path) -> None:
    dense, lower = results(trained)["compared"][
        "references"
    ]  # the detector's YAML has no scale, so there is no smaller one
    assert dense["costs"]["flops"][0] == pytest.approx(1, rel=1e-6)
    assert lower["name"] == "dense, lower image size (32 px)"
    assert lower["costs"]["flops"][0] <= 0.6
    assert all(0 <= row["after"][0]["metrics"]["mAP50-95"] <= 1 for row in (dense, lower))


def test_a_lower_image_size_is_no_alternative_where_channels_are_limited(
    tiny: Path, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--strategies", "uniform", "--evaluations", "1", "--correlated", "0", "--budget", "channels=60%")
    assert main(arguments("compare", tiny, tmp_path / "run", *options)) == 0
    (dense,) = results(tmp_path / "run")["compared"]["references"]
    assert dense["costs"] == {"channels": [1.0]}
    assert "There is no row 'dense, lower image size': no such network meets channels=60%." in capsys.readouterr().out


def test_a_family_can_be_scaled() -> None:
    module = build("yolov8n")
    smaller, wider = (scaled(module, width) for width in (0.5, 1.0))
    assert smaller is not None
    assert wider is not None
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (smaller, wider, module)]
    assert counts[0] < 0.5 * counts[1]
    assert counts[1] == counts[2]


def test_score_and_accuracy_are_correlated_over_enough_networks(trained: Path) -> None:
    correlation = results(trained)["correlation"]
    assert correlation["networks"] == len(correlation["points"]) == 3
    folders = {path.name for path in (trained / "networks").iterdir()}
    assert len(set(correlation["names"])) == 3
    assert {one for name in correlation["names"] for one in name.split(", ")} >= folders
    assert -1 <= correlation["spearman"] <= 1


def test_the_page_shows_what_the_dense_and_the_best_network_detect(trained: Path) -> None:
    images = read_detections(trained)
    assert images
    assert all(list(image.found) == ["dense", "random-0"] for image in images)


def test_pictures_and_networks_are_there(trained: Path) -> None:
    for name in ("comparison.png", "progress.png", "correlation.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    assert open_adapter(trained / "networks" / "random-0" / "model.pt").module is not None
    assert (trained / "networks" / "random-0" / "policy.json").exists()


def test_a_finished_comparison_is_extended_without_repeating(finished: Path) -> None:
    before = outcomes(finished)
    assert main(["compare", "--resume", str(finished), "--strategies", "global,uniform", "--seeds", "3"]) == 0
    after = outcomes(finished)
    assert repr({key: after[key] for key in before}) == repr(before), "also where a history holds NaN"
    assert set(after) - set(before) == {"['random', 2]", "['uniform+ppo', 2]", "['global', 0]"}
    rows = {row["name"]: row for row in results(finished)["compared"]["strategies"]}
    assert set(rows) == {"uniform", "random", "uniform+ppo", "global"}
    assert main(["compare", "--resume", str(finished)]) == 0
    assert {row["name"] for row in results(finished)["compared"]["strategies"]} == set(rows)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--strategies", "unifrom"], "got 'unifrom'"),
        (["--strategies", "a+b+c"], "got 'a+b+c'"),
        (
            ["--strategies", "random,uniform+ppo", "--evaluations", "10"],
            "--evaluations must be at least 11 for uniform+ppo, 9 for regrowth and 1 for each of its "
            "strategies, got 10; raise it, or leave uniform+ppo out of --strategies",
        ),
        (["--strategies", "regrowth", "--evaluations", "9"], "--evaluations must be at least 10 for regrowth"),
        (["--strategies", "regrowth+ppo", "--evaluations", "19"], "--evaluations must be at least 20 for regrowth+ppo"),
        (["--strategies", "random+greedy"], "needs a B that can start from candidates (ppo, ddpg, td3, sac"),
        (["--strategies", "uniform", "--budget", "flops=100%", "--budget", "params=100%"], "already holds"),
    ],
)
def test_a_mistake_is_one_sentence(
    tiny: Path, quick: None, tmp_path: Path, extra: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    line = [*arguments("compare", tiny, out), *extra] if "--budget" in extra else compare(tiny, out, *extra)
    assert main(line) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("strategies", "least"), [("uniform+ppo", "11"), ("regrowth+ppo", "20")])
def test_the_least_evaluations_suffice(tiny: Path, quick: None, tmp_path: Path, strategies: str, least: str) -> None:
    out = tmp_path / "run"
    assert main([*compare(tiny, out, "--strategies", strategies, "--seeds", "1"), "--evaluations", least]) == 0
    (row,) = results(out)["compared"]["strategies"]
    assert row["evaluations"] == [int(least)]


def test_what_a_warm_start_computes_counts(tiny: Path, quick: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--strategies", "regrowth+evolution", "--seeds", "1", "--evaluations", "40")
    assert main(compare(tiny, out, *words)) == 0
    with Journal.open(out / "journal.jsonl") as journal:
        computed = len(journal.records("evaluation")) + GAINS_COST * len(journal.records("gains"))
    assert computed <= 40


def test_a_comparison_is_no_warm_start(
    tiny: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--budget", "flops=50%", "--warm-start", str(finished)]
    assert main([*arguments("search", tiny, tmp_path / "run"), *words]) == 2
    assert f"--warm-start takes the folder of a search, got {finished}, a run of compare" in capsys.readouterr().err


def test_pictures_of_before_do_not_stay_where_a_comparison_is_extended(finished: Path) -> None:
    (finished / "correlation.png").write_bytes(b"of before")
    assert main(["compare", "--resume", str(finished)]) == 0
    assert not (finished / "correlation.png").exists()
    assert "with comparison.png, progress.png." in (finished / "run.log").read_text()


def test_resume_takes_only_what_extends(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--resume", str(finished), "--images", "8"]) == 2
    free = (
        "--strategies, --seeds, --criteria, --tracker, --report, --quiet, --verbose, --workers, --ship-data and --trust"
    )
    assert f"stands alone but for {free}" in capsys.readouterr().err


def test_an_outcome_is_read_back_equal() -> None:
    outcome = BenchmarkResult("ppo", 1, (8, 16), -0.1, 3, 1.5, (-0.3, -0.1), (Candidate((8, 16), -0.1),))
    assert BenchmarkResult.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (
            {"ppo": [-0.1, -0.2, -0.3], "knapsack": [-0.25]},
            "The agent wins by score (means): the best agent is ppo with -0.2000",
        ),
        (
            {"ppo": [-0.3], "knapsack+ddpg": [-0.2], "uniform": [-0.1]},
            "No agent wins by score (means): the best agent is knapsack+ddpg",
        ),
        ({"uniform": [-0.1]}, "No agent is compared"),
    ],
)
def test_the_verdict_says_whether_an_agent_wins(scores: dict[str, list[float]], said: str) -> None:
    rows = [Compared(name, [], [], {}, scores=values) for name, values in scores.items()]
    assert agents_verdict(rows, "mAP50-95").startswith(said)


@pytest.mark.parametrize(
    ("agent", "said"), [(0.5004, "No difference"), (0.61, "The agent wins"), (0.4, "No agent wins")]
)
def test_the_verdict_speaks_of_the_fine_tuned_networks_first_in_the_tables_digits(agent: float, said: str) -> None:
    rows = [
        Compared(name, [], [Metrics({"mAP50-95": value}, {})], {}, scores=[score])
        for name, value, score in (("ppo", agent, -0.3), ("uniform", 0.5, -0.2))
    ]
    verdict = agents_verdict(rows, "mAP50-95")
    assert verdict.startswith(f"{said} by fine-tuned mAP50-95 (means): the best agent is ppo with {agent:.3f}")
    assert "No agent wins by score (means)" in verdict


# -- criteria --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_criteria_differ_in_the_channels_alone(tiny: Path, quick: None, tmp_path: Path) -> None:
    out = tmp_path / "criteria"
    assert main(compare(tiny, out, "--criteria", "l1,random", "--finetune-epochs", "1")) == 0
    first = results(out)["compared"]["criteria"]
    assert {row["name"] for row in first} == {"l1", "random"}
    assert all(row["costs"]["flops"][0] <= 0.6 for row in first)
    assert len({row["scores"][0] for row in first}) == 2, "other channels stay"
    assert all(0 <= row["after"][0]["metrics"]["mAP50"] <= 1 and row["seconds"][0] >= 0 for row in first)
    assert (out / "comparison.png").stat().st_size > 0
    assert stages_of(out) == ["Open the network", "Measure the dense network", "Try every criterion"]
    assert main(["compare", "--resume", str(out), "--criteria", "l1,random,taylor"]) == 0
    extended = results(out)["compared"]["criteria"]
    assert {row["name"] for row in extended} == {"l1", "random", "taylor"}
    known = {row["name"]: row for row in extended}
    assert [known[row["name"]] for row in first] == first, "nothing is repeated"


def test_the_time_left_of_criteria_includes_their_fine_tunes(tiny: Path, tmp_path: Path) -> None:
    class Planning(SilentListener):
        work: Mapping[str, float]

        def stages(self, work: Mapping[str, float]) -> None:
            self.work = work

        def stage(self, name: str) -> None:
            raise ConfigError("enough heard")

    def planned(**options: int) -> Mapping[str, float]:
        heard, data = Planning(), tiny / "data" / "data.yaml"
        config = CompareConfig(
            model=tiny / "best.pt", data=data, budget=("flops=60%",), criteria="l1", out=tmp_path / "run", **options
        )
        with pytest.raises(ConfigError, match="enough heard"):
            run(config, heard, CALLER)
        return heard.work

    assert planned() == planned(finetune_epochs=DEFAULT_EPOCHS) != planned(finetune_epochs=0)


def test_a_criterion_that_there_is_none_of(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(compare(tiny, tmp_path / "none", "--criteria", "l1,tailor")) == 2
    assert "A criterion is one of l1, l2" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_reconstruction_is_a_step_after_any_criterion(tiny: Path, quick: None, tmp_path: Path) -> None:
    without, with_it = tmp_path / "without", tmp_path / "with"
    assert main(compare(tiny, without, "--criteria", "l1", "--no-reconstruct")) == 0
    assert main(compare(tiny, with_it, "--criteria", "l1")) == 0
    (plain,), (solved,) = (results(out)["compared"]["criteria"] for out in (without, with_it))
    assert solved["scores"] != plain["scores"]


@pytest.mark.slow
def test_priors_are_tried_under_the_corrected_limits(tiny: Path, quick: None, tmp_path: Path) -> None:
    out = tmp_path / "latency"
    line = [*arguments("compare", tiny, out), "--budget", "latency=80%", "--no-references", "--evaluations", "40"]
    assert main([*line, "--strategies", "evolution", "--seeds", "1"]) == 0
    order = [json.loads(text) for text in (out / "journal.jsonl").read_text().splitlines()]
    scored = next(place for place, record in enumerate(order) if record["kind"] == "evaluation")
    candidates = [place for place, record in enumerate(order) if record["kind"] == "latency" and _candidate(record)]
    assert candidates[0] < scored, "the uniform ratio is measured before any prior is scored"


def _candidate(record: dict[str, Any]) -> bool:
    """Return whether a measurement is that of a candidate: its key ends in a 2 behind the counts."""
    key = record["key"]
    return isinstance(key, list) and key[0] == "network" and key[1][-1] == 2
