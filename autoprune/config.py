"""What each command can be told: one dataclass per command, its field docs are the command line's help.

A configuration checks itself when it is made, so whoever holds one may trust it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from autoprune.budget import Budget
from autoprune.errors import ConfigError


class Agent(Enum):
    """The agents that search."""

    PPO = "ppo"
    DDPG = "ddpg"
    TD3 = "td3"
    SAC = "sac"


class Rule(Enum):
    """How the environment makes an episode hold the budget."""

    PROJECTED = "projected"
    CAPPED = "capped"


class Criterion(Enum):
    """What says which channels of a unit stay."""

    L1 = "l1"
    L2 = "l2"
    BN = "bn"


class Precision(Enum):
    """The numbers that latency is measured with."""

    FP32 = "fp32"
    FP16 = "fp16"


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Search a policy that holds a budget, prune, fine-tune, and measure the result.

    Attributes:
        model: trained weights to prune, a stock Ultralytics checkpoint; the bundled demonstration detector by default
        data: the data set the weights were trained on, an Ultralytics YAML; needed with --model
        imgsz: image size in pixels, a multiple of 32; by default what the weights were trained with
        budget: a limit that the result holds: latency=8ms, latency=60%, flops=50%, flops=4.2G, params=1.5M or size=3MB;
            repeat the option to combine limits
        agent: the reinforcement-learning agent that searches
        episodes: how many candidates the agent may try; by default 200, fewer for the bundled detector
        rule: how an episode meets the budget: projected scales all keep ratios by one factor when the walk ends, capped
            limits each action as it is taken (AMC)
        criterion: which channels of a unit stay: those of largest L1 or L2 norm, or of largest batch norm scale
        round_to: widths are multiples of this
        min_keep: the lowest keep ratio of a unit, in (0, 1]
        images: how many training images score a candidate
        batch: images per batch, in scoring and in fine-tuning
        finalists: how many of the best candidates are measured whole and compared by mAP
        finetune_epochs: epochs of fine-tuning after pruning, 0 for none; by default 20, fewer for the bundled detector
        lr_scale: learning rate of the fine-tuning, as a share of the dense training's
        device: where to compute and to measure latency: cpu, cuda, cuda:1, or auto for the first GPU where there is one
        precision: number format that latency is measured with; fp16 needs a GPU
        threads: CPU threads for computing and measuring; by default what torch chooses
        seed: fixes the images, the search and the fine-tuning
        out: the run folder, which must not exist yet; runs/search-<n> by default
        resume: the folder of a run that was interrupted, to go on with; stands alone, the run knows its other options
        trust_checkpoint: open a checkpoint even if it could run code of its author
        tensorboard: write rewards, costs and noise as TensorBoard events
    """

    model: Path | None = None
    data: Path | None = None
    imgsz: int | None = None
    budget: tuple[str, ...] = ()
    agent: Agent = Agent.PPO
    episodes: int | None = None
    rule: Rule = Rule.PROJECTED
    criterion: Criterion = Criterion.L1
    round_to: int = 8
    min_keep: float = 0.1
    images: int = 60
    batch: int = 16
    finalists: int = 5
    finetune_epochs: int | None = None
    lr_scale: float = 0.1
    device: str = "auto"
    precision: Precision = Precision.FP32
    threads: int | None = None
    seed: int = 0
    out: Path | None = None
    resume: Path | None = None
    trust_checkpoint: bool = False
    tensorboard: bool = True

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        if (self.model is None) != (self.data is None):
            given, missing = ("model", "data") if self.data is None else ("data", "model")
            raise ConfigError(
                f"--{given} needs --{missing}: the weights and the data set they were trained on go together"
            )
        if self.precision is Precision.FP16 and self.device == "cpu":
            raise ConfigError("--precision fp16 needs a GPU, got --device cpu")
        _check_image_size(self.imgsz)
        _check_device(self.device)
        for name in ("round_to", "images", "batch", "finalists", "episodes", "threads"):
            _check_count(name, getattr(self, name), least=1)
        for name in ("finetune_epochs", "seed"):
            _check_count(name, getattr(self, name), least=0)
        for name in ("min_keep", "lr_scale"):
            _check_share(name, getattr(self, name))


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
        _check_image_size(self.imgsz)
        _check_device(self.device)
        for name in ("images", "batch", "threads"):
            _check_count(name, getattr(self, name), least=1)
        _check_count("seed", self.seed, least=0)


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
        _check_image_size(self.imgsz)
        _check_device(self.device)
        _check_share("lr_scale", self.lr_scale)
        for name in ("epochs", "batch", "threads"):
            _check_count(name, getattr(self, name), least=1)
        _check_count("seed", self.seed, least=0)


Config: TypeAlias = SearchConfig | ApplyConfig | TrainConfig

COMMANDS: dict[str, type[Config]] = {"search": SearchConfig, "apply": ApplyConfig, "train": TrainConfig}
"""Every command by its name, with the configuration it takes."""


def option(name: str) -> str:
    """Return a field's name as the command line spells it: ``min_keep`` → ``--min-keep``."""
    return "--" + name.replace("_", "-")


def to_yaml(config: Config) -> str:
    """Return a configuration as YAML that ``--config`` reads back to an equal one, from any folder.

    Paths become absolute, and ``resume`` is left out: it says how a run goes on, not what it is.
    """
    values = {item.name: getattr(config, item.name) for item in fields(config) if item.name != "resume"}
    return "".join(f"{name}: {json.dumps(_plain(value))}\n" for name, value in values.items())


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return str(value.absolute()) if isinstance(value, Path) else value


def _check_count(name: str, value: int | None, *, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{option(name)} must be a whole number of at least {least}, got {value}")


def _check_share(name: str, value: float) -> None:
    if not (math.isfinite(value) and 0 < value <= 1):
        raise ConfigError(f"{option(name)} must lie in (0, 1], got {value}")


def _check_image_size(value: int | None) -> None:
    if value is not None and (value < 32 or value % 32):
        raise ConfigError(f"--imgsz must be a multiple of 32 of at least 32, got {value}")


def _check_device(value: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {value!r}")
