"""``autoprune netadapt`` as a user runs it, small."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.cli.main import main
from autoprune.evaluation.evaluator import WORST_SCORE, Evaluator
from autoprune.journal import Journal
from autoprune.models import open_adapter
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.policy import Policy
from autoprune.report.page import reports_of
from autoprune.statistics.moments import collect_moments
from autoprune.structure.space import Allocation
from autoprune.workflows.network import Network
from tests.helpers.board import fake_board
from tests.helpers.world import arguments, one_sentence, open_world, records, summary, write_world

STEP, DECAY = 0.08, 0.96
LEVELS = ("flops=85%", "flops=70%")
STEPWISE = ("--budget", "flops=85%,70%", "--initial-step", str(STEP), "--short-term-steps", "1")
COARSE = ("--initial-step", "0.3", "--short-term-steps", "0")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick")]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """As the commands here compute: sums are the same to the last bit then."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Finished:
    """A run with what it said."""

    path: Path
    said: str


def netadapt(world: Path, out: Path, *extra: str) -> int:
    return main(arguments("netadapt", world, out, *extra))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def family(quick: None, tiny: Path, runs: Path) -> Path:
    """A run with two levels and short fine-tunes."""
    assert netadapt(tiny, runs / "family", *STEPWISE) == 0
    return runs / "family"


@pytest.fixture(scope="module")
def untuned(quick: None, tiny: Path, runs: Path) -> Path:
    """A run with combined limits and without any training, scored in float32 so that its scores can be repeated."""
    limits = ("--budget", "flops=80%", "--budget", "params=65%")
    assert netadapt(tiny, runs / "untuned", *COARSE, *limits, "--no-bf16") == 0
    return runs / "untuned"


@pytest.fixture(scope="module")
def thrifty(quick: None, tiny: Path, runs: Path) -> Path:
    """A run that keeps what loses least per cost saved, without any training, so that all images may score."""
    options = ("--budget", "params=80%", "--select", "accuracy-per-resource", "--images", "6")
    assert netadapt(tiny, runs / "thrifty", *COARSE, *options) == 0
    return runs / "thrifty"


@pytest.fixture(scope="module")
def network(quick: None, tiny: Path) -> Network:
    return open_world(tiny)


def iterations(run: Path) -> list[Policy]:
    return [Policy.load(file) for file in sorted((run / "iterations").glob("*.json"))]


def allocation(policy: Policy) -> Allocation:
    return tuple(unit.keep for unit in policy.units)


def walk(run: Path, network: Network) -> list[Allocation]:
    """The dense allocation and that of every iteration."""
    return [network.space.allocation(network.space.dense), *map(allocation, iterations(run))]


def pruned_unit(before: Allocation, after: Allocation) -> int:
    (unit,) = np.flatnonzero(np.array(before) != np.array(after))
    assert after[unit] < before[unit]
    return int(unit)


def evaluator(network: Network, folder: Path) -> Evaluator:
    journal = Journal.create(folder / "journal.jsonl", {})
    return Evaluator(network.adapter, network.pruner, images=4, batch=2, seed=0, journal=journal, compensate=True)


# -- iterations --------------------------------------------------------------------------------------


def test_every_iteration_prunes_one_unit_and_leaves_a_network_and_a_policy(family: Path, network: Network) -> None:
    found = iterations(family)
    assert len(found) >= 3
    for before, after in pairwise(walk(family, network)):
        pruned_unit(before, after)
    for number, policy in enumerate(found, start=1):
        module = open_adapter(family / "iterations" / f"{number:03}.pt").module
        assert sum(weight.numel() for weight in module.parameters()) == policy.costs["params"].value
    applied = found[-1].apply(network.adapter.module, data=network.adapter).state_dict()
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
        name: tensor.shape for name, tensor in applied.items()
    }
    assert len(list((family / "iterations").iterdir())) == 2 * len(found)


def test_every_iteration_saves_what_was_asked_until_a_level_is_reached(family: Path, network: Network) -> None:
    cost = network.static_costs["flops"]
    dense = float(cost(network.space.dense))
    steps = [float(cost(np.array(counts))) for counts in walk(family, network)]
    limits = [dense * share for share in (0.85, 0.7)]
    for index, (before, after) in enumerate(pairwise(steps)):
        limit = max(limit for limit in limits if limit < before)
        assert before - after >= min(dense * STEP * DECAY**index, before - limit) * (1 - 1e-9)
    assert steps[-1] <= limits[-1]


