"""Distillation: the dense network teaches the pruned one while that is fine-tuned (Hinton et al., 2015).

`distillation_losses` says what is taught and how much each part weighs. Nothing of it is in a checkpoint, in the
averaged weights or in the validation's loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from autoprune.errors import TrainingError
from autoprune.statistics.layers import Norm, no_dropout, train_mode
from autoprune.training.extensions._base import Event, Training, TrainingExtension
from autoprune.training.extensions.distillation_losses import DetectorTerms, OutputTerm, same_outputs
from autoprune.training.extensions.projections import Adapters

ADAPTER_RATE = 1e-3
"""Learning rate of the adapters (AdamW's usual one), while the network has its own first one; both fall alike."""

_NAME = "distillation"


def check_teacher(teacher: nn.Module, student: nn.Module, example: torch.Tensor) -> None:
    """Make sure that two networks predict the same things at the same places, so that one can teach the other.

    Args:
        teacher: the dense network.
        student: the pruned one.
        example: inputs, shape (B, ...).

    Raises:
        TrainingError: of detectors with a head that predicts boxes and classes on a grid, classes, strides, bins of
            the box distribution or branches differ; other networks have no output of the same shape; it is an RT-DETR.
    """
    _refuse_queries(student)
    if _grid_head(teacher) is not None and _grid_head(student) is not None:
        taught, given = _facts(_grid_head(teacher)), _facts(_grid_head(student))
        for what, value in taught.items():
            if value != given[what]:
                raise TrainingError(
                    f"a teacher must have the same {what} as the network that it teaches, got {value} and "
                    f"{given[what]}; give the dense network that was pruned"
                )
        return
    if not same_outputs(*(FrozenTeacher(network, example.device)(example) for network in (student, teacher))):
        raise TrainingError(
            "a teacher must have an output of the same shape as the network that it teaches, and has none; give the "
            "dense network that was pruned, or fine-tune without `distill`"
        )


def _refuse_queries(student: nn.Module) -> None:
    """Refuse RT-DETR, known by its denoising."""
    if any(hasattr(layer, "num_denoising") for layer in student.modules()):
        raise TrainingError(
            "distillation needs outputs that belong together, and the queries of an RT-DETR do not: training adds "
            "random ones; fine-tune without `distill`"
        )


def _facts(head: Any) -> dict[str, Any]:
    return {
        "number of classes": head.nc,
        "strides": head.stride.int().tolist(),
        "number of bins per box side": head.reg_max,
        "number of head branches": 1 if getattr(head, "one2one_cv2", None) is None else 2,
    }


def _grid_head(module: nn.Module) -> Any:
    """Return the head of a YOLO detector of Ultralytics, which predicts boxes and classes on a grid; None if none."""
    layers = getattr(module, "model", None)
    head = layers[-1] if isinstance(layers, nn.Sequential) else None
    return head if all(hasattr(head, name) for name in ("cv2", "nc", "reg_max", "stride")) else None


class FrozenTeacher:
    """Gives what a network gives in train mode, with its own batch norm statistics, no dropout and no gradients.

    Args:
        network: it is copied.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network = train_mode(deepcopy(network).to(device).requires_grad_(False))
        for layer in self.network.modules():
            if isinstance(layer, Norm):
                layer.eval()

    @torch.no_grad()
    @no_dropout()
    def __call__(self, images: torch.Tensor) -> Any:
        """Return its outputs for a batch of images."""
        return self.network(images)


class Distillation(TrainingExtension):
    """Adds what a teacher would predict to the loss of the network in training.

    The teacher sees the same augmented images, with its own batch norm statistics, without gradients, and in the same
    number format. Detectors with a head that predicts boxes and classes on a grid learn classes, boxes and the maps
    that the head reads; these go through a 1×1 convolution each to the teacher's widths, and the convolutions have an
    optimizer of their own, which a resume goes on with. Networks of any other class learn the teacher's outputs.

    Args:
        teacher: the dense network; it is copied.
        weight: of the teacher's part in the loss; with 1 it begins about half as large as a YOLO's own.
    """

    def __init__(self, teacher: nn.Module, *, weight: float = 1.0) -> None:
        self._teacher, self._weight = teacher, weight
        self._adapters = Adapters([])
        self._optimizer: torch.optim.Optimizer | None = None

    def attach(self, training: Training) -> None:
        """Listen to the start, to epochs, and to the optimizer's steps."""
        training.listen(Event.START, self._begin)
        training.listen(Event.EPOCH_START, self._begin_epoch)
        training.listen(Event.STEPPED, self._step)
        training.keep(_NAME, self._state)

    def _begin(self, training: Training) -> None:
        student: Any = training.model
        _refuse_queries(student)
        teacher = FrozenTeacher(self._teacher, training.device)
        heads = [_grid_head(network) for network in (student, self._teacher)]
        if None in heads:
            training.add_loss(OutputTerm(teacher, weight=self._weight))
            return
        with torch.random.fork_rng(devices=[]):  # the training draws what it would draw without a teacher
            widths = list(zip(*map(_map_widths, heads), strict=True))
            self._adapters = Adapters(widths).to(training.device)
        self._optimizer = torch.optim.AdamW(self._adapters.parameters(), lr=ADAPTER_RATE)
        training.put_back(_NAME, self._put_back)
        training.add_loss(DetectorTerms(teacher, self._adapters, weight=self._weight))

    def _begin_epoch(self, _: Training) -> None:
        if self._optimizer is not None:
            self._optimizer.zero_grad()  # also after a lack of memory

    def _step(self, training: Training) -> None:
        """Train the adapters; their gradients are unscaled, since half precision is bfloat16 here (`finetune`)."""
        if self._optimizer is None:
            return
        network = training.optimizer.param_groups[0]
        for group in self._optimizer.param_groups:
            group["lr"] = ADAPTER_RATE * network["lr"] / network["initial_lr"]
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _state(self) -> Mapping[str, Any]:
        if self._optimizer is None:
            return {}
        return {"adapters": self._adapters.state_dict(), "optimizer": self._optimizer.state_dict()}

    def _put_back(self, state: Mapping[str, Any]) -> None:
        assert self._optimizer is not None
        self._adapters.load_state_dict(state["adapters"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._adapters.fitted = True


def _map_widths(head: Any) -> list[int]:
    """Return the channels of the maps that a head reads: what the first convolution of each box branch takes."""
    first = (next(layer for layer in branch.modules() if isinstance(layer, nn.Conv2d)) for branch in head.cv2)
    return [layer.in_channels for layer in first]
