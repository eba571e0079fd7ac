"""Set up the agents: their parameters, each default with its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PPOSettings:
    """Proximal policy optimisation (Schulman et al. 2017) with short rollouts; γ = λ = 1.

    Least loss after 200 episodes on the tests' toy (40 units; geometric mean over five problems; uniform ratio 0.81,
    optimum 0.10), without / with a prior: these defaults 0.184 / 0.126; ``marks=False`` 0.168 / 0.137. On the first
    three problems, where random search has 0.39 and CMA-ES 0.183 / 0.130, without marks: 10 epochs over 5 minibatches
    0.189 / 0.140, 20 over 5 0.172 / 0.129, 20 over 1 0.168 / 0.138. λ = 0.97 is no better on all five (0.185 / 0.137
    with marks); λ = 0.9 has 0.298 and a critic that does not learn 0.232 without a prior.

    Attributes:
        episodes: episodes per rollout; they walk in lockstep and are scored together.
        learning_rate: of actor and critic, Adam.
        epochs: passes over a rollout per update.
        minibatches: parts that a rollout is cut into; fewer if its length does not divide.
        clip: how far the probability ratio may move.
        hidden: widths of the hidden layers, actor and critic each.
        log_std: natural logarithm of the action's initial standard deviation. −1 suits a uniform start; around a good
            prior most of what lies that far away is worse, and −3 finds more (``autoprune search`` sees to it).
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the critic's loss.
        marks: whether the state marks every step by a column of its own.
    """

    episodes: int = 5
    learning_rate: float = 3e-3
    epochs: int = 20
    minibatches: int = 1
    clip: float = 0.2
    hidden: tuple[int, ...] = (64, 64)
    log_std: float = -1.0
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    marks: bool = True


@dataclass(frozen=True)
class DDPGSettings:
    """Deep deterministic policy gradient with AMC's settings (He et al., "AMC", ECCV 2018, section 3.2; its release).

    Least loss on the tests' toy, geometric mean over its seeds, of 100 episodes over 40 units from a prior (seeds 0–2)
    / of 150 over 16 without (0–4): these defaults 0.149 / 0.190; ``bootstrap=False`` 0.152 / 0.196, and with it half
    the noise 0.180 / 0.204; half the noise, no bootstrap and the actor at the critic's rate, which this was before,
    0.209 / 0.202. On one detector (bccd yolov5nu, 160 px, 16 images, flops=50%, 80 episodes, seeds 0–2) they are level
    with that: best score 0.036, 0.064, 0.064 against 0.045, 0.069, 0.056.

    Attributes:
        hidden: widths of the hidden layers, actor and critic each.
        actor_rate: learning rate of the actor, Adam.
        critic_rate: learning rate of the critic, Adam.
        tau: soft update of the target networks.
        batch: transitions per update.
        replay: transitions remembered, per step of an episode.
        noise: standard deviation of the truncated normal noise, as a share of the width of the action's box.
        noise_decay: factor on it per episode, after the random episodes.
        random_share: share of the search spent on random episodes (AMC: 100 of 400).
        updates: updates per step of an episode, at its end.
        baseline: α of the moving-average baseline that is subtracted from the rewards.
        bootstrap: whether the critic's target is AMC's, or else the episode's score; see ``replay``.
        marks: whether the state marks every step by a column of its own.
    """

    hidden: tuple[int, ...] = (300, 300)
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    tau: float = 0.01
    batch: int = 64
    replay: int = 100
    noise: float = 0.5
    noise_decay: float = 0.95
    random_share: float = 0.25
    updates: int = 1
    baseline: float = 0.5
    bootstrap: bool = True
    marks: bool = False


@dataclass(frozen=True)
class TD3Settings(DDPGSettings):
    """Twin delayed DDPG (Fujimoto et al. 2018): two critics, delayed actor, smoothed targets; otherwise as DDPG.

    Attributes:
        policy_delay: updates of the critics per update of the actor.
    """

    policy_delay: int = 2


@dataclass(frozen=True)
class SACSettings:
    """Soft actor-critic (Haarnoja et al. 2018): explores by its own stochastic policy; otherwise as DDPG."""

    hidden: tuple[int, ...] = (300, 300)
    learning_rate: float = 1e-3
    tau: float = 0.01
    batch: int = 64
    replay: int = 100
    random_share: float = 0.25
    updates: int = 1
    baseline: float = 0.5
    marks: bool = False


Settings = PPOSettings | DDPGSettings | SACSettings
