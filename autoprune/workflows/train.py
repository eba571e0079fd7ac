"""``autoprune train``: weights and a policy → the pruned network, trained."""

from __future__ import annotations

from torch import nn

from autoprune.config import TrainConfig, devices_of
from autoprune.listener import Listener
from autoprune.models import open_adapter
from autoprune.results import Stage
from autoprune.runtimes.settings import resolve_device
from autoprune.training.extensions.distill import check_teacher
from autoprune.workflows import stages
from autoprune.workflows.applied import Applied, apply_policy
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder, check_free
from autoprune.workflows.shown import keep_detections
from autoprune.workflows.stock_yaml import describe
from autoprune.workflows.tuning import Tuning, arguments_of, soften, tune

RECALIBRATION_IMAGES = 60


def run(config: TrainConfig, listener: Listener, caller: Caller) -> Finished:
    """Prune by a policy, soften if asked, fine-tune, and save the trained network."""
    if config.resume is None:
        check_free(config.out, config)  # before minutes of pruning
    devices = devices_of(config.device)
    if len(devices) > 1:
        for name in devices:
            resolve_device(name)
    listener.stages(stages.of_training(config))
    listener.stage(stages.OPEN)
    applied = apply_policy(config, listener, images=RECALIBRATION_IMAGES)
    tuning = Tuning(
        epochs=config.tuning_epochs,
        lr_scale=config.lr_scale,
        batch=config.batch,
        seed=config.seed,
        teacher=_teacher(config, applied),
        distill_weight=config.distill_weight,
        patience=config.patience,
        devices=devices if len(devices) > 1 else (),
        arguments=arguments_of(config.train_args),
        callbacks=config.ultralytics_callbacks,
    )
    with RunFolder.open("train", config, caller) as folder:
        measured = _train(config, applied, folder, tuning=tuning, listener=listener)
        applied.publish(measured, folder, listener)
        listener.note(f"The trained network is {applied.network.adapter.checkpoint(folder.path, 'model')}.")
    return Finished(folder.path)


def _teacher(config: TrainConfig, applied: Applied) -> nn.Module | None:
    """Open the network that teaches, and make sure that it can."""
    if config.distill is None:
        return None
    adapter = applied.network.adapter
    teacher = open_adapter(
        config.distill,
        data=config.data,
        image_size=adapter.image_size,
        device=adapter.device,
        trust=config.trust_checkpoint,
    ).module
    check_teacher(teacher, applied.module, adapter.example(1))
    return teacher


def _train(
    config: TrainConfig, applied: Applied, folder: RunFolder, *, tuning: Tuning, listener: Listener
) -> dict[str, Stage]:
    """Save, train and measure; returns the stages, the trained network's last."""
    network, adapter, path = applied.network, applied.network.adapter, folder.path
    module = describe(applied.module, adapter, path, required=False)
    pruned, softened, model = (adapter.checkpoint(path, name) for name in ("pruned", "softened", "model"))
    adapter.save(module, pruned, notes=applied.notes)
    applied.policy.save(path / "policy.json")
    listener.stage(stages.PRUNED)
    measured = {
        "dense": applied.stage(folder, "dense", adapter.module),
        "pruned": applied.stage(folder, "pruned", module, pruned),
    }
    if config.soften:
        listener.stage(stages.SOFTEN)
        softening = Tuning(
            epochs=config.softening_epochs, lr_scale=config.lr_scale, batch=config.batch, seed=config.seed
        )
        module = soften(network, applied.allocation, path, tuning=softening, notes=applied.notes, listener=listener)
        measured["softened"] = applied.stage(folder, "softened", module, softened)
    listener.stage(stages.FINETUNE)
    tuned = tune(
        adapter,
        module,
        path,
        tuning=tuning,
        notes=applied.notes,
        listener=listener,
        measure=lambda result: folder.validated("finetuned", result, adapter),
    )
    listener.stage(stages.RESULT)
    if config.report:
        keep_detections(adapter, {"dense": adapter.module, "finetuned": tuned}, path, listener)
    return {**measured, "finetuned": applied.stage(folder, "finetuned", tuned, model)}
