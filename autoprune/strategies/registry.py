"""Register every strategy: a new one is a file and a record here. Nothing heavy is imported before use."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoprune.choices import RecordEnum, add_members

if TYPE_CHECKING:
    from autoprune.strategies._base import SearchTask, Strategy


@dataclass(frozen=True)
class StrategySpec:
    """What is known of a strategy before it is made.

    Attributes:
        name: as options and files name it.
        factory: ``module:name`` of what makes it of a `SearchTask`.
        agent: whether it is an agent of reinforcement learning.
        uses_prior: whether it starts from a `SearchPrior`, and can start from candidates of others.
        uses_gains: whether it needs the gains of widening every unit.
        uses_rollout: whether it takes a number of candidates to have scored together.
        uses_curves: whether it takes sensitivity curves that were measured before.
        deterministic: whether it does the same whatever the seed.
        source: where it comes from.

    Example:
        >>> spec = StrategyName("evolution").spec
        >>> spec.uses_prior, spec.deterministic
        (True, False)
    """

    name: str
    factory: str
    agent: bool = False
    uses_prior: bool = False
    uses_gains: bool = False
    uses_rollout: bool = False
    uses_curves: bool = False
    deterministic: bool = False
    source: str = ""

    def make(self, task: SearchTask) -> Strategy:
        """Return the strategy for a task."""
        strategy: Strategy = pkgutil.resolve_name(self.factory)(task)
        return strategy


_HERE = "autoprune.strategies"
_AGENTS = f"{_HERE}.rl.agents:AgentKind"

STRATEGIES = (
    StrategySpec(
        "ppo",
        f"{_AGENTS}.PPO.make",
        agent=True,
        uses_prior=True,
        uses_rollout=True,
        source="Schulman et al., Proximal Policy Optimization Algorithms, arXiv:1707.06347, 2017",
    ),
    StrategySpec("ddpg", f"{_AGENTS}.DDPG.make", agent=True, uses_prior=True, source="He et al., AMC, ECCV 2018"),
    StrategySpec(
        "td3",
        f"{_AGENTS}.TD3.make",
        agent=True,
        uses_prior=True,
        source="Fujimoto et al., Addressing Function Approximation Error in Actor-Critic Methods, ICML 2018",
    ),
    StrategySpec(
        "sac",
        f"{_AGENTS}.SAC.make",
        agent=True,
        uses_prior=True,
        source="Haarnoja et al., Soft Actor-Critic, ICML 2018",
    ),
    StrategySpec("uniform", f"{_HERE}.uniform:UniformStrategy.of", deterministic=True),
    StrategySpec(
        "global",
        f"{_HERE}.threshold:ThresholdStrategy.of",
        deterministic=True,
        source="Liu et al., Network Slimming, ICCV 2017",
    ),
    StrategySpec("random", f"{_HERE}.random:RandomStrategy.of", source="Li et al., EagleEye, ECCV 2020"),
    StrategySpec(
        "greedy",
        f"{_HERE}.greedy:GreedyStrategy.of",
        deterministic=True,
        source="Yang et al., NetAdapt, ECCV 2018; Minoux, Accelerated Greedy Algorithms, 1978",
    ),
    StrategySpec(
        "sensitivity",
        f"{_HERE}.sensitivity:SensitivityStrategy.of",
        uses_curves=True,
        deterministic=True,
        source="Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017",
    ),
    StrategySpec(
        "knapsack",
        f"{_HERE}.knapsack:KnapsackStrategy.of",
        uses_curves=True,
        deterministic=True,
        source="Shen et al., Structural Pruning via Latency-Saliency Knapsack, NeurIPS 2022",
    ),
    StrategySpec(
        "evolution",
        f"{_HERE}.evolution:EvolutionStrategy.of",
        uses_prior=True,
        source="Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772",
    ),
    StrategySpec(
        "polish",
        f"{_HERE}.polish:PolishStrategy.of",
        uses_prior=True,
        uses_rollout=True,
        source="Hoos & Stützle, Stochastic Local Search: Foundations and Applications, 2004",
    ),
    StrategySpec(
        "regrowth",
        f"{_HERE}.regrowth:RegrowthStrategy.of",
        uses_gains=True,
        deterministic=True,
        source="gradients as in Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019",
    ),
)
"""In the order in which help and messages list them."""


class StrategyName(RecordEnum):
    """The name of a strategy, as an option takes it.

    Example:
        >>> StrategyName("ddpg").spec.source
        'He et al., AMC, ECCV 2018'
    """

    spec: StrategySpec
    add_members(vars(), STRATEGIES)


PPO, GLOBAL = StrategyName("ppo"), StrategyName("global")
"""The defaults of ``search`` and of ``slim``."""


def names_where(flag: str) -> tuple[str, ...]:
    """Return the names of the strategies whose record has a flag set, e.g. ``uses_prior``.

    Example:
        >>> names_where("uses_curves")
        ('sensitivity', 'knapsack')
    """
    return tuple(spec.name for spec in STRATEGIES if getattr(spec, flag))
