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

from autoprune.budget import Budget, budget_levels
from autoprune.choices import FROM_CURVES, WARM_STARTED, Precision, Rule, Runtime, Select, StrategyName, check_criterion
from autoprune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """What every command is told that scores pruned networks.

    Attributes:
        model: trained weights to prune, a stock Ultralytics checkpoint; the bundled demonstration detector by default
        data: the data set the weights were trained on, an Ultralytics YAML; needed with --model
        imgsz: image size in pixels, a multiple of 32; by default what the weights were trained with
        criterion: which channels of a unit stay: l1, l2 or l<p> (norm of the weights), bn (batch norm scale), fpgm
            (geometric median), lamp, random; from training images taylor, fisher, hutchinson, apoz, regression
        round_to: widths are multiples of this
        min_keep: the lowest keep ratio of a unit, in (0, 1]
        images: how many training images score a candidate
        batch: images per batch, in scoring and in fine-tuning
        device: where to compute and to measure latency: cpu, cuda, cuda:1, or auto for the first GPU where there is one
        threads: CPU threads for computing and measuring; by default what torch chooses
        seed: fixes the images, the search and the fine-tuning
        out: the run folder, which must not exist yet; runs/<command>-<n> by default
        resume: the folder of a run that was interrupted, to go on with; stands alone, the run knows its other options
        trust_checkpoint: open a checkpoint even if it could run code of its author
    """

    model: Path | None = None
    data: Path | None = None
    imgsz: int | None = None
    criterion: str = "l1"
    round_to: int = 8
    min_keep: float = 0.1
    images: int = 60
    batch: int = 16
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    out: Path | None = None
    resume: Path | None = None
    trust_checkpoint: bool = False

    def __post_init__(self) -> None:
        if (self.model is None) != (self.data is None):
            given, missing = ("model", "data") if self.data is None else ("data", "model")
            raise ConfigError(
                f"--{given} needs --{missing}: the weights and the data set they were trained on go together"
            )
        check_criterion(self.criterion)
        _check_image_size(self.imgsz)
        _check_device(self.device)
        _check_counts(self, "round_to", "images", "batch", "threads", least=1)
        _check_counts(self, "seed", least=0)
        _check_share("min_keep", self.min_keep)


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """What every command is told that measures latency.

    Attributes:
        runtime: what runs the network where latency is measured: torch, torch-compile, cudagraph, onnxruntime, openvino
            or tensorrt; by default cudagraph on a GPU, else torch
        precision: number format that latency is measured in: fp32, fp16, bf16 or int8, where runtime and device have it
        runtime_batch: images per run where latency is measured
        with_nms: measure the network together with its non-maximum suppression
    """

    runtime: Runtime | None = None
    precision: Precision = Precision.FP32
    runtime_batch: int = 1
    with_nms: bool = False


@dataclass(frozen=True, kw_only=True)
class BudgetedConfig(PruningConfig, RuntimeConfig):
    """What every command is told that prunes to a budget.

    Attributes:
        budget: a limit that the result holds: latency=8ms, latency=60%, flops=50%, flops=4.2G, params=1.5M or size=3MB;
            repeat the option to combine limits
        finetune_epochs: epochs of fine-tuning after pruning, 0 for none; by default 20, fewer for the bundled detector
        lr_scale: learning rate of the fine-tuning, as a share of the dense training's
    """

    budget: tuple[str, ...] = ()
    finetune_epochs: int | None = None
    lr_scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_budget()
        _check_counts(self, "finetune_epochs", least=0)
        _check_counts(self, "runtime_batch", least=1)
        _check_share("lr_scale", self.lr_scale)

    def _check_budget(self) -> None:
        Budget.parse(self.budget)


