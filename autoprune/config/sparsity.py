"""The options of the commands that make a network sparse before it is pruned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from autoprune.choices import PenaltyName
from autoprune.config._base import ResumableConfig
from autoprune.config._checks import check_counts, check_share, check_together
from autoprune.config.search import SearchConfig
from autoprune.errors import ConfigError
from autoprune.strategies.registry import GLOBAL, StrategyName


@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """How strongly what is made small.

    Attributes:
        sparsity: strength of the penalty; a training of few steps needs more of it
        penalty: what it makes small: l1 each batch norm scale, group-lasso all weights of a channel together
        sparsity_warmup: share of the training in which the strength rises from 0, in [0, 1)
        sparsity_decay: what the strength falls to by the end, as a share in [0, 1]; 1 keeps it constant
        watch: the batch norm (with group-lasso the unit) whose scales are recorded within the epochs; by default the
            first that can be pruned
    """

    sparsity: float = 0.01
    penalty: PenaltyName = PenaltyName.L1
    sparsity_warmup: float = 0.0
    sparsity_decay: float = 1.0
    watch: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < math.inf:
            raise ConfigError(f"`sparsity` must be a number above 0, got {self.sparsity}")
        if not 0 <= self.sparsity_warmup < 1:
            raise ConfigError(f"`sparsity_warmup` must lie in [0, 1), got {self.sparsity_warmup}")
        if not 0 <= self.sparsity_decay <= 1:
            raise ConfigError(f"`sparsity_decay` must lie in [0, 1], got {self.sparsity_decay}")


@dataclass(frozen=True, kw_only=True)
class SparsifyConfig(SparsityConfig, ResumableConfig):
    """Train the dense network with a penalty that makes channels small, to be pruned then (network slimming).

    The optimizer is SGD, whatever the dense training took: Adam divides a penalty's gradient by its own size.

    Attributes:
        model: trained weights, a stock Ultralytics checkpoint, a Darknet .cfg, or FILE.py:FUNCTION, which returns a
            network of your own with its data; the bundled demonstration detector by default
        data: the data set the weights were trained on, an Ultralytics YAML or class folders; needed with `model` but
            for FILE.py:FUNCTION
        epochs: how many times to go through the training images
        lr: first learning rate; it falls by a cosine
        batch: images per batch
    """

    model: Path | None = None
    data: Path | None = None
    epochs: int = 20
    lr: float = 0.001
    batch: int = 16

    def __post_init__(self) -> None:
        SparsityConfig.__post_init__(self)
        ResumableConfig.__post_init__(self)
        check_together(self.model, self.data)
        check_counts(self, "epochs", "batch", least=1)
        check_share("lr", self.lr)


@dataclass(frozen=True, kw_only=True)
class SlimConfig(SearchConfig, SparsityConfig):
    """Make a network sparse, prune it to a budget and fine-tune it: network slimming in one run.

    With `architecture` the network is trained from nothing first.

    Attributes:
        architecture: a stock YAML such as yolov3-tiny.yaml, in place of `model`: the network to train first
        train_epochs: epochs of that first training
        sparsity_epochs: epochs of the sparsity training
        sparsity_lr: its first learning rate; it falls by a cosine
    """

    architecture: str | None = None
    train_epochs: int = 100
    sparsity_epochs: int = 20
    sparsity_lr: float = 0.001
    criterion: str = "bn"
    strategy: StrategyName = GLOBAL

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        SparsityConfig.__post_init__(self)
        check_counts(self, "train_epochs", "sparsity_epochs", least=1)
        check_share("sparsity_lr", self.sparsity_lr)

    def _check_model(self) -> None:
        if self.architecture is None:
            super()._check_model()
        elif self.model is not None or self.data is None:
            raise ConfigError(
                f"`architecture` {self.architecture} is trained on `data`, in place of a `model`: give the one and "
                "leave out the other"
            )
