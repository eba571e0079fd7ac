"""``autoprune search``, ``apply`` and ``train`` as a user runs them, small."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.cli.main import main
from autoprune.models import open_adapter
from autoprune.models._base import LossSum
from autoprune.policy import Policy
from autoprune.results import RESULT_VERSION
from tests.helpers.detectors import build, write_detector
from tests.helpers.world import SIZE, arguments, cut, stages_of, summary

pytestmark = pytest.mark.filterwarnings("ignore")


def search(world: Path, out: Path, *extra: str) -> list[str]:
    return arguments("search", world, out, "--episodes", "6", "--finalists", "2", *extra)


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search."""
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main(search(tiny, out, "--budget", "flops=50%", "--budget", "params=60%", "--finetune-epochs", "1")) == 0
    return out


@pytest.fixture(scope="module")
def fast(finished: Path, quick: None) -> None:
    """From here on latency is in closed form: one search of this file has measured it."""


def parameters(path: Path) -> int:
    return sum(parameter.numel() for parameter in open_adapter(path).module.parameters())


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    for name in ("config.yaml", "policy.json", "pruned.pt", "model.pt", "journal.jsonl", "summary.json", "tensorboard"):
        assert (finished / name).exists(), name
    found = summary(finished)
    assert found["version"] == RESULT_VERSION
    assert set(found) >= {"stages", "budget", "search", "environment", "uncounted_operations"}
    assert list(found.stages) == ["dense", "pruned", "finetuned"]
    for stage in found.stages:
        assert set(found["stages"][stage]["metrics"]) == {"mAP50-95", "mAP50"}
        assert set(found.stages[stage].costs) == {"params", "channels", "flops", "size", "memory"}
        assert set(found["stages"][stage]["speed_up"]) == {"params", "channels", "flops", "size", "memory", "latency"}
        assert found.stages[stage].cost("latency") > 0
        assert found.stages[stage].latencies["latency"].keys() >= {
            "median",
            "p10",
            "p90",
            "runs",
            "device",
            "runtime",
            "precision",
            "batch",
        }
    assert found["search"].keys() >= {
        "strategy",
        "evaluations",
        "cache_hits",
        "seconds",
        "seconds_per_evaluation",
        "best_score",
        "latency_prediction_error",
    }


def test_every_limit_is_held_by_what_was_saved(finished: Path) -> None:
    found = summary(finished)
    assert [row["metric"] for row in found["budget"]] == ["flops", "params"]
    assert all(row["satisfied"] and row["achieved"] <= row["limit"] for row in found["budget"])
    for name in ("pruned", "model"):
        stage = "finetuned" if name == "model" else "pruned"
        assert parameters(finished / f"{name}.pt") == found.stages[stage].cost("params")
        assert (finished / f"{name}.pt").stat().st_size == found.stages[stage].cost("size")


def test_the_policy_describes_the_network(finished: Path, tiny: Path) -> None:
    policy = Policy.load(finished / "policy.json")
    dense = open_adapter(tiny / "best.pt").module
    pruned = policy.apply(dense, data=tiny / "data" / "data.yaml", imgsz=SIZE)
    assert sum(p.numel() for p in pruned.parameters()) == summary(finished).stages["pruned"].cost("params")
    assert policy.budget == ("flops=50%", "params=60%")
    assert any(unit.keep < unit.channels for unit in policy.units)


@pytest.mark.slow
def test_stock_ultralytics_opens_the_result_without_autoprune(finished: Path, root: Path) -> None:
    code = (
        "import sys; sys.modules['autoprune'] = None\n"
        "from ultralytics import YOLO; import torch\n"
        "from ultralytics.nn.tasks import torch_safe_load\n"
        f"torch_safe_load({str(finished / 'model.pt')!r}, safe_only=True)\n"
        f"yolo = YOLO({str(finished / 'model.pt')!r})\n"
        f"yolo.predict(torch.rand(1, 3, {SIZE}, {SIZE}), imgsz={SIZE}, verbose=False)\n"
        "print(sum(p.numel() for p in yolo.model.parameters()))"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=finished, env=environment)
    assert done.returncode == 0, done.stderr
    assert summary(finished).stages["finetuned"].cost("params") >= int(done.stdout.split()[-1]) > 0


