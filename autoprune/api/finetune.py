"""Train a network that is held in a variable."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autoprune.api.listening import checked_listener
from autoprune.api.network import Network
from autoprune.choices import MOST_LR_SCALE
from autoprune.config._checks import check_counts, check_rate, check_share, named
from autoprune.config.reading import from_python
from autoprune.config.train_args import check_train_args
from autoprune.errors import AutopruneError, ConfigError
from autoprune.listener import Listener
from autoprune.training.extensions.distill import check_teacher
from autoprune.workflows.training_record import TrainingRecord
from autoprune.workflows.tuning import Tuning, arguments_of, tune


def finetune(
    network: Network,
    *,
    epochs: int = 20,
    lr_scale: float = 1.0,
    batch: int = 16,
    seed: int = 0,
    patience: int | None = None,
    teacher: Network | None = None,
    train_args: Mapping[str, Any] | Sequence[str] | None = None,
    out: str | Path,
    listener: Listener | None = None,
) -> Network:
    """Train a pruned network on; an interrupted call goes on when repeated.

    Losses are those of the dense training, and so are augmentations, but for mosaic and others that mix images, which
    end 20 epochs before the end. The optimizer of Ultralytics' networks is MuSGD; fewer than 10 epochs keep that of the
    dense training, at 0.3 of its rate.

    Args:
        network: is not changed.
        epochs: passes over the training split.
        lr_scale: first learning rate as a multiple of the default.
        batch: images per step.
        seed: fixes the training.
        patience: epochs without a better one after which the training stops, 0 for never; by default 0 below 100
            epochs, from there on a quarter of them, at least 50.
        teacher: a network that teaches it, usually the dense one.
        train_args: Ultralytics' training arguments, such as ``{"mosaic": 0.5}`` or ``["mosaic=0.5"]``.
        out: folder of the training's files and of the trained network, ``model``; ``training.json`` in it says what it
            was begun with.
        listener: hears the progress.

    Raises:
        ConfigError: a value is out of its range, or the network's training has no such argument.
        TrainingError: the loss is not a number, there is no data set, the teacher predicts other things than the
            network, or ``out`` has another training or what something else has left.

    Example:
        >>> net = ap.load("best.pt", data="data.yaml")
        >>> small = ap.Policy.load("policy.json").apply(net)
        >>> small = ap.finetune(small, epochs=1, out="runs/small")
        >>> sorted(small.validate())
        ['mAP50', 'mAP50-95']
    """
    for name, given in (("network", network), ("teacher", teacher or network)):
        if not isinstance(given, Network):
            raise ConfigError(f"{named(name)} must be a network as autoprune.load returns it, got {given!r}")
    listener = checked_listener(listener)
    texts = from_python("train_args", tuple[str, ...], train_args or {})
    check_train_args(texts, inspect.signature(finetune).parameters)
    tuning = Tuning(
        epochs=from_python("epochs", int, epochs),
        lr_scale=from_python("lr_scale", float, lr_scale),
        batch=from_python("batch", int, batch),
        seed=from_python("seed", int, seed),
        patience=from_python("patience", int | None, patience),
        teacher=None if teacher is None else teacher.module,
        arguments=arguments_of(texts),
    )
    check_counts(tuning, "epochs", "batch", least=1)
    check_counts(tuning, "seed", "patience", least=0)
    check_share("lr_scale", tuning.lr_scale, most=MOST_LR_SCALE)
    check_rate(texts, tuning.lr_scale)
    if teacher is not None:
        check_teacher(teacher.module, network.module, network.adapter.example(1))
    folder = Path(out)
    path = network.adapter.checkpoint(folder, "model")
    record = TrainingRecord.of(
        network.module,
        teacher=tuning.teacher,
        opened=network.opened,
        data=network.data,
        imgsz=network.imgsz,
        **{name: getattr(tuning, name) for name in ("epochs", "lr_scale", "batch", "seed", "patience")},
        train_args=sorted(texts),
    )
    record.claim(folder, path)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            module = tune(network.adapter, network.module, folder, tuning=tuning, notes={}, listener=listener)
    except AutopruneError:
        record.release(folder)
        raise
    return network.with_module(module, file=path)
