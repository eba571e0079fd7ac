"""How a pruned detector is fine-tuned: Ultralytics' training arguments, and why each is what it is.

The idea is that of He et al. (AMC, ECCV 2018): train on with a fraction of the dense network's learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_LEARNING_RATES: Mapping[str, float] = {"SGD": 0.01, "AdamW": 0.001, "Adam": 0.001}
"""Dense learning rates where the checkpoint does not tell one (Ultralytics' own recommendations)."""


def recipe(dense: Mapping[str, Any], *, epochs: int, batch: int, lr_scale: float) -> dict[str, Any]:
    """Return Ultralytics' training arguments for a fine-tune.

    Loss gains, augmentations, momentum and weight decay are those of the dense training.

    Args:
        dense: the arguments that the dense network was trained with.
        epochs: passes over the training split.
        batch: images per step.
        lr_scale: share of the dense learning rate to start with.
    """
    optimizer, rate = _dense_rate(dense)
    return {
        **{key: dense[key] for key in _INHERITED},
        "epochs": epochs,
        "batch": batch,
        "nbs": batch,  # one step per batch: with Ultralytics' 64 a small data set gives three steps per epoch
        "optimizer": optimizer,  # named: "auto" ignores lr0
        "lr0": rate * lr_scale,
        "lrf": 0.01,
        "cos_lr": True,
        "warmup_epochs": min(1.0, 0.1 * epochs),  # the weights are good already: only the optimizer's moments warm up
        "warmup_bias_lr": 0.0,  # Ultralytics' 0.1 is for biases that start at nothing
        "close_mosaic": max(1, round(0.5 * epochs)) if epochs > 1 else 0,
        "patience": epochs,  # no early stop: the schedule ends where the learning rate does
    }


_INHERITED = (
    *("momentum", "weight_decay", "box", "cls", "cls_pw", "dfl"),
    *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr"),
    *("mosaic", "mixup", "cutmix"),
)


def _dense_rate(dense: Mapping[str, Any]) -> tuple[str, float]:
    """Return the optimizer and first learning rate of the dense training, or a default where it was automatic."""
    name = {known.lower(): known for known in DEFAULT_LEARNING_RATES}.get(str(dense["optimizer"]).lower())
    if name is None:  # "auto" in older checkpoints, or an optimizer whose learning rate means something else
        return "AdamW", DEFAULT_LEARNING_RATES["AdamW"]
    rate = float(dense["lr0"])
    return name, rate if rate > 0 else DEFAULT_LEARNING_RATES[name]
