"""What ``autoprune profile`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.choices import Precision, match_factory
from autoprune.config._base import RuntimeConfig, check_counts, check_device, check_image_size, check_share
from autoprune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(RuntimeConfig):
    """Show where a network's latency goes: per layer, per width, predicted against measured; table, JSON and pictures.

    Attributes:
        model: trained weights, a stock Ultralytics checkpoint or a Darknet .cfg; the bundled demonstration detector by
            default
        data: the data set the weights were trained on, an Ultralytics YAML; only int8 needs it, to find its ranges
        imgsz: image size in pixels, a multiple of 32; by default what the weights were trained with
        device: where to measure: cpu, cuda, cuda:1, or auto for the first GPU where there is one
        threads: CPU threads; by default what torch chooses
        round_to: widths are multiples of this
        min_keep: the lowest keep ratio of a unit, in (0, 1]
        check: measure the predictor's error on 30 fresh allocations
        seed: fixes the allocations that are measured
        out: the run folder, which must not exist yet; runs/profile-<n> by default
        resume: the folder of a run that was interrupted, to go on with; stands alone, the run knows its other options
        trust_checkpoint: open a checkpoint even if it could run code of its author
    """

    model: Path | None = None
    data: Path | None = None
    imgsz: int | None = None
    device: str = "auto"
    threads: int | None = None
    round_to: int = 8
    min_keep: float = 0.1
    check: bool = False
    seed: int = 0
    out: Path | None = None
    resume: Path | None = None
    trust_checkpoint: bool = False

    def __post_init__(self) -> None:
        images = self.model is None or self.data is not None or match_factory(self.model)
        if self.precision is Precision.INT8 and not images:
            raise ConfigError("--precision int8 needs --data, whose training images say which ranges the numbers have")
        check_image_size(self.imgsz)
        check_device(self.device)
        check_counts(self, "round_to", "threads", "runtime_batch", least=1)
        check_counts(self, "seed", least=0)
        check_share("min_keep", self.min_keep)
