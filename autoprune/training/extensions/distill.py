"""Distillation: the dense network teaches the pruned one while that is fine-tuned (Hinton et al., 2015).

What is taught and how much each part weighs is told in `lessons`. Nothing of it is in a checkpoint, in the averaged
weights or in the validation's loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from autoprune.errors import TrainingError
from autoprune.models.ultralytics import stock
from autoprune.training.extensions._base import STEPPED, TrainingExtension
from autoprune.training.extensions.distillation_losses import DistilledCriterion
from autoprune.training.extensions.projections import Adapters
from autoprune.training.ultralytics.session import Session

ADAPTER_RATE = 1e-3
"""Learning rate of the adapters (AdamW's usual one), while the network has its own first one; both fall alike."""

_NAME = "distillation"


def check_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Make sure that two networks predict the same things at the same places, so that one can teach the other.

    Raises:
        TrainingError: classes, strides, bins of the box distribution, or branches of the head differ, or one of them
            predicts no boxes and classes on a grid.
    """
    for network in (teacher, student):
        if not isinstance(_head(network), stock.Detect):
            raise TrainingError(
                f"distillation needs a head that predicts boxes and classes on a grid, as YOLO detectors have it, got "
                f"{type(_head(network)).__name__}; fine-tune without `distill`"
            )
    taught, given = _facts(teacher), _facts(student)
    for what, value in taught.items():
        if value != given[what]:
            raise TrainingError(
                f"a teacher must have the same {what} as the network that it teaches, got {value} and {given[what]}; "
                "give the dense network that was pruned"
            )


def _facts(module: nn.Module) -> dict[str, Any]:
    head = _head(module)
    return {
        "number of classes": head.nc,
        "strides": head.stride.int().tolist(),
        "number of bins per box side": head.reg_max,
        "number of head branches": 1 if getattr(head, "one2one_cv2", None) is None else 2,
    }


def _head(module: nn.Module) -> Any:
    layers: Any = module.get_submodule("model")
    return layers[-1]


class Distillation(TrainingExtension):
    """Adds what a teacher would predict to the loss of the network in training.

    The teacher sees the same augmented images, in eval mode with its own batch norm statistics, without gradients, and
    in the same number format. The maps that the student's head reads go through a 1×1 convolution each to the teacher's
    widths; these adapters have an optimizer of their own, and a resume goes on with both.

    Args:
        teacher: the dense network; it is copied.
        weight: of the teacher's part in the loss; with 1 it begins about half as large as the network's own.
    """

    def __init__(self, teacher: nn.Module, *, weight: float = 1.0) -> None:
        self._teacher, self._weight = deepcopy(teacher).eval().requires_grad_(False), weight

    def attach(self, session: Session) -> None:
        """Listen to the start and the end of epochs, and to the optimizer's steps."""
        session.listen("on_train_start", self._begin)
        session.listen("on_train_epoch_start", lambda _: self._optimizer.zero_grad())  # also after a lack of memory
        session.listen(STEPPED, self._step)
        session.listen("on_train_epoch_end", self._end_epoch)
        session.keep(_NAME, self._state)

    def _begin(self, session: Session) -> None:
        student: Any = session.model
        check_teacher(self._teacher, student)
        teacher = self._teacher.to(session.device)
        with torch.random.fork_rng(devices=[]):  # the training draws what it would draw without a teacher
            widths = list(zip(_map_widths(student), _map_widths(teacher), strict=True))
            self._adapters = Adapters(widths).to(session.device)
        self._optimizer = torch.optim.AdamW(self._adapters.parameters(), lr=ADAPTER_RATE)
        session.put_back(_NAME, self._put_back)
        own = student.criterion if student.criterion is not None else student.init_criterion()
        student.criterion = DistilledCriterion(own, teacher, self._adapters, weight=self._weight)

    def _step(self, session: Session) -> None:
        """Train the adapters; their gradients are unscaled, since half precision is bfloat16 here (`finetune`)."""
        network = session.optimizer.param_groups[0]
        for group in self._optimizer.param_groups:
            group["lr"] = ADAPTER_RATE * network["lr"] / network["initial_lr"]
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _end_epoch(self, session: Session) -> None:
        """Take out what the validation's loss does not have."""
        session.loss_items = {
            name: value for name, value in session.loss_items.items() if name not in DistilledCriterion.TERMS
        }

    def _state(self) -> Mapping[str, Any]:
        return {"adapters": self._adapters.state_dict(), "optimizer": self._optimizer.state_dict()}

    def _put_back(self, state: Mapping[str, Any]) -> None:
        self._adapters.load_state_dict(state["adapters"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._adapters.fitted = True


def _map_widths(module: nn.Module) -> list[int]:
    """Return the channels of the maps that the head reads: what the first convolution of each box branch takes."""
    first = (next(layer for layer in branch.modules() if isinstance(layer, nn.Conv2d)) for branch in _head(module).cv2)
    return [layer.in_channels for layer in first]
