"""The latency limits of a budget: what is measured decides, and moves what candidates are held to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from autoprune.cli.main import main
from autoprune.policy import Policy
from autoprune.workflows.latency_constraints import MARGIN, LatencyConstraints
from tests.helpers.world import arguments, one_sentence, records, summary

LIMITS = {"latency": 10.0, "latency@openvino": 6.0}


def latency_constraints(limits: Mapping[str, float] = LIMITS) -> LatencyConstraints:
    return LatencyConstraints(dict.fromkeys(limits), limits)  # type: ignore[arg-type]  # nothing is measured here


# -- what candidates are held to ---------------------------------------------------------------------


def test_other_metrics_are_no_latency_goals() -> None:
    assert not LatencyConstraints({}, {"flops": 1e9})
    assert set(LatencyConstraints({"latency": None}, {"flops": 1e9, "latency": 8.0}).limits) == {"latency"}  # type: ignore[dict-item]


def test_the_limit_that_binds_says_what_is_unused() -> None:
    aims = latency_constraints()
    target = {metric: limit * (1 - MARGIN) for metric, limit in LIMITS.items()}
    assert aims.within(target)
    assert aims.spent(target)
    assert aims.unused({"latency": target["latency"] * 0.5, "latency@openvino": target["latency@openvino"]}) == 0
    assert not aims.spent({metric: value * 0.9 for metric, value in target.items()})
    assert not aims.within({**target, "latency@openvino": target["latency@openvino"] * 1.001})


# -- in a search -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_two_runtimes_at_once_are_both_measured_and_held(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    budget = ("--budget", "latency=80%", "--budget", "latency@onnxruntime=75%")
    assert main(arguments("search", tiny, out, "--episodes", "6", *budget)) == 0
    found = summary(out)
    assert [row["metric"] for row in found["budget"]] == ["latency", "latency@onnxruntime"]
    assert all(row["satisfied"] for row in found["budget"])
    assert found.stages["pruned"].latencies["latency@onnxruntime"]["runtime"] == "onnxruntime"
    assert set(found["search"]["latency_prediction_error"]) == {"latency", "latency@onnxruntime"}
    assert {"latency", "latency@onnxruntime"} <= set(Policy.load(out / "policy.json").costs)
    assert records(out, "latency@onnxruntime"), "each has measurements of its own in the journal"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("latency@tensorflow=8ms", "A latency is measured on a runtime (torch, "),
        ("flops@cpu=50%", "Only latency and energy are measured on a runtime or device, as in latency@openvino=8ms"),
        ("latency@=8ms", "Only latency and energy are measured on a runtime or device, as in latency@openvino=8ms"),
        ("latency@cuda=8ms", "The device cuda was asked for, but torch"),
        ("latency@openvino=8h", "latency@openvino= with 8ms, 0.008s, 8000us or 60%"),
    ],
)
def test_a_target_that_is_none_is_refused_in_one_sentence(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: str, said: str
) -> None:
    if budget == "latency@cuda=8ms" and torch.cuda.is_available():
        pytest.skip("there is a GPU here: the target is one, and nothing is refused")
    assert main(arguments("search", tiny, tmp_path / "run", "--budget", budget)) == 2
    assert said in one_sentence(capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_tail_is_judged_by_the_candidates_own(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments("search", tiny, out, "--episodes", "4", "--budget", "latency@p95=85%")) in (0, 3)
    (row,), found = summary(out)["budget"], summary(out)
    assert row["achieved"] == found.stages["pruned"].latencies["latency@p95"]["p95"]
    assert row["dense"] == found.stages["dense"].latencies["latency@p95"]["p95"]
    assert row["satisfied"] == (row["achieved"] <= row["limit"])


@pytest.mark.skipif(sys.platform == "win32", reason="wc")
@pytest.mark.usefixtures("quick")
def test_a_search_holds_a_budget_by_what_a_command_prints(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints the bytes of the network's file, which is known exactly."""
    out = tmp_path / "run"
    command = ("--runtime-command", "wc -c {torchscript}", "--runtime-pattern", r"^\s*(\d+)")
    assert main(arguments("search", tiny, out, "--episodes", "4", "--budget", "latency=80%", *command)) == 0
    found = summary(out)
    pruned, dense = (found.stages[name].latencies["latency"] for name in ("pruned", "dense"))
    assert (dense["runtime"], dense["p10"]) == ("command", dense["p90"]), "a file has one size"
    assert 0.7 < pruned["median"] / dense["median"] <= 0.8
    assert found["environment"]["command"]["text"] == "wc -c {torchscript}"
    capsys.readouterr()
    assert main(arguments("search", tiny, tmp_path / "tail", "--budget", "latency@p95=80%", *command)) == 2
    assert "needs the times of single runs" in capsys.readouterr().err
