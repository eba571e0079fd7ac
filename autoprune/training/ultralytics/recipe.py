"""How a pruned detector is fine-tuned: Ultralytics' training arguments, and why each is what it is.

A network that was just pruned is trained by Ultralytics' MuSGD (Muon and SGD; Jordan et al., "Muon: An optimizer for
hidden layers in neural networks", 2024), at the rate that Ultralytics gives it, whatever trained the dense network.
Searched to 30% of their FLOPs, 20 epochs, one seed (docs/accuracy.md has more), next to AdamW at the rate of the dense
training: yolov5nu 0.588 and 0.554, yolov8n 0.587 and 0.578, yolo11n 0.604 and 0.567. At 0.003 all three are as with
AdamW (0.553, 0.575, 0.565), at 0.02 they have 0.583, 0.595 and 0.581.

Every other training, one of few epochs (`plan.SHORT_EPOCHS`), and one that names another optimizer, starts at the dense
training's first rate; all rates fall by a cosine to a hundredth. (As high again, as in Renda et al., "Comparing
Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020; a tenth is what He et al., "AMC", ECCV 2018, fine-tune
with.)

Other figures here are mAP50-95 on the validation split of the project's BCCD ``yolov5nu`` at 320 px, pruned by L1 with
one ratio everywhere (dense 0.490), trained by AdamW; trainings of the same network differ by about 0.01.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.errors import ConfigError
from autoprune.models.ultralytics import stock

DEFAULT_LEARNING_RATES: Mapping[str, float] = {"SGD": 0.01, "AdamW": 0.001, "Adam": 0.001}
"""Dense learning rates if the checkpoint does not tell one (Ultralytics' own recommendations)."""

MUON, MUON_RATE = "MuSGD", 0.01
"""What brings pruned networks back, and its first learning rate: see above."""

UNMIXED_EPOCHS = 20
"""Mosaic, mixup, cutmix and copy-paste are off in the last 20 epochs, or in the last half of a longer training.

A pruned network has to find its way back to the images it is used on, and mosaics are others. Measured on the
project's BCCD yolov5nu at 320 px with half its FLOPs, mAP50-95 (dense 0.490): after 6 epochs 0.441 with mosaic in the
first half, 0.463 without.
"""


def recipe(dense: Mapping[str, Any], *, epochs: int, batch: int, lr_scale: float, muon: bool = False) -> dict[str, Any]:
    """Return Ultralytics' training arguments for a fine-tune.

    Loss gains, momentum, weight decay and augmentations are those of the dense training; but mosaic, and with it what
    else mixes images, ends early, and the images keep their size (no ``multi_scale``).

    Args:
        dense: the arguments that the dense network was trained with.
        epochs: passes over the training split.
        batch: images per step.
        lr_scale: multiple of the first learning rate.
        muon: take ``MUON`` in place of the dense training's optimizer and learning rate.
    """
    optimizer, rate = (MUON, MUON_RATE) if muon else dense_rate(dense, batch)
    return {
        **{key: dense[key] for key in _INHERITED},
        "epochs": epochs,
        "batch": batch,
        # One step per batch: with Ultralytics' 64 images per step a small data set gives three steps per epoch
        # (after 6 epochs 0.391; with steps of 16 images 0.419).
        "nbs": batch,
        "optimizer": optimizer,  # named: "auto" ignores lr0
        "lr0": rate * lr_scale,
        "lrf": 0.01,
        "cos_lr": True,
        "warmup_epochs": min(1.0, 0.1 * epochs),  # the weights are good already: only the optimizer's moments warm up
        "warmup_bias_lr": 0.0,  # Ultralytics' 0.1 is for biases that start at nothing
        "close_mosaic": min(epochs, max(UNMIXED_EPOCHS, epochs // 2)),
        "patience": 0,  # no early stop: the schedule ends where the learning rate does
    }


def from_scratch_recipe(*, epochs: int, batch: int) -> dict[str, Any]:
    """Return what a network that has learnt nothing yet needs otherwise than a fine-tune: Ultralytics' own defaults.

    One step per batch all the same: with Ultralytics' 64 images per step a small data set gives too few.

    Args:
        epochs: passes over the training split.
        batch: images per step.
    """
    defaults = ("optimizer", "lr0", "lrf", "cos_lr", "warmup_epochs", "warmup_bias_lr", "close_mosaic", "patience")
    return {**{name: stock.DEFAULT_CFG_DICT[name] for name in defaults}, "nbs": batch, "patience": epochs}


def train_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Return training arguments that a user wrote as ``key=value``, checked as Ultralytics checks them.

    Raises:
        ConfigError: Ultralytics has no such argument (its message names the nearest), or not of this type or range, or
            no optimizer or augmentation of this name.

    Example:
        >>> train_arguments(["mosaic=0.5", "cos_lr=False", "freeze=[0, 1]"])
        {'mosaic': 0.5, 'cos_lr': False, 'freeze': [0, 1]}
    """
    given = {key: _literal(value) for key, _, value in (text.partition("=") for text in texts)}
    try:
        with stock.quiet():
            checked = vars(stock.get_cfg(overrides=dict(given)))
    except (SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f"`train_args`: {' '.join(str(error).split()).rstrip('.')}") from error
    if gone := [key for key in given if key not in checked]:
        raise ConfigError(f"`train_args`: {gone[0]} is deprecated, and Ultralytics takes another argument in its place")
    for key in _NAMED.keys() & given.keys():
        names = {str(name).lower(): name for name in _NAMED[key]}
        if str(given[key]).lower() not in names:
            raise ConfigError(
                f"`train_args`: {key} must be one of {', '.join(map(str, _NAMED[key]))}, got {given[key]}"
            )
        checked[key] = names[str(given[key]).lower()]
    return {key: checked[key] for key in given}


_NAMED: Mapping[str, Sequence[str | None]] = {
    "optimizer": ("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop"),
    "auto_augment": ("randaugment", "autoaugment", "augmix", None),
}
"""Names that Ultralytics itself checks only when it trains."""


def _literal(text: str) -> Any:
    """Return the value of a text as Ultralytics' command line reads it; nothing is evaluated."""
    named = {"none": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


_INHERITED = (
    *("momentum", "weight_decay", "box", "cls", "cls_pw", "dfl", "pose", "kobj", "rle", "angle"),
    *("overlap_mask", "mask_ratio", "auto_augment", "erasing"),
    *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr"),
    *("mosaic", "mixup", "cutmix", "copy_paste", "copy_paste_mode"),
)


def dense_rate(dense: Mapping[str, Any], batch: int) -> tuple[str, float]:
    """Return the optimizer and first learning rate of the dense training; AdamW if it was automatic or a rarer one.

    The rate of SGD is scaled to the smaller number of images per step (Goyal et al., 2017, section 2.1: linearly);
    that of Adam is not, whose steps do not grow with the gradient's scale.
    """
    name = {known.lower(): known for known in DEFAULT_LEARNING_RATES}.get(str(dense["optimizer"]).lower())
    if name is None:  # "auto" takes AdamW at about this for short trainings, whatever lr0 says
        return "AdamW", DEFAULT_LEARNING_RATES["AdamW"]
    rate = float(dense["lr0"])
    rate = rate if rate > 0 else DEFAULT_LEARNING_RATES[name]
    return name, rate * min(1.0, batch / float(dense["nbs"])) if name == "SGD" else rate
