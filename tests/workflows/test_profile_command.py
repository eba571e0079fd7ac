"""``autoprune profile`` as a user runs it, on the device in closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.cli.main import main
from autoprune.latency import LatencyMeter
from autoprune.latency.predictor import spearman
from autoprune.models import open_adapter
from autoprune.report.profile import SHOWN_WIDTHS, listed_widths
from tests.helpers.fake_backend import OVERHEAD, layer_law
from tests.helpers.world import SIZE, cut, one_sentence, records

CHECKED = 10
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick")]


def words(world: Path, out: Path, *extra: str) -> list[str]:
    """Return the words of the command on the world; of two same options the later one counts."""
    options = {"--model": str(world / "best.pt"), "--imgsz": str(SIZE), "--device": "cpu", "--threads": "1"}
    given = [word for option in options.items() if option[0] not in extra for word in option]
    return ["profile", *given, "--no-report", "--out", str(out), *extra]


@pytest.fixture(scope="module", autouse=True)
def _few() -> Iterator[None]:
    """A check of few networks: each is built and run once, which takes most of a test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoprune.workflows.profile.FRESH", CHECKED)
        yield


def content(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "profile.json").read_text()))


@pytest.fixture(scope="module")
def finished(quick: None, _few: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with ``--check``."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(words(tiny, out, "--check")) == 0
    return out


@pytest.fixture(scope="module")
def deployed(tiny: Path) -> nn.Module:
    adapter = open_adapter(tiny / "best.pt", image_size=SIZE)
    return adapter.deployable(adapter.module)


# -- what it finds -----------------------------------------------------------------------------------


def test_every_deployed_layer_has_its_time_and_all_shares_sum_to_one(finished: Path, deployed: nn.Module) -> None:
    found = content(finished)
    rows, (rest,) = found["layers"]["rows"], found["layers"]["rest"]
    assert found["layers"]["source"] == "measured alone"
    assert sum(row["share"] for row in rows) + rest["share"] == pytest.approx(1.0)
    modules = dict(deployed.named_modules())
    for row in rows:
        law = layer_law(modules[row["name"]], row["height"] * row["width"])  # type: ignore[arg-type]
        assert row["milliseconds"] == pytest.approx(law)
    left_out = {name for name, module in modules.items() if isinstance(module, nn.Conv2d)} - {r["name"] for r in rows}
    assert left_out == {name for name in left_out if "dfl" in name}  # its fixed bins are no layer of the graph
    assert rest["milliseconds"] == pytest.approx(OVERHEAD, abs=0.02)
    assert [row["share"] for row in rows] == sorted((row["share"] for row in rows), reverse=True)


def test_flops_are_those_that_torch_counts(finished: Path, deployed: nn.Module) -> None:
    layers = content(finished)["layers"]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        deployed(torch.zeros(1, 3, SIZE, SIZE))
    assert sum(row["flops"] for row in layers["rows"]) + layers["rest_flops"] == counter.get_total_flops()
    assert sum(row["flops_share"] for row in layers["rows"]) <= 1
    modules = dict(deployed.named_modules())
    for row in layers["rows"]:
        weights = modules[row["name"]].weight.numel()  # type: ignore[union-attr, operator]
        assert row["bytes"] > 4 * (weights + row["c_out"] * row["height"] * row["width"])


def test_the_dense_and_the_narrowest_network_are_measured(finished: Path) -> None:
    found = content(finished)
    dense, narrowest = (found["stages"][name]["latencies"]["latency"] for name in ("dense", "narrowest"))
    details = found["stages"]["narrowest"]["details"]
    for name, timing in (("dense", dense), ("narrowest", narrowest)):
        of_image = found["stages"][name]["details"]
        assert timing["p10"] <= timing["median"] <= timing["p90"]
        assert timing["runs"] >= 10
        assert of_image["image"] == timing["median"]
        assert of_image["images_per_second"] == pytest.approx(1e3 / timing["median"])
    factors = found["stages"]["narrowest"]["speed_up"]
    assert min(factors.values()) > 1
    assert narrowest["median"] == pytest.approx(dense["median"] / factors["latency"])
    lowest = {one["unit"]: one["widths"][0] for one in found["staircases"]}
    assert {name: details["keep"][name] for name in lowest} == lowest
    assert list(details["keep"]) == found["units"]


def test_staircases_rise_to_the_dense_network(finished: Path) -> None:
    found = content(finished)
    assert found["staircases"]
    for one in found["staircases"]:
        assert one["widths"] == sorted(one["widths"])
        assert all(width % 8 == 0 for width in one["widths"][:-1])
        for curve in (one["predicted"], one["measured"]):
            assert (np.diff(curve) >= 0).all()
            assert curve[-1] == pytest.approx(found["stages"]["dense"]["latencies"]["latency"]["median"])
        assert sorted(one["worth"] + one["free"]) == one["widths"]
    ranges = [one["range"] for one in found["staircases"]]
    assert ranges == sorted(ranges, reverse=True)


def test_the_check_is_made_on_networks_that_were_not_measured_before(finished: Path) -> None:
    predictor = content(finished)["predictor"]
    by_role: dict[str, list[dict[str, Any]]] = {}
    for network in predictor["networks"]:
        by_role.setdefault(network["role"], []).append(network)
    fresh = by_role["fresh"]
    before = [tuple(network["keep"]) for role in ("fitted", "held_out") for network in by_role[role]]
    assert len(fresh) == predictor["check"]["n"] == CHECKED
    assert not {tuple(network["keep"]) for network in fresh} & set(before)
    assert len({tuple(network["keep"]) for network in fresh}) == CHECKED
    measured = {tuple(record["key"][1][1:]) for record in records(finished, "latency") if is_fresh(record)}
    assert measured == {tuple(network["keep"]) for network in fresh}
    predicted, times = (np.array([network[key] for network in fresh]) for key in ("predicted", "measured"))
    off = np.abs(predicted - times) / times
    assert predictor["check"]["median_abs_rel"] == pytest.approx(float(np.median(off)))
    assert predictor["check"]["p90_abs_rel"] == pytest.approx(float(np.percentile(off, 90)))
    assert predictor["check"]["spearman"] == pytest.approx(spearman(predicted, times))
    assert predictor["check"]["median_abs_rel"] < 0.05  # the law is close to what the predictor can express


def is_fresh(record: dict[str, Any]) -> bool:
    key = record["key"]
    return isinstance(key, list) and key[0] == "network" and key[1][0] == "fresh"


def test_the_error_held_out_is_that_of_the_held_out_networks(finished: Path) -> None:
    predictor = content(finished)["predictor"]
    held_out = [network for network in predictor["networks"] if network["role"] == "held_out"]
    off = [abs(one["predicted"] - one["measured"]) / one["measured"] for one in held_out]
    assert predictor["held_out"]["n"] == len(held_out)
    assert predictor["held_out"]["median_abs_rel"] == pytest.approx(float(np.median(off)))


def test_the_file_says_what_was_measured(finished: Path) -> None:
    found = content(finished)
    assert set(found) == {
        "version",
        "command",
        "title",
        "metric_names",
        "stages",
        "budget",
        "compared",
        "model",
        "runtime",
        "environment",
        "layers",
        "staircases",
        "predictor",
        "units",
    }
    assert set(found["model"]) == {"name", "image_size"}
    assert set(found["stages"]["dense"]["costs"]) == {"flops", "params", "size", "memory", "channels"}
    assert found["model"]["name"] == "best"
    assert found["model"]["image_size"] == SIZE
    assert (found["runtime"]["runtime"], found["runtime"]["device"], found["runtime"]["threads"]) == ("torch", "cpu", 1)
    assert all(math.isfinite(row["share"]) for row in found["layers"]["rows"])
    for name in ("layers.png", "staircase.png", "predicted.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


# -- how it is told ----------------------------------------------------------------------------------


def test_a_killed_run_ends_with_the_same_files(finished: Path, tmp_path: Path) -> None:
    """The journal is cut off within a record, as by ``kill -9``."""
    lines = len((finished / "journal.jsonl").read_bytes().splitlines())
    killed = cut(finished, tmp_path / "killed", keep=lines // 2)
    assert main(["profile", "--resume", str(killed)]) == 0
    for name in ("profile.json", "layers.png", "staircase.png", "predicted.png"):
        assert (killed / name).read_bytes() == (finished / name).read_bytes()


def test_what_layers_cannot_tell_alone_is_modelled_and_said_so(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LatencyMeter, "layers_alone", property(lambda _: False))
    monkeypatch.setattr("autoprune.workflows.profile.BUSY", 0.5)
    assert main(words(tiny, tmp_path / "run", "--runtime-batch", "4")) == 0
    found = content(tmp_path / "run")
    layers = found["layers"]
    assert layers["source"] == "modelled"
    assert sum(row["share"] for row in [*layers["rows"], *layers["rest"]]) == pytest.approx(1.0)
    assert all(one["measured"] is None for one in found["staircases"])
    median, details = (found["stages"]["dense"][name] for name in ("latencies", "details"))
    median = median["latency"]["median"]
    assert details["image"] == pytest.approx(median / 4)
    assert details["images_per_second"] == pytest.approx(4e3 / median)
    assert found["predictor"]["check"] is None
    assert {network["role"] for network in found["predictor"]["networks"]} == {"fitted", "held_out"}
    said, warned = capsys.readouterr()
    assert "The machine is busy: the dense network took" in one_sentence(warned)
    assert "shares modelled from each layer's work" in said
    assert "batch 4" in said
    assert "15 of" not in said  # the table says how many more there are instead
    assert f"{len(layers['rows']) - 15} more layers" in said


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--model", "nowhere.pt"], "nowhere.pt"),
        (["--precision", "int8"], "--precision int8 needs --data"),
        (["--runtime", "abacus"], "--runtime must be one of"),
        (["--min-keep", "1.0"], "No unit can be pruned with --min-keep 1.0"),
        (["--runtime", "cudagraph"], "The runtime cudagraph runs on cuda, got --device cpu"),
        (["--imgsz", "50"], "--imgsz must be a multiple of 32"),
    ],
)
def test_bad_input_is_one_sentence(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], said: str
) -> None:
    assert main(words(tiny, tmp_path / "run", *extra)) == 2
    assert said in one_sentence(capsys.readouterr().err)


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_bundled_detector_is_profiled_without_drawing_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoprune.workflows.run.shapes_dataset", lambda: pytest.fail("images are drawn"))
    monkeypatch.setattr("autoprune.workflows.latency.LatencyEstimator.stage", interrupted)
    assert main(["profile", "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "run")]) == 130


def test_ctrl_c_prints_the_command_that_resumes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autoprune.workflows.latency.LatencyEstimator.stage", interrupted)
    assert main(words(tiny, tmp_path / "run")) == 130
    assert f"autoprune profile --resume {tmp_path / 'run'}" in capsys.readouterr().err


def test_many_widths_are_listed_by_the_first_and_the_last() -> None:
    assert listed_widths([16, 32, 64]) == "16 32 64"
    many = listed_widths(range(8, 264, 8)).split()
    assert len(many) <= SHOWN_WIDTHS + 1
    assert (many[0], many[-1], many.count("…")) == ("8", "256", 1)
