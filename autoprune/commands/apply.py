"""``autoprune apply``: weights and a policy → the pruned checkpoint."""

from __future__ import annotations

from autoprune.commands.applied import apply_policy
from autoprune.commands.folder import RunFolder
from autoprune.commands.screen import Screen
from autoprune.config import ApplyConfig


def run(config: ApplyConfig, screen: Screen) -> int:
    """Prune by a policy, recalibrate where there is data, and save the pruned checkpoint."""
    applied = apply_policy(config, screen, images=config.images)
    adapter, validate = applied.network.adapter, applied.network.adapter.has_images
    with RunFolder.open("apply", config) as folder:
        path = adapter.checkpoint(folder.path, "pruned")
        adapter.save(applied.module, path, notes=applied.notes)
        applied.policy.save(folder.path / "policy.json")
        dense = applied.network.space.allocation(applied.network.space.dense)
        stages = {
            "dense": applied.stage(adapter.module, dense, validate=validate),
            "pruned": applied.stage(applied.module, applied.allocation, path, validate=validate),
        }
    applied.show(stages, screen)
    screen.note(f"The pruned network is {path}.")
    if not validate:
        screen.note("Without --data its batch norm is not recalibrated; expect low accuracy until it is trained.")
    return 0