@pytest.mark.usefixtures("fast")
def test_the_same_seed_finds_the_same(finished: Path, tiny: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    limits = ("--budget", "flops=50%", "--budget", "params=60%")
    assert main(search(tiny, again, *limits)) == 0
    assert Policy.load(again / "policy.json").units == Policy.load(finished / "policy.json").units


def test_a_finished_run_resumes_to_the_same(finished: Path) -> None:
    before = summary(finished)
    torch.set_num_threads(1)  # as in another process, where torch would choose another number
    assert main(["search", "--resume", str(finished)]) == 0
    after = summary(finished)
    assert after["stages"] == before["stages"]
    assert after["search"]["best_score"] == before["search"]["best_score"]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "records", [pytest.param(4, marks=pytest.mark.slow), 14, pytest.param(30, marks=pytest.mark.slow)]
)
def test_killed_at_any_moment_a_latency_search_resumes_to_the_same_allocation(
    tiny: Path, tmp_path: Path, records: int
) -> None:
    """The journal of a whole run is cut after some records, torn as by ``kill -9``, and the run resumed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--budget", "flops=60%", "--no-tensorboard")
    assert main(search(tiny, whole, *options)) == 0
    assert main(["search", "--resume", str(cut(whole, killed, keep=records))]) == 0
    found, resumed = (Policy.load(out / "policy.json") for out in (whole, killed))
    assert resumed.units == found.units
    assert resumed.provenance.command == found.provenance.command, "it names the call that began the search"


@pytest.mark.slow  # a torn journal is resumed above, without a process of its own
def test_kill_9_and_resume(tiny: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--budget", "flops=60%", "--no-tensorboard")
    process = subprocess.Popen(
        [sys.executable, "-m", "autoprune", *search(tiny, killed, *options)], stdout=subprocess.DEVNULL
    )
    journal = killed / "journal.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and b'"kind": "evaluation"' in journal.read_bytes():
            break  # regrowth's candidates are being tried
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists()
    assert main(search(tiny, whole, *options)) == main(["search", "--resume", str(killed)]) == 0
    assert Policy.load(killed / "policy.json").units == Policy.load(whole / "policy.json").units


@pytest.mark.usefixtures("fast")
def test_a_budget_that_is_held_already_keeps_everything(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(search(tiny, out, "--budget", "flops=900G")) == 0
    assert all(unit.keep == unit.channels for unit in Policy.load(out / "policy.json").units)
    assert "already holds flops=900G" in capsys.readouterr().out
    assert parameters(out / "model.pt") == parameters(tiny / "best.pt")


@pytest.mark.usefixtures("fast")
def test_a_budget_out_of_reach_tells_the_minimum(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(search(tiny, tmp_path / "run", "--budget", "params=1%")) == 3
    said = capsys.readouterr().err
    assert "out of reach" in said
    assert "still needs" in said


def test_a_run_folder_that_exists_is_refused(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(search(tiny, tmp_path, "--budget", "flops=50%")) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_changed_configuration_is_not_resumed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "journal.jsonl").write_bytes((finished / "journal.jsonl").read_bytes())
    (copied / "config.yaml").write_text((finished / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    assert main(["search", "--resume", str(copied)]) == 2
    assert "was changed" in capsys.readouterr().err


def test_apply_and_train_take_the_policy(finished: Path, tiny: Path, tmp_path: Path) -> None:
    common = ["--policy", str(finished / "policy.json"), "--model", str(tiny / "best.pt"), "--device", "cpu"]
    common += ["--data", str(tiny / "data" / "data.yaml"), "--imgsz", str(SIZE), "--batch", "2", "--no-report"]
    assert main(["apply", *common, "--out", str(tmp_path / "applied")]) == 0
    assert stages_of(tmp_path / "applied") == ["Open the network", "Prune", "Measure the pruned network"]
    assert parameters(tmp_path / "applied" / "pruned.pt") == summary(finished).stages["pruned"].cost("params")
    assert main(["train", *common, "--epochs", "1", "--out", str(tmp_path / "trained")]) == 0
    trained = summary(tmp_path / "trained")
    assert trained.stages["finetuned"].cost("params") == summary(finished).stages["pruned"].cost("params")
    assert parameters(tmp_path / "trained" / "model.pt") == trained.stages["finetuned"].cost("params")


def test_apply_gives_the_network_that_the_search_pruned(finished: Path, tiny: Path, tmp_path: Path) -> None:
    words = ["--policy", str(finished / "policy.json"), "--model", str(tiny / "best.pt"), "--device", "cpu"]
    data = ["--data", str(tiny / "data" / "data.yaml"), "--imgsz", str(SIZE), "--images", "4", "--batch", "2"]
    assert main(["apply", *words, *data, "--no-report", "--out", str(tmp_path / "applied")]) == 0
    applied, pruned = (
        open_adapter(folder / "pruned.pt").module.state_dict() for folder in (tmp_path / "applied", finished)
    )
    for name, tensor in pruned.items():
        torch.testing.assert_close(applied[name], tensor, rtol=2e-3, atol=1e-5)


def test_a_policy_for_another_network_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_detector(tmp_path / "other.pt", build(16))
    options = ["--policy", str(finished / "policy.json"), "--model", str(other), "--out", str(tmp_path / "run")]
    assert main(["apply", *options]) == 2
    said = capsys.readouterr().err
    assert "in the policy" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("fast")
@pytest.mark.slow
def test_ctrl_c_prints_the_command_that_resumes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from autoprune.evaluation.evaluator import Evaluator

    original, calls = Evaluator._score, []

    def interrupted(self: Evaluator, allocation: tuple[int, ...]) -> float:
        calls.append(allocation)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return original(self, allocation)

    monkeypatch.setattr(Evaluator, "_score", interrupted)
    out = tmp_path / "run"
    assert main(search(tiny, out, "--budget", "flops=50%")) == 130
    assert f"autoprune search --resume {out}" in capsys.readouterr().err
    monkeypatch.setattr(Evaluator, "_score", original)
    assert main(["search", "--resume", str(out)]) == 0


@pytest.mark.usefixtures("fast")
def test_running_out_of_memory_halves_the_batch_and_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from autoprune.models.ultralytics import UltralyticsAdapter

    original = UltralyticsAdapter.loss_sum

    def scarce(self: Any, module: Any, batch: Any) -> LossSum:
        if len(self.inputs(batch)) > 1:
            raise torch.OutOfMemoryError
        return original(self, module, batch)

    monkeypatch.setattr(UltralyticsAdapter, "loss_sum", scarce)
    out = tmp_path / "run"
    assert main(search(tiny, out, "--budget", "flops=50%")) == 0
    assert "going on with 1" in capsys.readouterr().err


@pytest.mark.usefixtures("fast")
def test_a_loss_that_is_no_number_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from autoprune.models.ultralytics import UltralyticsAdapter

    monkeypatch.setattr(UltralyticsAdapter, "loss_sum", lambda *_: LossSum.of_mean(torch.tensor(float("nan")), 1))
    assert main(search(tiny, tmp_path / "run", "--budget", "flops=50%")) == 2
    assert "must be a positive number, got nan" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "nothing was found"