@dataclass(frozen=True, kw_only=True)
class ReconstructingConfig(BudgetedConfig):
    """What the commands are told that prune in one step.

    Attributes:
        reconstruct: after pruning, solve every layer's weights by least squares for what the dense network gives
    """

    reconstruct: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchConfig(ReconstructingConfig):
    """Search a policy that holds a budget, prune, fine-tune, and measure the result.

    Attributes:
        strategy: what searches: a reinforcement-learning agent (ppo, ddpg, td3, sac; --agent says the same), or one of
            uniform, global, random, greedy, sensitivity, knapsack, evolution
        episodes: how many candidates the strategy may try; by default 200, fewer for the bundled detector
        rule: how an episode meets the budget: projected scales all keep ratios by one factor when the walk ends, capped
            limits each action as it is taken (AMC)
        sensitivity: the sensitivity.json of an autoprune sensitivity run of this model, which is then not measured anew
        warm_start: the folder of a finished search of this model and data, whose candidates the agent or the evolution
            starts from; repeat the option for several
        finalists: how many of the best candidates are measured whole and compared by mAP
        tensorboard: write rewards, costs and noise as TensorBoard events
    """

    strategy: StrategyName = StrategyName.PPO
    episodes: int | None = None
    rule: Rule = Rule.PROJECTED
    sensitivity: Path | None = None
    warm_start: tuple[str, ...] = ()
    finalists: int = 5
    tensorboard: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self, "finalists", "episodes", least=1)
        if self.sensitivity is not None and self.strategy not in FROM_CURVES:
            raise ConfigError(
                f"--sensitivity is for the strategies sensitivity and knapsack, got {self.strategy.value}"
            )
        if self.warm_start and self.strategy not in WARM_STARTED:
            raise ConfigError(f"--warm-start is for the agents and evolution, got {self.strategy.value}")


@dataclass(frozen=True, kw_only=True)
class NetAdaptConfig(BudgetedConfig):
    """Prune step by step to one or several budgets, fine-tuning briefly at every step (NetAdapt).

    A limit may list several levels, as in latency=12ms,10ms,8ms: one run makes a network for each of them.

    Attributes:
        initial_step: share of the dense network's cost that the first iteration saves
        decay: each iteration saves this much of what the one before saved
        short_term_steps: training steps that a proposal is fine-tuned before it is compared, 0 for none
        shortlist: how many of an iteration's proposals, the best without fine-tuning, are fine-tuned and compared; 0
            for all of them, as in the paper
        select: what is kept of an iteration's proposals: the highest score, or the least score lost per cost saved
    """

    initial_step: float = 0.025
    decay: float = 0.96
    short_term_steps: int = 10
    shortlist: int = 3
    select: Select = Select.ACCURACY

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self, "short_term_steps", "shortlist", least=0)
        for name in ("initial_step", "decay"):
            _check_share(name, getattr(self, name))

    def _check_budget(self) -> None:
        budget_levels(self.budget)


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig(PruningConfig):
    """Measure how the score falls when each unit alone is pruned: sensitivity.json and two pictures.

    Attributes:
        ratios: keep ratios at which each unit is tried, in (0, 1), with commas between them
    """

    ratios: str = "0.75,0.5,0.25,0.1"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.keep_ratios  # noqa: B018  (raises where they are malformed)

    @property
    def keep_ratios(self) -> tuple[float, ...]:
        """The ratios as numbers, largest first."""
        try:
            ratios = {float(word) for word in self.ratios.split(",")}
        except ValueError:
            ratios = set()
        if not ratios or not all(0 < ratio < 1 for ratio in ratios):
            raise ConfigError(f"--ratios must be keep ratios in (0, 1), such as 0.75,0.5,0.25, got {self.ratios}")
        return tuple(sorted(ratios, reverse=True))


