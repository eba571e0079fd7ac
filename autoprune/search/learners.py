"""Builds stable-baselines3's algorithms from settings."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from autoprune.search.exploration import Exploration, NoExploration, TruncatedNoise
from autoprune.search.replay import EpisodeReplayBuffer
from autoprune.search.settings import DDPGSettings, PPOSettings, SACSettings, Settings, TD3Settings
from autoprune.search.view import AgentView


def exploration_of(settings: Settings, *, evaluations: int, seed: int) -> Exploration:
    """Return how an agent with these settings explores."""
    if isinstance(settings, (PPOSettings, SACSettings)):
        return NoExploration()
    return TruncatedNoise(
        sigma=settings.noise,
        decay=settings.noise_decay,
        random_episodes=_random_episodes(settings, evaluations),
        seed=seed,
    )


def build(settings: Settings, env: AgentView, *, evaluations: int, seed: int) -> BaseAlgorithm:
    """Return an agent with these settings, ready to learn; it computes on the CPU, for its networks are small."""
    if isinstance(settings, PPOSettings):
        return _ppo(settings, env, seed)
    return _off_policy(settings, env, evaluations, seed)


def schedules_of(settings: Settings, *, evaluations: int) -> BaseCallback | None:
    """Return what changes as an agent learns, if anything."""
    if isinstance(settings, PPOSettings) and settings.final_log_std is not None:
        return _LogStdSchedule(settings.log_std, settings.final_log_std, rollouts=evaluations / settings.episodes)
    return None


def _ppo(settings: PPOSettings, env: AgentView, seed: int) -> PPO:
    steps = int(env.get_attr("episode_steps")[0])
    total = steps * env.num_envs
    parts = next(parts for parts in range(min(settings.minibatches, total), 0, -1) if total % parts == 0)
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        n_steps=steps,
        batch_size=total // parts,
        n_epochs=settings.epochs,
        gamma=1.0,
        gae_lambda=settings.gae,
        clip_range=settings.clip,
        ent_coef=settings.entropy,
        vf_coef=settings.value,
        policy_kwargs={"net_arch": list(settings.hidden), "log_std_init": settings.log_std},
        seed=seed,
        device="cpu",
    )


def _off_policy(
    settings: DDPGSettings | SACSettings, env: AgentView, evaluations: int, seed: int
) -> OffPolicyAlgorithm:
    steps = int(env.get_attr("episode_steps")[0])
    shared: dict[str, Any] = {
        "buffer_size": settings.replay * steps,
        "learning_starts": _random_episodes(settings, evaluations) * steps,
        "batch_size": settings.batch,
        "tau": settings.tau,
        "gamma": 1.0,
        "train_freq": (steps, "step"),
        "gradient_steps": settings.updates * steps,
        "replay_buffer_class": EpisodeReplayBuffer,
        "replay_buffer_kwargs": {"n_steps": steps, "gamma": 1.0, "baseline": settings.baseline},
        "seed": seed,
        "device": "cpu",
    }
    network: dict[str, Any] = {"net_arch": list(settings.hidden)}
    if isinstance(settings, SACSettings):
        return SAC("MlpPolicy", env, learning_rate=settings.learning_rate, policy_kwargs=network, **shared)
    if isinstance(settings, TD3Settings):
        shared["policy_delay"] = settings.policy_delay
    kind = TD3 if isinstance(settings, TD3Settings) else DDPG
    model = kind("MlpPolicy", env, learning_rate=settings.critic_rate, policy_kwargs=network, **shared)
    model.actor.optimizer = torch.optim.Adam(model.actor.parameters(), lr=settings.actor_rate)
    return model


def _random_episodes(settings: DDPGSettings | SACSettings, evaluations: int) -> int:
    return max(round(settings.random_share * evaluations), 1)


class _LogStdSchedule(BaseCallback):
    """Moves PPO's log standard deviation along a line, whatever its gradient wants."""

    def __init__(self, start: float, end: float, *, rollouts: float) -> None:
        super().__init__()
        self._start, self._end, self._rollouts = start, end, rollouts
        self._done = 0

    def _on_rollout_start(self) -> None:
        share = min(self._done / max(self._rollouts - 1, 1), 1.0)
        log_std = self.model.policy.get_parameter("log_std")
        with torch.no_grad():
            log_std.fill_(self._start + share * (self._end - self._start))
        self._done += 1

    def _on_step(self) -> bool:
        return True
