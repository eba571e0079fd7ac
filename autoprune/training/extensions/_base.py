"""What takes part in a training: a penalty, a teacher, a schedule; and what each of them may use of the training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from autoprune.training.state_file import telling_damage

LossTerms = Callable[[Any, torch.Tensor], Mapping[str, torch.Tensor]]
"""Maps the network's output in train mode and its input, shape (B, …), to scalars by name, each a mean over images."""


class Event(str, Enum):
    """When an extension is called; the values are Ultralytics' names, if it has one."""

    START = "on_train_start"
    EPOCH_START = "on_train_epoch_start"
    BATCH_START = "on_train_batch_start"
    GRADIENTS = "on_gradients"
    """The gradients of a step are complete, clipped, and not used yet."""
    STEPPED = "on_stepped"
    """The optimizer has made its step, and averaged weights do not know of it yet."""
    BATCH_END = "on_train_batch_end"
    EPOCH_END = "on_train_epoch_end"
    """All batches of an epoch were seen; it is neither validated nor saved yet."""
    END = "on_train_end"


class Training(Protocol):
    """A running training as extensions see it, whichever trainer runs it; complete from ``Event.START`` on.

    What is validated and saved is another network than ``model``, with the same tensors or averages of them, so hooks
    on ``model`` are in no checkpoint.

    Attributes:
        model: the network in training.
        optimizer: of its parameters.
        device: where it is trained.
        start_epoch: finished epochs when this process began: 0, or more after a resume.
        epoch: finished epochs.
        epochs: how many there will be, unless the training stops early.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    device: torch.device
    start_epoch: int
    epoch: int
    epochs: int

    @property
    def averaged(self) -> nn.Module | None:
        """Return the network with averaged weights; None if the trainer averages none."""

    @property
    def batches(self) -> int:
        """Return how many batches an epoch has, at most."""

    def listen(self, event: Event, listener: Callable[[Any], None], /) -> None:
        """Call ``listener(training)`` at an event; listeners are called in the order in which they came."""

    def keep(self, name: str, state: Callable[[], Mapping[str, Any]], /) -> None:
        """Keep what an extension needs to go on after a resume.

        Args:
            name: of the extension.
            state: called at the end of every epoch; returns tensors and plain values.
        """

    def put_back(self, name: str, put: Callable[[Mapping[str, Any]], None], /) -> None:
        """Call ``put`` with what an extension kept before the training was interrupted, if it was.

        Raises:
            ModelError: that is damaged.
        """

    def add_loss(self, terms: LossTerms, /) -> None:
        """Add terms to the loss of every batch, from ``Event.START`` on; they are reported under their names.

        What validation reports does not have them.
        """


class ExtensibleTraining:
    """The part of a `Training` that is the same in all trainers: who listens to it, and what extensions keep in it."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Callable[[Any], None]]] = defaultdict(list)
        self._states: dict[str, Callable[[], Mapping[str, Any]]] = {}
        self._kept: Mapping[str, Mapping[str, Any]] = {}
        self._kept_in = Path()

    def listen(self, event: str, listener: Callable[[Any], None], /) -> None:
        """Call ``listener(training)`` at an event, an `Event` or one that only this trainer has."""
        self._listeners[event].append(listener)

    def run_callbacks(self, event: str) -> None:
        """Call those that listen to an event, and nobody else."""
        for listener in self._listeners[event]:
            listener(self)

    def keep(self, name: str, state: Callable[[], Mapping[str, Any]], /) -> None:
        """Keep what an extension needs to go on after a resume."""
        self._states[name] = state

    def extension_states(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what all extensions want to keep."""
        return {name: state() for name, state in self._states.items()}

    def restore_extensions(self, states: Mapping[str, Mapping[str, Any]], file: Path) -> None:
        """Have what ``extension_states`` returned, as it was read from a file, for `put_back`."""
        self._kept, self._kept_in = dict(states), file

    def put_back(self, name: str, put: Callable[[Mapping[str, Any]], None], /) -> None:
        """Call ``put`` with what an extension kept before the training was interrupted, if it was."""
        if name in self._kept:
            with telling_damage(self._kept_in):
                put(self._kept[name])


def networks_of(training: Training) -> Sequence[nn.Module]:
    """Return all networks whose weights a training changes: the one in training, and the averaged one if any."""
    return [network for network in (training.model, training.averaged) if network is not None]


class TrainingExtension(ABC):
    """Takes part in a training by listening to its events.

    An extension may change gradients (``Event.GRADIENTS``), weights (``Event.STEPPED``), or what the loss is
    (``Training.add_loss``). What it learns itself must survive an interruption: it gives it to ``Training.keep``, and
    has ``Training.put_back`` return it.
    """

    @abstractmethod
    def attach(self, training: Training) -> None:
        """Listen to what matters before the training starts."""
