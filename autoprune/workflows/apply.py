"""``autoprune apply``: weights and a policy → the pruned checkpoint."""

from __future__ import annotations

from autoprune.config import ApplyConfig
from autoprune.listener import Listener
from autoprune.workflows import stages
from autoprune.workflows.applied import apply_policy
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder, check_free
from autoprune.workflows.shown import keep_detections
from autoprune.workflows.stock_yaml import describe


def run(config: ApplyConfig, listener: Listener, caller: Caller) -> Finished:
    """Prune by a policy, recalibrate if there is data, and save the pruned checkpoint."""
    check_free(config.out, config)  # before minutes of pruning
    listener.stages(stages.of_applying())
    listener.stage(stages.OPEN)
    applied = apply_policy(config, listener, images=config.images)
    adapter, validate = applied.network.adapter, applied.network.adapter.has_images
    with RunFolder.open("apply", config, caller) as folder:
        path = adapter.checkpoint(folder.path, "pruned")
        module = describe(applied.module, adapter, folder.path, required=False)
        adapter.save(module, path, notes=applied.notes)
        applied.policy.save(folder.path / "policy.json")
        listener.stage(stages.PRUNED)
        measured = {
            "dense": applied.stage(folder, "dense", adapter.module, validate=validate),
            "pruned": applied.stage(folder, "pruned", module, path, validate=validate),
        }
        if config.report:
            keep_detections(adapter, {"dense": adapter.module, "pruned": module}, folder.path, listener)
        applied.publish(measured, folder, listener)
    listener.note(f"The pruned network is {path}.")
    if not validate:
        listener.note(
            "Without `data` it is not compensated, nor its batch norm recalibrated; expect low accuracy until it is "
            "trained."
        )
    return Finished(folder.path)
