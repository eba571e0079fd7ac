"""The options of ``autoprune profile``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.choices import Precision, match_factory
from autoprune.config._base import ResumableConfig, RuntimeConfig
from autoprune.config._checks import check_counts, check_share
from autoprune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(ResumableConfig, RuntimeConfig):
    """Show where a network's latency goes: per layer, per width, predicted against measured; table, JSON and pictures.

    Attributes:
        model: trained weights, a stock Ultralytics checkpoint or a Darknet .cfg; the bundled demonstration detector by
            default
        data: the data set the weights were trained on, an Ultralytics YAML; only int8 needs it, to find its ranges
        round_to: widths are multiples of this
        min_keep: the lowest keep ratio of a unit, in (0, 1]
        check: measure the predictor's error on 30 fresh allocations
    """

    model: Path | None = None
    data: Path | None = None
    round_to: int = 8
    min_keep: float = 0.1
    check: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None and self.model is None:
            raise ConfigError("`data` needs `model`: the weights and the data set they were trained on go together")
        images = self.model is None or self.data is not None or match_factory(self.model)
        if self.precision is Precision.INT8 and not images:
            raise ConfigError("`precision` int8 needs `data`, whose training images say which ranges the numbers have")
        check_counts(self, "round_to", least=1)
        self._check_runtime()
        check_share("min_keep", self.min_keep)
