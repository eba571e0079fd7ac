"""What ``autoprune export`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.choices import ExportFormat, Precision
from autoprune.config._base import RunConfig
from autoprune.errors import ConfigError

WRITTEN = (Precision.FP32, Precision.FP16)
"""Precisions that files are written in."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(RunConfig):
    """Export a network for a runtime, check that it predicts there what it predicts in torch, and measure its latency.

    Attributes:
        model: trained weights, a stock Ultralytics checkpoint such as the model.pt of a run, a Darknet .cfg, or
            FILE.py:FUNCTION@CHECKPOINT for a network of your own
        format: what is written: onnx, openvino, torchscript or tensorrt
        data: the data set the weights were trained on, an Ultralytics YAML; with it the exported network is compared
            with torch's on validation images and by accuracy, without it on noise
        dynamic: leave batch and image size open (onnx and openvino)
        precision: number format of the exported network: fp32, or fp16 where device and runtime compute in it
    """

    model: Path
    format: ExportFormat = ExportFormat.ONNX
    data: Path | None = None
    dynamic: bool = False
    precision: Precision = Precision.FP32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in WRITTEN:
            raise ConfigError(f"An exported network is written in fp32 or fp16, got `precision` {self.precision.value}")
        if self.dynamic and not self.format.dynamic:
            formats = " or ".join(one.value for one in ExportFormat if one.dynamic)
            raise ConfigError(f"`dynamic` is for `format` {formats}, got {self.format.value}")