@dataclass(frozen=True)
class Entry:
    """What takes part in a comparison.

    Attributes:
        strategy: what searches.
        warm_start: what searches before it, with half of the evaluations; its candidates are handed on.
    """

    strategy: StrategyName
    warm_start: StrategyName | None = None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read ``ppo``, or ``knapsack+ppo`` for ppo started from knapsack's candidates."""
        known = {member.value: member for member in StrategyName}
        words = [word.strip() for word in text.split("+")]
        unknown = [word for word in words if word not in known]
        if unknown or len(words) > 2:
            raise ConfigError(
                f"--strategies takes names of {', '.join(known)}, with commas between them, and A+B for B started from "
                f"A's candidates, got {text!r}"
            )
        return cls(known[words[-1]], known[words[0]] if len(words) == 2 else None)

    def __str__(self) -> str:
        return self.strategy.value if self.warm_start is None else f"{self.warm_start.value}+{self.strategy.value}"


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ReconstructingConfig):
    """Compare strategies at equal cost: the same number of evaluations on the same images, the same fine-tune.

    A finished comparison is extended by --resume RUN with more --strategies or --seeds.

    Attributes:
        strategies: what takes part, names with commas between them; knapsack+ppo is ppo started from the candidates of
            knapsack, with half of the evaluations each
        evaluations: how many candidates each may score, those of its warm start and of its priors counted
        seeds: how often each strategy with chance in it runs
        rule: how an agent's episode meets the budget, as in search
        criteria: in place of strategies, criteria with commas between them: each says which channels stay of the one
            allocation that the uniform ratio gives
        references: also train the honest alternatives: the dense network, the same family trained smaller, and the
            dense network at a lower image size
        correlated: fine-tune at least so many networks of different scores, for the rank correlation of score and mAP
    """

    strategies: str = "uniform,global,random,greedy,sensitivity,knapsack,evolution,ddpg,ppo"
    evaluations: int = 100
    seeds: int = 3
    rule: Rule = Rule.PROJECTED
    criteria: str = ""
    references: bool = True
    correlated: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self, "evaluations", "seeds", least=1)
        _check_counts(self, "correlated", least=0)
        self.entries  # noqa: B018  (raises where they are malformed)
        for name in self.compared_criteria:
            check_criterion(name)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What takes part, each once."""
        return tuple(dict.fromkeys(Entry.parse(text) for text in self.strategies.split(",")))

    @property
    def compared_criteria(self) -> tuple[str, ...]:
        """The criteria that are compared, each once; none where strategies are."""
        return tuple(dict.fromkeys(text.strip() for text in self.criteria.split(","))) if self.criteria else ()


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(RuntimeConfig):
    """Show where a network's latency goes: per layer, per width, predicted against measured; table, JSON and pictures.

    Attributes:
        model: trained weights, a stock Ultralytics checkpoint; the bundled demonstration detector by default
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
        if self.precision is Precision.INT8 and self.model is not None and self.data is None:
            raise ConfigError("--precision int8 needs --data, whose training images say which ranges the numbers have")
        _check_image_size(self.imgsz)
        _check_device(self.device)
        _check_counts(self, "round_to", "threads", "runtime_batch", least=1)
        _check_counts(self, "seed", least=0)
        _check_share("min_keep", self.min_keep)


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
        _check_counts(self, "images", "batch", "threads", least=1)
        _check_counts(self, "seed", least=0)


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
        _check_counts(self, "epochs", "batch", "threads", least=1)
        _check_counts(self, "seed", least=0)


Config: TypeAlias = PruningConfig | ProfileConfig | ApplyConfig | TrainConfig

COMMANDS: dict[str, type[Config]] = {
    "search": SearchConfig,
    "netadapt": NetAdaptConfig,
    "sensitivity": SensitivityConfig,
    "compare": CompareConfig,
    "profile": ProfileConfig,
    "apply": ApplyConfig,
    "train": TrainConfig,
}
"""Every command by its name, with the configuration it takes."""


EXTENDABLE: dict[str, tuple[str, ...]] = {"compare": ("strategies", "seeds", "criteria")}
"""What may be changed when a run of a command goes on: it then does more than it was told at first."""


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


def _check_counts(config: Config, *names: str, least: int) -> None:
    for name in names:
        value = getattr(config, name)
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
