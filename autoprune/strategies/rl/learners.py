"""Build the learners of stable-baselines3, with their replay buffer, and walk episodes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecNormalize

from autoprune.arrays import AnyArray
from autoprune.strategies.rl.settings import DDPGSettings, PPOSettings, SACSettings, Settings, TD3Settings
from autoprune.strategies.rl.view import AgentView, Exploration, NoExploration, TruncatedNoise


class EpisodeReplayBuffer(ReplayBuffer):
    """Remembers actions as they were executed, and rewards each with its whole episode's score less a baseline.

    As in AMC's release (He et al., ECCV 2018, section 3.2), where the critic learns
    Q(s, a) = R − b + Q'(s', μ'(s')), the last term only before the episode's last step: every transition has the final
    reward R, γ is 1, and b is an exponential moving average of the sampled batches' mean reward. So Q is near R − b
    times the steps that are left. Two things are not AMC's: rewards are in units of the standard deviation of the
    remembered scores, and what is remembered is the executed action, where AMC's release keeps the agent's own action.

    Without ``bootstrap`` the critic learns R − b itself, what the whole episode brought, at every step: the target
    networks are not used.
    """

    def __init__(self, *args: Any, steps: int, baseline: float, bootstrap: bool, **kwargs: Any) -> None:
        """Take the buffer's arguments and these.

        Args:
            args: of the buffer; it must hold a whole number of episodes.
            steps: length of every episode.
            baseline: the moving average's α (0 subtracts nothing).
            bootstrap: whether a target goes on with the target networks' value of the next state.
            kwargs: of the buffer.
        """
        super().__init__(*args, **kwargs)
        self._steps = steps
        self._alpha = baseline
        self._bootstrap = bootstrap
        self._average: float | None = None

    def add(
        self,
        obs: AnyArray,
        next_obs: AnyArray,
        action: AnyArray,
        reward: AnyArray,
        done: AnyArray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Remember a transition with ``info["executed_action"]`` instead of the agent's own action."""
        executed = np.stack([info["executed_action"] for info in infos]).reshape(action.shape)
        super().add(obs, next_obs, executed, reward, done, infos)

    def _get_samples(self, batch_inds: AnyArray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        last_steps = batch_inds // self._steps * self._steps + self._steps - 1
        spread = float(self.rewards[self.dones > 0].std())
        rewards = self.to_torch(self.rewards[last_steps] / (spread if spread > 0 else 1.0))
        if self._alpha:
            mean = float(rewards.mean())
            self._average = mean if self._average is None else self._average + self._alpha * (mean - self._average)
            rewards = rewards - self._average
        return samples._replace(rewards=rewards, dones=samples.dones if self._bootstrap else samples.dones * 0 + 1)


def exploration_of(settings: Settings, *, evaluations: int, seed: int) -> Exploration:
    """Return how an agent with these settings explores."""
    if isinstance(settings, (PPOSettings, SACSettings)):
        return NoExploration()
    return TruncatedNoise(
        sigma=2 * settings.noise,  # the box that it draws in is 2 wide
        decay=settings.noise_decay,
        random_episodes=_random_episodes(settings, evaluations),
        seed=seed,
    )


def build(settings: Settings, env: AgentView, *, evaluations: int, seed: int) -> BaseAlgorithm:
    """Return an agent with these settings, ready to learn; it computes on the CPU, for its networks are small."""
    if isinstance(settings, PPOSettings):
        return _ppo(settings, env, seed)
    return _off_policy(settings, env, evaluations, seed)


def walk_episode(env: AgentView, act: Callable[[AnyArray], AnyArray]) -> list[dict[str, Any]]:
    """Walk one episode of a view with a single one.

    Args:
        env: the view.
        act: state, shape (1, columns) → action, shape (1, 1).

    Returns:
        The transitions, as keywords of a replay buffer's ``add``.
    """
    state, transitions = env.reset(), []
    for _ in range(env.steps):
        following, reward, done, infos = env.step(act(state))
        following = np.asarray(following)
        after = infos[0]["terminal_observation"][None] if done[0] else following
        executed = infos[0]["executed_action"][None]
        transitions.append(
            {"obs": state, "next_obs": after, "action": executed, "reward": reward, "done": done, "infos": infos}
        )
        state = following
    return transitions


def _ppo(settings: PPOSettings, env: AgentView, seed: int) -> PPO:
    steps = env.steps
    total = steps * env.num_envs
    parts = next(parts for parts in range(min(settings.minibatches, total), 0, -1) if total % parts == 0)
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        n_steps=steps,
        batch_size=total // parts,
        normalize_advantage=total // parts > 1,
        n_epochs=settings.epochs,
        gamma=1.0,
        gae_lambda=1.0,
        clip_range=settings.clip,
        ent_coef=settings.ent_coef,
        vf_coef=settings.vf_coef,
        policy_kwargs={"net_arch": list(settings.hidden), "log_std_init": settings.log_std},
        seed=seed,
        device="cpu",
    )


def _off_policy(
    settings: DDPGSettings | SACSettings, env: AgentView, evaluations: int, seed: int
) -> OffPolicyAlgorithm:
    steps = env.steps
    shared: dict[str, Any] = {
        "buffer_size": settings.replay * steps,
        "learning_starts": _random_episodes(settings, evaluations) * steps,
        "batch_size": settings.batch,
        "tau": settings.tau,
        "gamma": 1.0,
        "train_freq": (steps, "step"),
        "gradient_steps": settings.updates * steps,
        "replay_buffer_class": EpisodeReplayBuffer,
        "replay_buffer_kwargs": {
            "steps": steps,
            "baseline": settings.baseline,
            "bootstrap": isinstance(settings, DDPGSettings) and settings.bootstrap,
        },
        "seed": seed,
        "device": "cpu",
    }
    network: dict[str, Any] = {"net_arch": list(settings.hidden)}
    if isinstance(settings, SACSettings):
        return SAC("MlpPolicy", env, learning_rate=settings.learning_rate, policy_kwargs=network, **shared)
    if isinstance(settings, TD3Settings):
        shared["policy_delay"] = settings.policy_delay
    kind = _TD3 if isinstance(settings, TD3Settings) else _DDPG
    model = kind("MlpPolicy", env, learning_rate=settings.critic_rate, policy_kwargs=network, **shared)
    update_learning_rate(model.actor.optimizer, settings.actor_rate)
    return model


class _RatesAsBuilt(OffPolicyAlgorithm):
    """Leaves every optimizer its own learning rate; stable-baselines3 gives all of them the same at every update."""

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        pass


class _DDPG(_RatesAsBuilt, DDPG):
    pass


class _TD3(_RatesAsBuilt, TD3):
    pass


def _random_episodes(settings: DDPGSettings | SACSettings, evaluations: int) -> int:
    return max(round(settings.random_share * evaluations), 1)
