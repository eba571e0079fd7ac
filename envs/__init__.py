"""Gymnasium environments; importing this package registers them.

``gymnasium.make("autoprune.envs:autoprune/ChannelPruning-v0", problem=problem)`` imports it on the way. Nothing heavy
is loaded until an environment is made.
"""

import gymnasium

CHANNEL_PRUNING = "autoprune/ChannelPruning-v0"
"""Name of the environment that walks a network's units; see ``autoprune.envs.pruning_env.PruningEnv``."""


def register_envs() -> None:
    """Register every environment of this package with Gymnasium; again and again if one likes.

    Example:
        >>> register_envs()
        >>> CHANNEL_PRUNING in gymnasium.registry
        True
    """
    if CHANNEL_PRUNING not in gymnasium.registry:
        gymnasium.register(CHANNEL_PRUNING, entry_point="autoprune.envs.pruning_env:PruningEnv")


register_envs()

__all__ = ["CHANNEL_PRUNING", "register_envs"]
