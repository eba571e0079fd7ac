"""The options of ``autoprune export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.choices import Precision
from autoprune.config._base import RunConfig
from autoprune.config._checks import check_counts, shown
from autoprune.errors import ConfigError
from autoprune.formats import ONNX, ExportFormat, formats_where

OPSETS = range(13, 21)
"""The versions of ONNX's operators that torch writes and Ultralytics' networks can be expressed in."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(RunConfig):
    """Export a network for a runtime, check that it predicts there what it predicts in torch, and measure its latency.

    Attributes:
        model: trained weights, a stock Ultralytics checkpoint such as the model.pt of a run, a Darknet .cfg, or
            FILE.py:FUNCTION@CHECKPOINT for a network of your own
        format: what is written
        data: the data set the weights were trained on, an Ultralytics YAML; with it the exported network is compared
            with torch's on validation images and by accuracy, without it on noise
        dynamic: leave batch and image size open, if the format can
        precision: number format of the exported network: fp32, or fp16 if device and runtime compute in it
        half: fp16, as Ultralytics has it: the same as `precision` fp16
        batch: images of an input
        nms: put non-maximum suppression into the file, with Ultralytics' thresholds (scores from 0.25, IoU 0.7), if the
            format can
        opset: version of ONNX's operators, 13 to 20; by default 17, the newest that all runtimes support
    """

    model: Path
    format: ExportFormat = ONNX
    data: Path | None = None
    dynamic: bool = False
    precision: Precision = Precision.FP32
    half: bool = False
    batch: int = 1
    nms: bool = False
    opset: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "batch", least=1)
        if self.half:
            object.__setattr__(self, "precision", Precision.FP16)
        if self.opset is not None and self.opset not in OPSETS:
            raise ConfigError(f"`opset` must lie in {OPSETS[0]} to {OPSETS[-1]}, got {shown(self.opset)}")
        if self.opset is not None and self.format.spec.traced != "onnx":
            raise ConfigError(f"`opset` is for formats made of ONNX, got `format` {self.format.value}")
        spec = self.format.spec
        if self.precision not in spec.tolerance:
            written = " or ".join(precision.value for precision in spec.tolerance)
            given = "`half`; leave it out" if self.half else f"`precision` {self.precision.value}"
            raise ConfigError(f"A network for `format` {spec.name} is written in {written}, got {given}")
        if self.dynamic and not spec.dynamic:
            raise ConfigError(f"`dynamic` is for `format` {formats_where('dynamic')}, got {spec.name}")
        if self.nms and not spec.nms:
            raise ConfigError(f"`nms` is for `format` {formats_where('nms')}, got {spec.name}")
        if self.nms and self.dynamic:
            raise ConfigError("A file with `nms` has a fixed batch and image size; leave `dynamic` out")
