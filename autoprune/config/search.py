"""The options of the commands that search a policy, or measure what makes one good."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autoprune.budget import Budget, budget_levels
from autoprune.choices import Rule, Select
from autoprune.config._base import (
    BudgetedConfig,
    PruningConfig,
    ReconstructingConfig,
    TrainingWorkersConfig,
    WorkersConfig,
)
from autoprune.config._checks import check_counts, check_share, named
from autoprune.criteria.registry import spec_of
from autoprune.errors import ConfigError
from autoprune.io.numerals import decimal
from autoprune.strategies.registry import PPO, StrategyName, StrategySpec, names_where


@dataclass(frozen=True, kw_only=True)
class SearchConfig(ReconstructingConfig, WorkersConfig):
    """Search a policy that holds a budget, prune, fine-tune, and measure the result.

    Attributes:
        strategy: the search strategy: a reinforcement-learning agent (`agent` says the same), or a baseline
        episodes: how many candidates the strategy may try; by default 100, fewer for the bundled detector
        rollout: candidates that ppo tries per policy update (by default 5) and polish per step (3), which is also how
            many `workers` can score at the same time
        rule: how an episode meets the budget: projected scales all keep ratios by one factor after the last unit,
            capped limits each action as it is taken (AMC)
        sensitivity: the sensitivity.json of an autoprune sensitivity run of this model, which is then not measured anew
        warm_start: the folder of a finished search of this model and data, whose candidates the strategy starts
            from; repeat the option for several
        finalists: how many of the best candidates are measured on the device and compared by mAP before one is chosen;
            one of them is always from the allocation that the search started with; by default 5, fewer for the bundled
            detector
        tensorboard: write rewards, costs and noise as TensorBoard events
    """

    strategy: StrategyName = PPO
    episodes: int | None = None
    rollout: int | None = None
    rule: Rule = Rule.PROJECTED
    sensitivity: Path | None = None
    warm_start: tuple[str, ...] = ()
    finalists: int | None = None
    tensorboard: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_workers()
        check_counts(self, "finalists", "episodes", "rollout", least=1)
        for name, flag in (("sensitivity", "uses_curves"), ("warm_start", "uses_prior"), ("rollout", "uses_rollout")):
            if getattr(self, name) and not getattr(self.strategy.spec, flag):
                fitting = ", ".join(names_where(flag))
                raise ConfigError(
                    f"{named(name)} is for the strategies {fitting}, got {self.strategy.value}; leave it out"
                )


@dataclass(frozen=True, kw_only=True)
class NetAdaptConfig(BudgetedConfig, TrainingWorkersConfig):
    """Prune step by step to one or several budgets, fine-tuning briefly at every step (NetAdapt).

    A limit may list several levels, as in latency=12ms,10ms,8ms: one run makes a network for each of them.

    Attributes:
        budget: a limit that the result holds, as in search (latency=8ms, latency=60%, flops=50%, …), or several levels
            of it, such as flops=80%,60%,40%, with a network for each; repeat the option to combine limits
        initial_step: share of the dense network's cost that the first iteration saves
        decay: each iteration saves this much of what the one before saved
        short_term_steps: training steps that a proposal is fine-tuned before it is compared, 0 for none
        shortlist: how many of an iteration's proposals, the best without fine-tuning, are fine-tuned and compared; a
            unit that lost too much when it was last tried to be among them is not tried again; 0 tries and
            fine-tunes all of them, as in the paper
        select: what is kept of an iteration's proposals: the highest score, or the least score lost per cost saved
    """

    criterion: str = "l1"  # ranked anew at every step, which covariance takes seconds for
    initial_step: float = 0.025
    decay: float = 0.96
    short_term_steps: int = 10
    shortlist: int = 3
    select: Select = Select.ACCURACY

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_workers()
        check_counts(self, "short_term_steps", "shortlist", least=0)
        for name in ("initial_step", "decay"):
            check_share(name, getattr(self, name))

    @cached_property
    def levels(self) -> tuple[Budget, ...]:
        """The budget of each level, in the order given."""
        return tuple(level.for_batch(self.runtime_batch) for level in budget_levels(self.budget))


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig(PruningConfig, WorkersConfig):
    """Measure how the score falls when each unit alone is pruned: sensitivity.json and two pictures.

    Attributes:
        ratios: keep ratios at which each unit is tried, in (0, 1), with commas between them
    """

    ratios: str = "0.75,0.5,0.25,0.1"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_workers()
        self.keep_ratios  # noqa: B018  (raises if they are malformed)

    @property
    def keep_ratios(self) -> tuple[float, ...]:
        """The ratios as numbers, largest first."""
        ratios = {decimal(word.strip()) or 0.0 for word in self.ratios.split(",")}
        if not all(0 < ratio < 1 for ratio in ratios):
            raise ConfigError(f"`ratios` must be keep ratios in (0, 1), such as 0.75,0.5,0.25, got {self.ratios}")
        return tuple(sorted(ratios, reverse=True))


@dataclass(frozen=True)
class BenchmarkEntry:
    """What takes part in a comparison.

    Attributes:
        strategy: what searches.
        warm_start: what searches before it, with half of the evaluations; its candidates are handed on.
    """

    strategy: StrategyName
    warm_start: StrategyName | None = None

    @classmethod
    def parse(cls, text: str) -> BenchmarkEntry:
        """Read ``ppo``, or ``knapsack+ppo`` for ppo started from knapsack's candidates."""
        known = {member.value: member for member in StrategyName}
        words = [word.strip() for word in text.split("+")]
        unknown = [word for word in words if word not in known]
        if unknown or len(words) > 2:
            raise ConfigError(
                f"`strategies` takes names of {', '.join(known)}, with commas between them, and A+B for B started from "
                f"A's candidates, got {text!r}"
            )
        entry = cls(known[words[-1]], known[words[0]] if len(words) == 2 else None)
        if entry.warm_start is not None and not entry.strategy.spec.uses_prior:
            able = ", ".join(member.value for member in StrategyName if member.spec.uses_prior)
            raise ConfigError(f"`strategies` A+B needs a B that can start from candidates ({able}), got {text!r}")
        return entry

    @property
    def specs(self) -> tuple[StrategySpec, ...]:
        """The records of what takes part."""
        return tuple(name.spec for name in (self.warm_start, self.strategy) if name is not None)

    def __str__(self) -> str:
        return self.strategy.value if self.warm_start is None else f"{self.warm_start.value}+{self.strategy.value}"


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ReconstructingConfig, TrainingWorkersConfig):
    """Compare strategies at equal cost: the same number of evaluations on the same images, the same fine-tune.

    A finished comparison is extended by `resume` RUN with more `strategies`, `criteria` or `seeds`; what it has stays.

    Attributes:
        strategies: what takes part, names with commas between them; knapsack+ppo is ppo started from the candidates of
            knapsack, with half of the evaluations each
        evaluations: how many candidates each may score, those of its warm start and of its priors counted
        seeds: how often each strategy with chance in it runs
        rollout: how many candidates ppo and polish try before they go on, as in search
        rule: how an agent's episode meets the budget, as in search
        criteria: in place of strategies, criteria with commas between them: each says which channels stay of the one
            allocation that the uniform ratio gives
        references: also train what needs no pruning: the dense network, a smaller network of the family, and the
            dense network at a lower image size
        correlated: fine-tune at least this many networks of different scores, for the rank correlation of score and
            accuracy
    """

    strategies: str = "uniform,global,random,greedy,sensitivity,knapsack,regrowth,evolution,polish,ddpg,ppo"
    evaluations: int = 100
    seeds: int = 3
    rollout: int | None = None
    rule: Rule = Rule.PROJECTED
    criteria: str = ""
    references: bool = True
    correlated: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_workers()
        check_counts(self, "evaluations", "seeds", "rollout", least=1)
        check_counts(self, "correlated", least=0)
        self.entries  # noqa: B018  (raises if they are malformed)
        for name in self.compared_criteria:
            spec_of(name)

    @property
    def entries(self) -> tuple[BenchmarkEntry, ...]:
        """What takes part, each once."""
        return tuple(dict.fromkeys(BenchmarkEntry.parse(text) for text in self.strategies.split(",")))

    @property
    def compared_criteria(self) -> tuple[str, ...]:
        """The criteria that are compared, each once; none if strategies are."""
        return tuple(dict.fromkeys(text.strip() for text in self.criteria.split(","))) if self.criteria else ()