def test_every_step_prunes_no_more_than_it_must(family: Path, network: Network) -> None:
    """One choice wider, the pruned unit would save too little; at a level's end, it would break the level."""
    cost = network.static_costs["flops"]
    dense, space = float(cost(network.space.dense)), network.space
    limits = [dense * share for share in (0.85, 0.7)]
    for index, (before, after) in enumerate(pairwise(walk(family, network))):
        unit = pruned_unit(before, after)
        wider = np.array(after)
        wider[unit] = space.next_up(wider, unit)
        start, end, saved_less = (float(cost(np.array(counts))) for counts in (before, after, wider))
        limit = max(limit for limit in limits if limit < start)
        assert start - saved_less < min(dense * STEP * DECAY**index, start - limit)
        if end <= limit:
            assert saved_less > limit


# -- levels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_is_held_by_what_lies_in_its_folder(family: Path, level: str) -> None:
    folder = family / "levels" / level
    found, policy = summary(folder), Policy.load(folder / "policy.json")
    (row,) = found["budget"]
    assert row["requested"] == level
    assert row["satisfied"]
    assert row["achieved"] <= row["limit"]
    assert (policy.budget, policy.provenance.strategy) == ((level,), "netadapt")
    assert policy.costs["flops"].value == row["achieved"]
    for name in ("pruned.pt", "model.pt"):
        module = open_adapter(folder / name).module
        assert sum(weight.numel() for weight in module.parameters()) == found.stages["pruned"].cost("params")
        assert (folder / name).stat().st_size == found.stages["pruned"].cost("size")


def test_the_levels_are_stations_of_one_descent(family: Path) -> None:
    walked = [allocation(policy) for policy in iterations(family)]
    places = [walked.index(allocation(Policy.load(family / "levels" / level / "policy.json"))) for level in LEVELS]
    assert places == sorted(set(places))
    assert places[-1] == len(walked) - 1
    assert not (family / "policy.json").exists()


def test_the_summary_tells_what_it_took(family: Path, untuned: Path) -> None:
    found = summary(family / "levels" / LEVELS[-1])["search"]
    done = [record["value"] for record in records(family, "iteration")]
    assert found["strategy"] == "netadapt"
    assert found["iterations"] == len(done) == len(iterations(family))
    assert found["evaluations"] == sum(value["evaluations"] for value in done)
    assert len(done) < found["short_fine_tunes"] == sum(min(3, value["evaluations"]) for value in done)
    assert found["best_score"] == done[-1]["score"]
    assert summary(untuned)["search"]["short_fine_tunes"] == 0


def test_one_level_lies_in_the_run_folder_and_combined_limits_hold_together(untuned: Path) -> None:
    rows = summary(untuned)["budget"]
    assert [row["metric"] for row in rows] == ["flops", "params"]
    assert all(row["satisfied"] for row in rows)
    assert {"policy.json", "pruned.pt", "model.pt"} <= {file.name for file in untuned.iterdir()}
    assert not (untuned / "levels").exists()
    before = iterations(untuned)[-2].costs
    assert any(before[row["metric"]].value > row["limit"] for row in rows)


