"""What the commands are told that train a network, before it is pruned or by a policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from autoprune.choices import PenaltyName
from autoprune.config._base import check_counts, check_device, check_image_size, check_share, check_together
from autoprune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ApplyConfig:
    """Apply a policy to weights: prune, recalibrate batch norm where there is data, and save a stock checkpoint.

    Attributes:
        policy: the policy file
        model: trained weights of the architecture that the policy was made for
        out: the run folder, which must not exist yet; runs/apply-<n> by default
        data: the data set that recalibrates batch norm and measures mAP, a YAML as Ultralytics reads it; optional
        imgsz: image size in pixels, a multiple of 32; by default what the weights were trained with
        images: how many training images recalibrate batch norm
        batch: images per batch
        device: where to compute: cpu, cuda, cuda:1, or auto for the first GPU where there is one
        threads: CPU threads; by default what torch chooses
        seed: chooses the images
        trust_checkpoint: open a checkpoint even if it could run code of its author
    """

    policy: Path
    model: Path
    out: Path | None = None
    data: Path | None = None
    imgsz: int | None = None
    images: int = 60
    batch: int = 16
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    trust_checkpoint: bool = False

    def __post_init__(self) -> None:
        check_image_size(self.imgsz)
        check_device(self.device)
        check_counts(self, "images", "batch", "threads", least=1)
        check_counts(self, "seed", least=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Apply a policy to weights and train the pruned network.

    Attributes:
        policy: the policy file
        model: trained weights of the architecture that the policy was made for
        data: the data set to train on, an Ultralytics YAML
        epochs: how many times to go through the training images
        imgsz: image size in pixels, a multiple of 32; by default what the weights were trained with
        lr_scale: learning rate as a share of the dense training's
        batch: images per batch
        device: where to train: cpu, cuda, cuda:1, or auto for the first GPU where there is one
        threads: CPU threads; by default what torch chooses
        seed: fixes the training
        out: the run folder, which must not exist yet; runs/train-<n> by default
        resume: the folder of a run that was interrupted, to go on with; stands alone, the run knows its other options
        trust_checkpoint: open a checkpoint even if it could run code of its author
    """

    policy: Path
    model: Path
    data: Path
    epochs: int = 20
    imgsz: int | None = None
    lr_scale: float = 0.1
    batch: int = 16
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    out: Path | None = None
    resume: Path | None = None
    trust_checkpoint: bool = False

    def __post_init__(self) -> None:
        check_image_size(self.imgsz)
        check_device(self.device)
        check_share("lr_scale", self.lr_scale)
        check_counts(self, "epochs", "batch", "threads", least=1)
        check_counts(self, "seed", least=0)


@dataclass(frozen=True, kw_only=True)
class SparsifyConfig:
    """Train the dense network with a penalty that makes channels small, to be pruned then (network slimming).

    The optimizer is SGD, whatever the dense training took: Adam divides a penalty's gradient by its own size.

    Attributes:
        model: trained weights, a stock Ultralytics checkpoint; the bundled demonstration detector by default
        data: the data set the weights were trained on, an Ultralytics YAML; needed with --model
        imgsz: image size in pixels, a multiple of 32; by default what the weights were trained with
        epochs: how many times to go through the training images
        sparsity: strength of the penalty; a training of few steps needs more of it
        penalty: what it makes small: l1 each batch norm scale, group-lasso all weights of a channel together
        sparsity_warmup: share of the training in which the strength rises from 0, in [0, 1)
        sparsity_decay: what the strength falls to by the end, as a share in [0, 1]; 1 keeps it constant
        watch: the batch norm (with group-lasso the unit) whose scales are recorded within the epochs; by default the
            first that can be pruned
        lr: first learning rate; it falls by a cosine
        batch: images per batch
        device: where to train: cpu, cuda, cuda:1, or auto for the first GPU where there is one
        threads: CPU threads; by default what torch chooses
        seed: fixes the training
        out: the run folder, which must not exist yet; runs/sparsify-<n> by default
        resume: the folder of a run that was interrupted, to go on with; stands alone, the run knows its other options
        trust_checkpoint: open a checkpoint even if it could run code of its author
    """

    model: Path | None = None
    data: Path | None = None
    imgsz: int | None = None
    epochs: int = 20
    sparsity: float = 0.01
    penalty: PenaltyName = PenaltyName.L1
    sparsity_warmup: float = 0.0
    sparsity_decay: float = 1.0
    watch: str | None = None
    lr: float = 0.001
    batch: int = 16
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    out: Path | None = None
    resume: Path | None = None
    trust_checkpoint: bool = False

    def __post_init__(self) -> None:
        check_together(self.model, self.data)
        check_image_size(self.imgsz)
        check_device(self.device)
        check_counts(self, "epochs", "batch", "threads", least=1)
        check_counts(self, "seed", least=0)
        check_share("lr", self.lr)
        if not 0 < self.sparsity < math.inf:
            raise ConfigError(f"--sparsity must be a number above 0, got {self.sparsity}")
        if not 0 <= self.sparsity_warmup < 1:
            raise ConfigError(f"--sparsity-warmup must lie in [0, 1), got {self.sparsity_warmup}")
        if not 0 <= self.sparsity_decay <= 1:
            raise ConfigError(f"--sparsity-decay must lie in [0, 1], got {self.sparsity_decay}")
