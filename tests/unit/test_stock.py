"""Pruned networks in stock hands: a process without autoprune opens, runs and exports every one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from autoprune.models.ultralytics import stock
from autoprune.models.ultralytics.checkpoint import write_checkpoint
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers.networks import FREE_OUTPUTS, NETWORKS

SIZE = 64
LIGHT = ["yolov3-tiny", "yolov5n", "yolov8n", "yolo11n"]
HEAVY = [name for name in NETWORKS if name.startswith("yolo") and name not in LIGHT]

# Runs where autoprune cannot be imported: opens each checkpoint safely, keeps its raw outputs, exports TorchScript by
# Ultralytics' own path (which rewrites C2f.forward), and keeps what the exported file answers.
ALONE = """
import json, sys, warnings
from pathlib import Path
sys.modules["autoprune"] = None
warnings.simplefilter("ignore")
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import torch_safe_load

folder, size = Path(sys.argv[1]), int(sys.argv[2])
image = torch.load(folder / "image.tensor")
for path in sorted(folder.glob("*.pt")):
    torch_safe_load(str(path), safe_only=True)
    yolo = YOLO(str(path))
    with torch.no_grad():
        output = yolo.model.float().eval()(image)
    output = output[0] if isinstance(output, (tuple, list)) else output
    output = output[0] if isinstance(output, (tuple, list)) else output
    exported = YOLO(str(path)).export(format="torchscript", imgsz=size, verbose=False)
    answer = torch.jit.load(exported)(image[:1])
    answer = answer[0] if isinstance(answer, (tuple, list)) else answer
    torch.save({"opened": output, "exported": answer}, folder / f"{path.stem}.tensor")
"""


def random_allocation(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    module = NETWORKS[name]().eval()
    graph = analyse(module, torch.rand(2, 3, SIZE, SIZE), free_outputs=FREE_OUTPUTS)
    rng = np.random.default_rng(0)
    counts = [int(rng.integers(max(unit.width // 2, 1), unit.width + 1)) for unit in graph.units]
    keep = Space(graph, round_to=1).kept_channels(counts, [rng.permutation(group.size) for group in graph.groups])
    return Slicer(module, graph).materialise(keep)


def check(names: list[str], folder: Path) -> None:
    image = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    torch.save(image, folder / "image.tensor")
    expected = {}
    for name in names:
        module = random_allocation(name)
        module.args = stock.get_cfg()
        write_checkpoint(module, folder / f"{name}.pt", train_args={"imgsz": SIZE, "task": task(name)})
        with torch.no_grad():
            output = module.half().float().eval()(image)
        while isinstance(output, (tuple, list)):
            output = output[0]
        expected[name] = output
    environment = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-c", ALONE, str(folder), str(SIZE)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in names:
        found = torch.load(folder / f"{name}.tensor")
        torch.testing.assert_close(
            found["opened"], expected[name], rtol=1e-4, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
        )
        if name not in ("yolov10n", "yolo26n"):  # those end in a top-k, whose ties may be ordered otherwise
            torch.testing.assert_close(found["exported"], expected[name][:1], rtol=1e-3, atol=1e-2)
        assert found["exported"].shape[0] == 1


def task(name: str) -> str:
    return "segment" if name.endswith("-seg") else "pose" if name.endswith("-pose") else "detect"


@pytest.mark.slow
def test_stock_tools_open_run_and_export_pruned_networks(tmp_path: Path) -> None:
    check(LIGHT, tmp_path)


@pytest.mark.slow
def test_stock_tools_open_run_and_export_all_other_pruned_networks(tmp_path: Path) -> None:
    check(HEAVY, tmp_path)
