"""The options of ``autoprune mask``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.choices import Granularity, Scope
from autoprune.config._base import ResumableConfig, RuntimeConfig
from autoprune.config._checks import check_counts, check_share, check_together
from autoprune.errors import ConfigError

_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class MaskConfig(ResumableConfig, RuntimeConfig):
    """Set single weights of a network's convolutions to zero, and fine-tune the others: a finishing step.

    No channel goes, and so the network keeps its FLOPs. 2:4 is faster on NVIDIA GPUs from Ampere on with TensorRT and
    nowhere else; unstructured is faster nowhere here. Compressed, the file gets smaller.

    Attributes:
        model: trained weights, such as the model.pt of a run: a stock Ultralytics checkpoint, a Darknet .cfg, or
            FILE.py:FUNCTION, with @CHECKPOINT for a pruned network of your own
        data: the data set the weights were trained on, an Ultralytics YAML or class folders; needed but for a `model`
            FILE.py:FUNCTION
        granularity: which weights go: 2:4 (two of every four along the input channels) or unstructured
        sparsity: share of the weights that go, in (0, 1), with unstructured; 0.5 by default
        scope: with unstructured, whether each layer loses this share (layer) or all of them together (network)
        epochs: how many times to go through the training images
        lr_scale: learning rate as a share of the dense training's
        batch: images per batch
    """

    model: Path
    data: Path | None = None
    granularity: Granularity = Granularity.TWO_OF_FOUR
    sparsity: float | None = None
    scope: Scope = Scope.LAYER
    epochs: int = 10
    lr_scale: float = 1.0
    batch: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_together(self.model, self.data)
        check_share("lr_scale", self.lr_scale)
        check_counts(self, "epochs", "batch", least=1)
        self._check_runtime()
        if not 0 < self.share < 1:
            raise ConfigError(f"`sparsity` must lie in (0, 1), got {self.share}")
        if self.granularity is Granularity.TWO_OF_FOUR and (
            self.sparsity not in (None, _HALF) or self.scope is not Scope.LAYER
        ):
            raise ConfigError(
                "`granularity` 2:4 takes half of every layer's weights: `sparsity` and `scope` are for `granularity` "
                "unstructured"
            )

    @property
    def share(self) -> float:
        """Share of the weights that go."""
        return _HALF if self.sparsity is None else self.sparsity
