"""The replay buffer of the off-policy agents."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize


class EpisodeReplayBuffer(NStepReplayBuffer):
    """Remembers actions as they were executed, and rewards each with the whole episode's score less a baseline.

    AMC (He et al., ECCV 2018, section 3.2) gives the final reward to every transition with γ = 1 and subtracts an
    exponential moving average of the sampled rewards; here that is an n-step return of episode length, in units of the
    standard deviation of the remembered scores.
    """

    def __init__(self, *args: Any, baseline: float, **kwargs: Any) -> None:
        """Take the buffer's arguments and ``baseline``, the moving average's α (0 subtracts nothing)."""
        super().__init__(*args, **kwargs)
        self._alpha = baseline
        self._average: float | None = None

    def add(
        self,
        obs: npt.NDArray[Any],
        next_obs: npt.NDArray[Any],
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        done: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Remember a transition with ``info["executed_action"]`` in place of the agent's wish."""
        executed = np.stack([info["executed_action"] for info in infos]).reshape(action.shape)
        super().add(obs, next_obs, executed, reward, done, infos)

    def _get_samples(self, batch_inds: npt.NDArray[Any], env: VecNormalize | None = None) -> ReplayBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        spread = float(self.rewards[self.dones > 0].std())
        rewards = samples.rewards / (spread if spread > 0 else 1.0)
        if self._alpha:
            mean = float(rewards.mean())
            self._average = mean if self._average is None else self._average + self._alpha * (mean - self._average)
            rewards = rewards - self._average
        return samples._replace(rewards=rewards)
