"""What NCNN does not take is refused with its name; what it computes is in `test_exported_runtimes`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.errors import DeviceError
from autoprune.runtimes import Precision, Runtime, ncnn, open_backend, runtime_settings
from autoprune.runtimes.exported import export_onnx
from autoprune.runtimes.ncnn import convert
from autoprune.runtimes.process import WorkerProcess
from tests.helpers.packages import need

SHAPE = (1, 3, 16, 16)


class Compared(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.gather(3, (image > 0.5).long())


def test_a_layer_that_ncnn_lacks_is_named(tmp_path: Path) -> None:
    need("onnx", "ncnn")
    export_onnx(Compared(), SHAPE, tmp_path / "network.onnx")
    with pytest.raises(
        DeviceError, match=r"expressible in NCNN, and it has no layer for torch.gt \(layer torch.gt_0\); use"
    ):
        convert(tmp_path / "network.onnx", tmp_path / "model.ncnn.param")


def test_what_is_no_network_is_refused_with_the_converters_words(tmp_path: Path) -> None:
    need("ncnn")
    (tmp_path / "network.onnx").write_bytes(b"no network")
    with pytest.raises(DeviceError, match=r"expressible in NCNN, and pnnx ended with -?\d+: .*; use"):
        convert(tmp_path / "network.onnx", tmp_path / "model.ncnn.param")


def test_a_converter_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pnnx-sleeps").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "pnnx-sleeps").chmod(0o755)
    monkeypatch.setattr(ncnn, "_converter", lambda: str(tmp_path / "pnnx-sleeps"))
    monkeypatch.setattr(ncnn, "TIMEOUT", 0.2)
    with pytest.raises(DeviceError, match=r"expressible in NCNN, and pnnx has not ended after 0.2 s; use"):
        convert(tmp_path / "network.onnx", tmp_path / "model.ncnn.param")
    assert not (tmp_path / "pnnx").exists()


@pytest.mark.parametrize(
    ("batch", "precision", "said"),
    [
        (2, Precision.FP32, "NCNN runs one image at a time, got `batch` 2"),
        (1, Precision.FP16, "NCNN on this CPU computes in fp32, got `precision` fp16"),
    ],
)
def test_what_ncnn_would_ignore_is_refused(
    batch: int, precision: Precision, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx", "ncnn")
    monkeypatch.setattr(WorkerProcess, "call", lambda *_: ["fp32"])
    settings = runtime_settings("cpu", image_size=16, runtime=Runtime.NCNN, batch=batch, precision=precision)
    with pytest.raises(DeviceError, match=said):
        open_backend(settings)
