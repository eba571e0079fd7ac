"""Commands at an image size that is no square: both numbers in whatever they write, and the same after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import autoprune as ap
from autoprune.cli.main import main
from autoprune.latency import LatencyMeter
from autoprune.models import open_adapter
from tests.helpers.world import arguments, cut, records, summary

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick")]

SIZE = (64, 96)
IMGSZ = ("--imgsz", "64,96")

OPEN = """
import json, sys
import numpy as np
from ultralytics import YOLO
model = YOLO(sys.argv[1], task="detect")
metrics = model.val(data=sys.argv[2], device="cpu", plots=False, verbose=False, project=sys.argv[3])
model.predict(np.zeros((300, 200, 3), np.uint8), verbose=False, save=False)
print(json.dumps({"map": metrics.box.map, "imgsz": list(model.predictor.imgsz)}))
"""


@pytest.fixture(scope="module")
def run(quick: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ("--budget", "flops=60%", "--episodes", "4", "--finetune-epochs", "1")
    assert main(arguments("search", tiny, out, *IMGSZ, *options)) == 0
    return out


def test_a_search_measures_and_keeps_both_sides(run: Path, tiny: Path) -> None:
    assert "imgsz: [64, 96]\n" in (run / "config.yaml").read_text()
    assert summary(run)["budget"][0]["satisfied"]
    flops = [summary(run)["stages"]["dense"]["costs"]["flops"]]
    for size in (SIZE, 96):
        network = ap.load(tiny / "best.pt", data=tiny / "data" / "data.yaml", imgsz=size, device="cpu")
        flops.append(network.costs()["flops"])
    assert flops[0] == flops[1] == pytest.approx(flops[2] * 64 / 96, rel=0.01)
    assert open_adapter(run / "model.pt").image_size == SIZE
    assert "best at 64x96 px" in (run / "run.log").read_text()


def test_a_killed_search_ends_the_same(run: Path, tmp_path: Path) -> None:
    count = len((run / "journal.jsonl").read_text().splitlines())
    killed = cut(run, tmp_path / "killed", keep=count - 3)
    assert main(["search", "--resume", str(killed)]) == 0
    assert ap.Policy.load(killed / "policy.json").keep == ap.Policy.load(run / "policy.json").keep
    assert records(killed, "evaluation") == records(run, "evaluation")


def test_stock_opens_the_exported_result(run: Path, tiny: Path, tmp_path: Path) -> None:
    data = str(tiny / "data" / "data.yaml")
    words = ["--model", str(run / "model.pt"), "--data", data, "--format", "torchscript", "--device", "cpu"]
    assert main(["export", *words, "--no-report", "--out", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "export.json").read_text())
    assert found["image_size"] == list(SIZE), "as the model was trained"
    assert " at 64x96 px, " in found["title"]
    file = str(tmp_path / "run" / found["file"])
    done = subprocess.run(
        [sys.executable, "-c", OPEN, file, data, str(tmp_path / "val")], capture_output=True, text=True, check=True
    )
    stock: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert stock["imgsz"] == list(SIZE)
    assert found["stages"]["torchscript"]["metrics"]["mAP50-95"] == pytest.approx(stock["map"], abs=1e-6)


def test_python_takes_a_pair(run: Path, tiny: Path, tmp_path: Path) -> None:
    network = ap.load(tiny / "best.pt", data=tiny / "data" / "data.yaml", imgsz=SIZE, device="cpu")
    assert network.imgsz == list(SIZE)
    assert "best at 64x96 px on cpu" in repr(network)
    assert network.latency("torch", threads=1).median > 0
    small = ap.Policy.load(run / "policy.json").apply(network)
    assert small.imgsz == list(SIZE)
    again = ap.sensitivity(
        network.path, data=network.data, imgsz=SIZE, images=2, batch=2, ratios="0.5", device="cpu", out=tmp_path / "run"
    )
    assert "64x96 px" in str(again.summary)
    with pytest.raises(ap.ConfigError, match=r"`imgsz` must be a whole number of pixels .* got 64,96,3"):
        ap.sensitivity(network.path, data=network.data, imgsz=(64, 96, 3), out=tmp_path / "other")


def test_a_profile_measures_both_sides(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, whole = set(), LatencyMeter.__init__

    def init(meter: LatencyMeter, module: Any, settings: Any, *args: Any, **options: Any) -> None:
        shapes.add(settings.shape)
        whole(meter, module, settings, *args, **options)

    monkeypatch.setattr(LatencyMeter, "__init__", init)
    words = ["--model", str(tiny / "best.pt"), *IMGSZ, "--device", "cpu", "--threads", "1"]
    assert main(["profile", *words, "--no-report", "--out", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert found["model"]["image_size"] == list(SIZE)
    assert shapes == {(1, 3, *SIZE)}
    assert {(row["height"], row["width"]) for row in found["layers"]["rows"]} >= {(32, 48)}


@pytest.mark.parametrize("imgsz", ["[64, 96]", "64,96", '"64, 96"'])
def test_a_configuration_file_has_it_as_a_list_or_as_the_option_does(tmp_path: Path, tiny: Path, imgsz: str) -> None:
    (tmp_path / "config.yaml").write_text(f"imgsz: {imgsz}\nmodel: {tiny / 'best.pt'}\n")
    words = ["export", "--config", str(tmp_path / "config.yaml"), "--format", "torchscript", "--device", "cpu"]
    assert main([*words, "--no-report", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "export.json").read_text())["image_size"] == list(SIZE)