def test_a_level_that_the_dense_network_holds_keeps_everything(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert netadapt(tiny, out, *COARSE, "--budget", "flops=900G,90%") == 0
    assert "The dense network already holds flops=900G" in capsys.readouterr().out
    first, second = (Policy.load(out / "levels" / name / "policy.json") for name in ("flops=900G", "flops=90%"))
    assert all(unit.keep == unit.channels for unit in first.units)
    assert any(unit.keep < unit.channels for unit in second.units)
    assert summary(out / "levels" / "flops=900G")["budget"][0]["satisfied"]


def test_levels_of_a_board_lie_next_to_each_other_in_folders_that_any_file_system_has(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address has slashes and a colon in it."""
    out = tmp_path / "run"
    with fake_board(tmp_path / "board", monkeypatch) as board:
        budget = f"latency@{board.url}/onnxruntime=9s,8s"
        assert netadapt(tiny, out, *COARSE, "--budget", budget) == 0
    assert sorted(path.name for path in (out / "levels").iterdir()) == [
        f"latency@ssh-me@board-onnxruntime={amount}" for amount in ("8s", "9s")
    ]
    assert [report.folder.parent for report in reports_of(out)] == [out / "levels"] * 2


@pytest.mark.slow
def test_latency_levels_are_held_as_measured(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert netadapt(tiny, out, *COARSE, "--budget", "latency=90%,80%") == 0
    for share, level in ((0.9, "latency=90%"), (0.8, "latency=80%")):
        found, policy = summary(out / "levels" / level), Policy.load(out / "levels" / level / "policy.json")
        assert found.stages["pruned"].cost("latency") <= share * found.stages["dense"].cost("latency")
        assert policy.costs["latency"].value == pytest.approx(found.stages["pruned"].cost("latency"))
        assert found["search"]["latency_prediction_error"]["n"] > 0


# -- scores and weights ------------------------------------------------------------------------------


def test_an_untuned_score_is_that_of_the_network_that_is_kept(untuned: Path, network: Network, tmp_path: Path) -> None:
    """The first one also that of the allocation; later ones differ from it: channels are ranked anew in between."""
    plain = evaluator(network, tmp_path)
    for number, policy in enumerate(iterations(untuned), start=1):
        module = open_adapter(untuned / "iterations" / f"{number:03}.pt").module
        assert policy.score == pytest.approx(plain.score(module), abs=1e-5)
        weight = module.state_dict()["model.0.conv.weight"]  # reads the image, so that nothing is compensated
        assert torch.isin(weight, network.adapter.module.state_dict()["model.0.conv.weight"]).all()
    first = iterations(untuned)[0]
    assert first.score == pytest.approx(plain([allocation(first)])[0].score, abs=1e-6)


def test_a_tuned_score_is_that_of_the_network_that_is_kept(family: Path, network: Network, tmp_path: Path) -> None:
    plain = evaluator(network, tmp_path)
    for number, policy in enumerate(iterations(family), start=1):
        module = open_adapter(family / "iterations" / f"{number:03}.pt").module
        assert policy.score == pytest.approx(plain.score(module), abs=2e-3)  # the file has half precision


def test_the_network_carries_its_weights_from_step_to_step(family: Path, network: Network) -> None:
    """No iteration starts from the dense weights again, and the level ships what its last iteration left."""
    name, dense = "model.0.conv.weight", network.adapter.module.state_dict()
    steps = [
        open_adapter(family / "iterations" / f"{number:03}.pt").module.state_dict()
        for number in range(1, len(iterations(family)) + 1)
    ]
    moved = [
        float(torch.norm(weights[name] - dense[name])) for weights in steps if weights[name].shape == dense[name].shape
    ]
    assert moved[0] > 0
    assert moved[-1] > moved[0]
    shipped = open_adapter(family / "levels" / LEVELS[-1] / "pruned.pt").module
    for key, parameter in shipped.named_parameters():
        assert torch.equal(parameter, steps[-1][key]), key


def test_the_highest_score_wins(untuned: Path) -> None:
    scored = {tuple(record["key"]): record["value"]["score"] for record in records(untuned, "netadapt 1")}
    assert len(scored) > 1
    assert allocation(iterations(untuned)[0]) == max(scored, key=lambda key: scored[key])


def test_the_least_loss_per_cost_wins_where_that_is_asked(thrifty: Path, network: Network) -> None:
    cost = network.static_costs["params"]
    dense = float(cost(network.space.dense))
    scored = {
        tuple(record["key"]): record["value"]["score"] / (dense - float(cost(np.array(record["key"]))))
        for record in records(thrifty, "netadapt 1")
    }
    assert len(scored) > 1
    assert allocation(iterations(thrifty)[0]) == max(scored, key=lambda key: scored[key])
    assert summary(thrifty)["budget"][0]["satisfied"]


def test_a_long_fine_tune_follows(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert netadapt(tiny, out, *COARSE, "--budget", "flops=90%", "--finetune-epochs", "1") == 0
    found = summary(out)
    assert found.stages["finetuned"].cost("params") == found.stages["pruned"].cost("params")
    pruned, model = (open_adapter(out / name).module.state_dict() for name in ("pruned.pt", "model.pt"))
    assert not torch.equal(pruned["model.0.conv.weight"], model["model.0.conv.weight"])


def test_images_are_read_once_and_warnings_come_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every iteration has an evaluator of its own."""
    world = write_world(tmp_path)
    next((world / "data" / "images" / "train").iterdir()).write_bytes(b"no image")
    read: list[Any] = []
    batches = UltralyticsAdapter.batches

    def counted(self: UltralyticsAdapter, split: str, **options: Any) -> Any:
        read.append((split, options["images"]))
        return batches(self, split, **options)

    monkeypatch.setattr(UltralyticsAdapter, "batches", counted)
    monkeypatch.setattr("autoprune.evaluation.evaluator.collect_moments", partial(collect_moments, limit=0))
    assert netadapt(world, tmp_path / "run", *COARSE, "--initial-step", "0.1", "--budget", "flops=80%") == 0
    assert len(iterations(tmp_path / "run")) > 1
    said = capsys.readouterr().err
    assert said.count("Skipped ") == said.count("Compensation leaves out ") == 1
    assert read.count(("train", 4)) == 1


# -- interruptions and mistakes ----------------------------------------------------------------------


@pytest.mark.slow
def test_kill_9_and_resume(tiny: Path, family: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "autoprune", *arguments("netadapt", tiny, out, *STEPWISE)], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (out / "journal.jsonl").exists() and b'"kind": "netadapt 2"' in (out / "journal.jsonl").read_bytes():
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(records(out, "iteration")) < len(records(family, "iteration"))
    assert main(["netadapt", "--resume", str(out)]) == 0
    assert list(map(allocation, iterations(out))) == list(map(allocation, iterations(family)))
    for level in LEVELS:
        first, second = (summary(run / "levels" / level) for run in (out, family))
        assert first["search"]["best_score"] == pytest.approx(second["search"]["best_score"], abs=1e-6)
        for key in ("iterations", "evaluations", "short_fine_tunes"):
            assert first["search"][key] == second["search"][key]


def test_a_finished_run_resumes_to_the_same_without_scoring_anything(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = summary(family / "levels" / LEVELS[-1])
    monkeypatch.setattr(Evaluator, "_score", lambda *_: pytest.fail("scored again"))
    monkeypatch.setattr(
        "autoprune.workflows.netadapt_steps.train_briefly", lambda *_, **__: pytest.fail("trained again")
    )
    assert main(["netadapt", "--resume", str(family)]) == 0
    after = summary(family / "levels" / LEVELS[-1])
    for found in (before, after):
        del found["search"]["seconds"]
    assert after == before


def test_all_proposals_are_tuned_where_that_is_asked_and_one_that_breaks_down_loses(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, trained = UltralyticsAdapter.loss, []

    def breaking(self: UltralyticsAdapter, module: Any, batch: Any) -> torch.Tensor:
        loss = original(self, module, batch)
        trained.append(sum(weight.numel() for weight in module.parameters()))
        return loss * float("nan") if len(trained) == 1 else loss

    monkeypatch.setattr(UltralyticsAdapter, "loss", breaking)
    out = tmp_path / "run"
    options = ("--short-term-steps", "1", "--shortlist", "0", "--initial-step", "0.05", "--budget", "flops=95%")
    assert netadapt(tiny, out, *options) == 0
    said = one_sentence(capsys.readouterr().err)
    assert said.startswith(
        "A proposal drops out: the training loss is not a number in step 1 of a short fine-tune (nan"
    )
    assert said.endswith("; lower --lr-scale.")
    found = summary(out)["search"]
    assert found["short_fine_tunes"] == found["evaluations"] == len(trained) > 3
    first = iterations(out)[0]
    assert first.costs["params"].value != trained[0]
    assert first.score is not None
    assert first.score > WORST_SCORE


def test_without_images_to_train_on_it_says_so_before_anything_is_measured(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert netadapt(tiny, out, "--budget", "flops=80%", "--images", "6") == 2
    said = one_sentence(capsys.readouterr().err)
    assert "need training images besides the 6 that score candidates" in said
    assert "--short-term-steps 0" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (["flops=70%,80%"], "Each level must be below the one before, got flops=80% after flops=70%"),
        (["flops=80%,80%"], "Each level must be below the one before"),
        (["flops=80%,70%", "params=80%,70%"], "Only one limit may list several levels, got flops and params"),
        (["flops=80%,70%", "flops=60%"], "A budget limits each metric once"),
        (["flops=80%,"], "'' is not a number"),
        (["flops=50%,900G,40%"], "on this network flops=900G (900.00 G) is not below flops=50% ("),
    ],
)
def test_levels_that_contradict_each_other_are_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: list[str], said: str
) -> None:
    words = [word for limit in budget for word in ("--budget", limit)]
    assert netadapt(tiny, tmp_path / "run", *words) == 2
    assert said in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", ["params=1%", "params=90%,1%"])
def test_out_of_reach_is_told_before_the_first_step(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: str
) -> None:
    out = tmp_path / "run"
    assert netadapt(tiny, out, *COARSE, "--budget", budget) == 3
    said = one_sentence(capsys.readouterr().err)
    assert "out of reach" in said
    assert "still needs" in said
    assert iterations(out) == []
