"""``autoprune train``: weights and a policy → the pruned network, trained."""

from __future__ import annotations

import json

from autoprune.commands.applied import apply_policy
from autoprune.commands.folder import RunFolder, environment
from autoprune.commands.screen import Screen
from autoprune.commands.stages import as_json
from autoprune.commands.tuning import tune
from autoprune.config import TrainConfig

RECALIBRATION_IMAGES = 60


def run(config: TrainConfig, screen: Screen) -> int:
    """Prune by a policy, fine-tune, and save ``model.pt``."""
    applied = apply_policy(config, screen, images=RECALIBRATION_IMAGES)
    adapter = applied.network.adapter
    dense = applied.network.space.allocation(applied.network.space.dense)
    with RunFolder.open("train", config) as folder:
        pruned, trained = folder.path / "pruned.pt", folder.path / "model.pt"
        adapter.save(applied.module, pruned, notes=applied.notes)
        applied.policy.save(folder.path / "policy.json")
        stages = {
            "dense": applied.stage(adapter.module, dense, validate=True),
            "pruned": applied.stage(applied.module, applied.allocation, pruned, validate=True),
        }
        tuned = tune(
            adapter, applied.module, folder.path, epochs=config.epochs, lr_scale=config.lr_scale,
            batch=config.batch, seed=config.seed, notes=applied.notes, screen=screen,
        )  # fmt: skip
        stages["finetuned"] = applied.stage(tuned, applied.allocation, trained, validate=True)
        summary = {**{name: as_json(stage) for name, stage in stages.items()}, "environment": environment()}
        folder.write("summary.json", json.dumps(summary, indent=2) + "\n")
        applied.show(stages, screen)
        screen.note(f"The trained network is {folder.path / 'model.pt'}.")
    return 0
