"""The options of ``autoprune quantize``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from autoprune.choices import ONNXRUNTIME, Runtime
from autoprune.config._base import ResumableConfig
from autoprune.config._checks import check_counts, check_family, check_share
from autoprune.errors import ConfigError

LEAST_IMAGES = 8
"""Images that ranges, and a loss of accuracy, are found on at least."""


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(ResumableConfig):
    """Quantise a network to int8 after training, and keep in float what loses too much accuracy.

    Ranges are found on training images. Which layers stay in float is decided on other training images; the result is
    reported on validation images.

    Attributes:
        model: trained weights, a stock Ultralytics checkpoint such as the model.pt of a run, or a Darknet .cfg
        data: the data set the weights were trained on, an Ultralytics YAML or class folders
        runtime: what runs the result: onnxruntime, openvino or litert
        max_drop: how much mAP50-95 (top-1 of a classifier) may be lost against the float network, on the training
            images that decide
        calibration_images: training images that ranges are found on
        images: how many other training images decide which layers stay in float
        qat_epochs: epochs of a fine-tuning before, in which the weights learn to be rounded to int8; 0 for none
        qat_lr_scale: its learning rate as a share of the dense training's
        batch: images per batch of that fine-tuning
        dense: the weights that the network was pruned from, to be quantised too and compared with
    """

    model: Path
    data: Path
    runtime: Runtime = ONNXRUNTIME
    max_drop: float = 0.01
    calibration_images: int = 64
    images: int = 128
    qat_epochs: int = 0
    qat_lr_scale: float = 0.1
    batch: int = 16
    dense: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_family(self.model, "autoprune quantize")
        check_counts(self, "batch", least=1)
        check_counts(self, "qat_epochs", least=0)
        check_share("qat_lr_scale", self.qat_lr_scale)
        check_counts(self, "calibration_images", "images", least=LEAST_IMAGES)
        if not self.runtime.spec.int8_file:
            runtimes = ", ".join(one.value for one in Runtime if one.spec.int8_file)
            raise ConfigError(f"int8 files are written for `runtime` {runtimes}, got {self.runtime.value}")
        if not (math.isfinite(self.max_drop) and 0 <= self.max_drop < 1):
            raise ConfigError(f"`max_drop` must lie in [0, 1), got {self.max_drop}")
