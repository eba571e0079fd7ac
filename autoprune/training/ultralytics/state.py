"""A training between two epochs, in full precision: what a resume needs to end with the same network, bit for bit.

Ultralytics' ``last.pt`` is not enough for that. It has the averaged weights and the optimizer in half precision, and
neither the weights in training nor any random state. Here nothing random has to be kept: every epoch begins with random
numbers of its own (`begin_epoch`), as in `training.plain`.

On a CPU a resumed training is the uninterrupted one, bit for bit. On GPUs it sees the same images in the same order
with the same augmentations, and begins with the same bits; some CUDA kernels add in an order of their own, so two
trainings differ in the last digits there with or without an interruption.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from autoprune.io.files import write_atomic
from autoprune.models.ultralytics import stock
from autoprune.models.ultralytics.data import seed_all
from autoprune.training.shapes import check_shapes, shapes_of
from autoprune.training.state_file import State, read_state, state_bytes, telling_damage

if TYPE_CHECKING:
    from autoprune.training.ultralytics.session import Session


def state_file(out: Path) -> Path:
    """Return where the training in a folder keeps its state."""
    return out / "weights" / "state.pt"


def write_state(session: Session, best: Mapping[str, torch.Tensor]) -> None:
    """Write a session's state at the end of an epoch, whole or not at all.

    Args:
        session: after its validation, with the decision whether to stop.
        best: averaged weights of the best epoch; empty if nobody asks for them.

    Raises:
        RunError: the file cannot be written.
    """
    fitness, stopper = session.best_fitness, session.stopper
    content = {
        "epoch": session.epoch + 1,
        "over": bool(session.stop),
        "batch": int(session.batch_size),
        "losses": {name: float(value) for name, value in session.tloss.items()},
        "model": stock.unwrap_model(session.model).state_dict(),
        "averaged": session.ema.ema.state_dict(),
        "updates": int(session.ema.updates),
        "best": best,
        "best_fitness": None if fitness is None else float(fitness),
        "stopper": (float(stopper.best_fitness), int(stopper.best_epoch), bool(stopper.possible_stop)),
        "optimizer": session.optimizer.state_dict(),
        "scaler": session.scaler.state_dict(),
        "last_step": session.last_step,
        "gradients": session.pending_gradients(),
        "extensions": session.extension_states(),
    }
    write_atomic(state_file(Path(session.save_dir)), state_bytes(content))


def read_training(file: Path) -> State:
    """Read a state, and make sure that it has what tells how far the training is.

    Raises:
        ModelError: the file is damaged, or holds something else.
        RunError: it cannot be read.
    """
    state = read_state(file)
    with telling_damage(file):
        int(state["epoch"]), int(state["batch"]), bool(state["over"]), dict(state["losses"])
    return state


def restore(session: Session, state: State, file: Path) -> None:
    """Put a session that has just been set up where the state tells.

    Args:
        session: made with the arguments of the interrupted one, with its networks, optimizer and scheduler.
        state: as `read_training` returns it.
        file: named in messages.

    Raises:
        TrainingError: it is the state of another network.
        ModelError: the state is damaged.
    """
    network: Any = stock.unwrap_model(session.model)
    with telling_damage(file):
        _load(network, state["model"], file)
        _load(session.ema.ema, state["averaged"], file)
        session.ema.updates = int(state["updates"])
        for saved, group in zip(state["optimizer"]["param_groups"], session.optimizer.param_groups, strict=True):
            saved["fused"] = group.get("fused")  # the device picks the kernel, not the file
        session.optimizer.load_state_dict(state["optimizer"])
        session.scaler.load_state_dict(state["scaler"])
        session.best_fitness = state["best_fitness"]
        session.stopper.best_fitness, session.stopper.best_epoch, session.stopper.possible_stop = state["stopper"]
        session.start_epoch = int(state["epoch"])
    criterion = network.init_criterion()
    if hasattr(criterion, "update"):  # the losses of end-to-end heads shift their weights after every epoch
        for _ in range(session.start_epoch):
            criterion.update()
        network.criterion = criterion


def averaged_network(module: nn.Module, state: State, file: Path) -> nn.Module:
    """Load the result of a training, the averaged weights of its last or best epoch, into a network.

    Args:
        module: changed in place.
        state: as `read_training` returns it.
        file: named in messages.

    Raises:
        TrainingError: it is the state of another network.
        ModelError: the state is damaged.
    """
    with telling_damage(file):
        _load(module, state["best"] or state["averaged"], file)
    return module


def begin_epoch(session: Session) -> None:
    """Give an epoch random numbers of its own, from the seed and its number alone, and a fresh order of images."""
    rank = int(os.environ.get("RANK", "-1")) + 1  # of the processes of a training on several GPUs
    (seed,) = np.random.SeedSequence([session.args.seed, session.epoch, rank]).generate_state(1).tolist()
    seed_all(seed)
    loader = session.train_loader
    loader.generator.manual_seed(seed)
    loader.reset()
    begin = getattr(loader.dataset, "begin_epoch", None)  # class folders have nothing to begin
    if begin is not None:
        begin()


def _load(module: nn.Module, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, shapes_of(module), file)
    module.load_state_dict(dict(tensors))
