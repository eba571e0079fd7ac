"""Training arguments of Ultralytics among the options: which of them autoprune sets itself.

Whether a key exists and takes the value is asked of Ultralytics, in `autoprune.training.ultralytics.recipe`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from autoprune.errors import ConfigError

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "batch": ("batch",),
    "data": ("data",),
    "device": ("device",),
    "distill_model": ("distill",),
    "epochs": ("finetune_epochs", "epochs"),
    "exist_ok": ("name", "out"),
    "imgsz": ("imgsz",),
    "model": ("model",),
    "name": ("name", "out"),
    "patience": ("patience",),
    "project": ("project", "out"),
    "resume": ("resume",),
    "save_dir": ("out",),
    "seed": ("seed",),
    "time": ("finetune_epochs", "epochs"),
}
"""Ultralytics' keys that options of autoprune stand for; a command may have none of them, as search has no patience."""

_FIXED = frozenset(
    (
        *("amp", "cfg", "deterministic", "mode", "plots", "pretrained", "profile", "quantize", "save", "save_period"),
        *("single_cls", "split", "task", "val", "verbose"),
    )
)
"""Keys that a resumable fine-tune sets itself: it prints nothing, validates every epoch, keeps its own state."""

_WITHOUT_EFFECT = frozenset(("cache", "classes", "dropout", "fraction", "rect"))
"""Keys that Ultralytics' own data sets and new networks read, and not those that a fine-tune has."""

_ELSEWHERE = frozenset(
    (
        *("source", "vid_stride", "stream_buffer", "visualize", "augment", "agnostic_nms", "retina_masks", "embed"),
        *("show", "save_frames", "save_txt", "save_conf", "save_crop", "show_labels", "show_conf", "show_boxes"),
        *("line_width", "format", "optimize", "dynamic", "simplify", "opset", "workspace", "tracker", "dnn", "nms"),
        *("conf", "iou", "max_det", "save_json"),
    )
)
"""Keys of Ultralytics' other modes, which no training reads."""


def check_train_args(texts: Sequence[str], options: Collection[str]) -> None:
    """Make sure that training arguments are written as ``key=value``, and set nothing that autoprune sets.

    Args:
        texts: as the user gave them.
        options: the names of the command's options.

    Raises:
        ConfigError: one is not; the message names the option to use.

    Example:
        >>> check_train_args(["mosaic=0.5"], ["epochs"])
    """
    for text in texts:
        key, equals, value = text.partition("=")
        if not (equals and value and key.isidentifier()):
            raise ConfigError(f"`train_args` are written key=value, as in mosaic=0.5, got {text!r}")
        option = next((name for name in _OPTIONS.get(key, ()) if name in options), None)
        if option is not None:
            raise ConfigError(f"`train_args` {text}: {key} is set by `{option}`")
        if key in _FIXED or key in {*_OPTIONS} - {"patience"}:
            raise ConfigError(
                f"`train_args` {text}: {key} is set by autoprune, whose fine-tuning relies on it; remove it"
            )
        if key in _WITHOUT_EFFECT:
            raise ConfigError(
                f"`train_args` {text}: {key} has no effect on a fine-tune, which takes the data set and the network as "
                "they are; remove it"
            )
        if key in _ELSEWHERE:
            raise ConfigError(f"`train_args` {text}: no training of Ultralytics reads {key}; remove it")
