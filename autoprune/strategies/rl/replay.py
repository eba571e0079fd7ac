"""The replay buffer of the off-policy agents."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize


class EpisodeReplayBuffer(ReplayBuffer):
    """Remembers actions as they were executed, and rewards each with its whole episode's score less a baseline.

    As in AMC's release (He et al., ECCV 2018, section 3.2), where the critic learns
    Q(s, a) = R − b + Q'(s', μ'(s')), the last term only before the episode's last step: every transition has the final
    reward R, γ is 1, and b is an exponential moving average of the sampled batches' mean reward. So Q is near R − b
    times the steps that are left. Two things are not AMC's: rewards are in units of the standard deviation of the
    remembered scores, and what is remembered is the executed action, where AMC's release keeps the agent's wish.

    Without ``bootstrap`` the critic learns R − b itself, what the whole episode brought, at every step: the target
    networks are not asked.
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
        last_steps = batch_inds // self._steps * self._steps + self._steps - 1
        spread = float(self.rewards[self.dones > 0].std())
        rewards = self.to_torch(self.rewards[last_steps] / (spread if spread > 0 else 1.0))
        if self._alpha:
            mean = float(rewards.mean())
            self._average = mean if self._average is None else self._average + self._alpha * (mean - self._average)
            rewards = rewards - self._average
        return samples._replace(rewards=rewards, dones=samples.dones if self._bootstrap else samples.dones * 0 + 1)
