"""How the actions that are tried differ from those that an agent wants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from autoprune.io.finite import check_finite

Array = npt.NDArray[Any]


class Exploration(ABC):
    """Turns wanted actions into tried ones, all within [−1, 1].

    Attributes:
        noise: standard deviation of what is added now; NaN where actions do not depend on what is wanted.
    """

    noise: float

    @abstractmethod
    def __call__(self, actions: Array) -> Array:
        """Return the actions to try, shape as given."""

    @abstractmethod
    def episode_ended(self) -> None:
        """Hear that the episodes have ended."""


class NoExploration(Exploration):
    """For agents whose policy is random itself."""

    noise = 0.0

    def __call__(self, actions: Array) -> Array:
        """Return the actions."""
        return actions

    def episode_ended(self) -> None:
        """Nothing changes."""


class TruncatedNoise(Exploration):
    """Uniform actions for some episodes, then truncated normal noise that shrinks (AMC, ECCV 2018, section 3.2).

    Args:
        sigma: standard deviation in the first episode after the random ones.
        decay: factor on it per episode.
        random_episodes: episodes of uniform actions.
        seed: of the noise.
    """

    def __init__(self, *, sigma: float, decay: float, random_episodes: int, seed: int) -> None:
        self._sigma, self._decay, self._random_left = sigma, decay, random_episodes
        self._rng = np.random.default_rng(seed)

    @property
    def noise(self) -> float:  # type: ignore[override]
        """Standard deviation of what is added now, NaN in random episodes."""
        return float("nan") if self._random_left > 0 else self._sigma

    def __call__(self, actions: Array) -> Array:
        """Return uniform actions, or draws from a normal distribution around the given ones, cut at ±1.

        Raises:
            ConfigError: an action is NaN or infinite; no draw would come near it.
        """
        check_finite(
            actions.reshape(-1),
            lambda _: "An agent's action",
            way_out="the agent has diverged: lower its learning rate, or take another seed",
        )
        if self._random_left > 0:
            return self._rng.uniform(-1.0, 1.0, size=actions.shape)
        return truncated_normal(self._rng, np.clip(actions, -1.0, 1.0), self._sigma)

    def episode_ended(self) -> None:
        """Count a random episode, or shrink the noise."""
        if self._random_left > 0:
            self._random_left -= 1
        else:
            self._sigma *= self._decay


def truncated_normal(rng: np.random.Generator, mean: Array, sigma: float) -> Array:
    """Draw from normal distributions cut to [−1, 1], by rejection; every mean lies within, so half of all draws do."""
    drawn = np.full(mean.shape, np.nan)
    while (missing := np.isnan(drawn)).any():
        fresh = mean[missing] + sigma * rng.normal(size=int(missing.sum()))
        drawn[missing] = np.where(np.abs(fresh) <= 1, fresh, np.nan)
    return drawn
