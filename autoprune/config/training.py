"""The options of the commands that make a network by a policy and train it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.choices import MOST_LR_SCALE
from autoprune.config._base import ResumableConfig, RunConfig
from autoprune.config._checks import (
    check_counts,
    check_devices,
    check_positive,
    check_share,
    check_stock,
    check_together,
    check_training,
    devices_of,
    named,
)
from autoprune.errors import ConfigError
from autoprune.policy import Policy


@dataclass(frozen=True, kw_only=True)
class ApplyConfig(RunConfig):
    """Apply a policy to weights: prune, recalibrate batch norm if there is data, and save a stock checkpoint.

    Attributes:
        policy: the policy file
        model: trained weights of the architecture that the policy was made for
        data: the data set that recalibrates batch norm and measures accuracy, a YAML as Ultralytics reads it; needed
            for policies of criteria that look at images, as search's covariance does
        compensate: if there is data, update the weights that read kept channels so that they best reproduce what the
            removed channels contributed
        reconstruct: after compensation, also fit the layers to the outputs of the dense network, by least squares
        images: how many training images compensate, and recalibrate batch norm
        batch: images per batch
        seed: chooses the images
    """

    policy: Path | Policy
    model: Path
    data: Path | None = None
    compensate: bool = True
    reconstruct: bool = True
    images: int = 60
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "images", "batch", least=1)
        check_counts(self, "seed", least=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ResumableConfig):
    """Apply a policy to weights and train the pruned network.

    Attributes:
        policy: the policy file
        model: trained weights of the architecture that the policy was made for
        data: the data set to train on, an Ultralytics YAML or class folders; needed but for a `model` FILE.py:FUNCTION
        compensate: before training, update the weights that read kept channels so that they best reproduce what the
            removed channels contributed
        reconstruct: after compensation, also fit the layers to the outputs of the dense network, by least squares
        epochs: how many times to go through the training images
        lr_scale: multiplies the first learning rate, by default 0.01 (MuSGD) for detectors, and with fewer than 10
            epochs 0.3 times the rate of the dense training (docs/guides/recipes.md)
        train_args: Ultralytics' training arguments for the fine-tuning, such as mosaic=0.5, freeze=10 or
            optimizer=AdamW, which then starts at the dense training's rate; repeat the option for several
        patience: stop after this many epochs without a better one, and keep the best one's weights; 0 trains all epochs
            and keeps the last one's, as is the default below 100 epochs; from there on it is a quarter of them, at
            least 50
        distill: trained weights that teach the pruned network while it is fine-tuned, usually those of `model`; with
            those it did not help on three detectors, see docs/accuracy.md
        distill_weight: how much the teacher counts; at 1 its loss is at first about half of the loss on the labels
        soften: first train the dense network while the channels that the policy removes fall to zero; after
            compensation it lost 0.002 to 0.016 on three detectors, see docs/accuracy.md
        soften_epochs: how many of the epochs that takes; by default a quarter of them, at least 1
        batch: images per batch; with several GPUs they share it
        device: where to train: cpu, cuda, cuda:1 (or 1, as Ultralytics has it), mps, several GPUs as 0,1, or auto for
            the first CUDA GPU if there is one
        ultralytics_callbacks: let the loggers that Ultralytics' own settings switch on log the fine-tuning
    """

    policy: Path | Policy
    model: Path
    data: Path | None = None
    compensate: bool = True
    reconstruct: bool = True
    epochs: int = 20
    lr_scale: float = 1.0
    train_args: tuple[str, ...] = ()
    patience: int | None = None
    distill: Path | None = None
    distill_weight: float = 1.0
    soften: bool = False
    soften_epochs: int | None = None
    batch: int = 16
    device: str = "auto"
    ultralytics_callbacks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_together(self.model, self.data)
        if self.ultralytics_callbacks:
            check_stock(self.model, named("ultralytics_callbacks"))
        check_share("lr_scale", self.lr_scale, most=MOST_LR_SCALE)
        check_training(self.train_args, self)
        check_positive("distill_weight", self.distill_weight)
        check_counts(self, "epochs", "batch", "soften_epochs", least=1)
        check_counts(self, "patience", least=0)
        self._check_softening()

    @property
    def softening_epochs(self) -> int:
        """Epochs that the dense network is softened for."""
        if not self.soften:
            return 0
        return self.soften_epochs if self.soften_epochs is not None else max(1, self.epochs // 4)

    @property
    def tuning_epochs(self) -> int:
        """Epochs that the pruned network is fine-tuned for."""
        return self.epochs - self.softening_epochs

    def _check_softening(self) -> None:
        if self.soften_epochs is not None and not self.soften:
            raise ConfigError("`soften_epochs` is for `soften`, which is not given")
        if self.tuning_epochs < 1:
            raise ConfigError(
                f"`soften` leaves no epoch for fine-tuning: it takes {self.softening_epochs} of `epochs` {self.epochs}"
            )

    def _check_device(self) -> None:
        check_devices(self.device)
        count = len(devices_of(self.device))
        if count > 1:
            check_stock(self.model, "training on several GPUs")
            if self.distill is not None or self.soften or self.ultralytics_callbacks:
                raise ConfigError(
                    "`distill`, `soften` and `ultralytics_callbacks` are for training on one device, got `device` "
                    f"{self.device}"
                )
        if self.batch % count:
            raise ConfigError(f"`batch` must be a multiple of the {count} devices that share it, got {self.batch}")
