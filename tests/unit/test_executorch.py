"""What ExecuTorch is handed: programs of ``torch.export``. What it computes is in `test_exported_runtimes`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from autoprune.benchmark_command import BenchmarkCommand
from autoprune.errors import DeviceError
from autoprune.formats import ExportFormat
from autoprune.models._base import ExportSettings
from autoprune.models.module.exporting import write
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.models.ultralytics.checkpoint import write_checkpoint
from autoprune.runtimes import runtime_settings
from autoprune.runtimes.command import CommandBackend
from autoprune.runtimes.exported import export_pt2
from tests.helpers.detectors import IMAGE_SIZE, NAMES, build
from tests.helpers.packages import need

SETTINGS = ExportSettings(ExportFormat("executorch").spec)
SHAPE = (1, 3, 32, 32)


def keep(source: Path, to: Path) -> None:
    """Stand in for lowering: the program itself becomes the file."""
    shutil.copy(source, to)


def run(path: Path, image: torch.Tensor) -> torch.Tensor:
    (output,) = torch.export.load(path).module()(image)
    assert isinstance(output, torch.Tensor)
    return output


def test_a_detector_is_handed_over_with_ultralytics_metadata(tmp_path: Path) -> None:
    write_checkpoint(
        build(), tmp_path / "best.pt", train_args={"imgsz": IMAGE_SIZE, "task": "detect"}, notes={"budget": "x"}
    )
    adapter = UltralyticsAdapter.load(tmp_path / "best.pt")
    folder = adapter.export(adapter.module, tmp_path, SETTINGS, convert=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "model_executorch_model"]
    assert sorted(path.name for path in folder.iterdir()) == ["metadata.yaml", "model.pte"]
    image = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    expected = adapter.deployable(adapter.module)(image)
    torch.testing.assert_close(run(folder / "model.pte", image), expected, rtol=1e-4, atol=1e-4)
    found = yaml.safe_load((folder / "metadata.yaml").read_text())
    assert (found["names"], found["task"], found["stride"], found["end2end"]) == (NAMES, "detect", 16, False)
    assert (found["imgsz"], found["batch"]) == ([IMAGE_SIZE, IMAGE_SIZE], 1)
    assert json.loads(found["autoprune"]) == {"budget": "x"}


class Branches(nn.Module):
    """Computes one of two things, as the values of its input decide."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image.mean() > 0 else image * 2


def test_a_network_that_torch_cannot_export_is_named_with_the_line(tmp_path: Path) -> None:
    said = r"export a network for ExecuTorch; Branches lets the values .*test_executorch.py:\d+ .* use another runtime"
    with pytest.raises(DeviceError, match=said):
        export_pt2(Branches(), SHAPE, tmp_path / "network.pt2")
    assert not list(tmp_path.iterdir())


def test_a_detector_that_torch_cannot_export_is_named_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(build(), tmp_path / "best.pt", train_args={"imgsz": IMAGE_SIZE, "task": "detect"})
    adapter = UltralyticsAdapter.load(tmp_path / "best.pt")
    upsample = nn.Upsample.forward
    monkeypatch.setattr(nn.Upsample, "forward", lambda self, image: upsample(self, image) if image.max() < 9 else image)
    with pytest.raises(DeviceError, match="DetectionModel lets the values"):
        adapter.export(adapter.module, tmp_path, SETTINGS, convert=keep)


def test_a_network_of_any_class_is_handed_over_without_metadata(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    folder = write(module, tmp_path, SETTINGS, shape=SHAPE, convert=keep)
    assert [path.name for path in folder.iterdir()] == ["model.pte"]
    image = torch.rand(SHAPE)
    torch.testing.assert_close(run(folder / "model.pte", image), module(image))


def test_a_benchmark_command_is_given_the_lowered_file(tmp_path: Path) -> None:
    need("executorch")
    (tmp_path / "bench.py").write_text("import os, sys\nprint(sys.argv[1], os.path.getsize(sys.argv[1]))\n")
    command = BenchmarkCommand.parse(f"{sys.executable} {tmp_path / 'bench.py'} {{pte}}", r"model.pte (\d+)")
    backend = CommandBackend(runtime_settings("cpu", image_size=32, runtime=command, threads=1))
    with backend.session():
        assert backend.prepare(nn.Conv2d(3, 64, 3), SHAPE).elapsed() > 64 * 27 * 4, "its weights, at least"
