"""Stock Ultralytics checkpoints: reading them safely, writing them as Ultralytics does."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.io.files import write_atomic
from autoprune.models import stock
from autoprune.models.detection.exporting import NOTES_KEY
from autoprune.models.ultralytics.contents import check_entries, check_network, network_of, train_args_of, usable
from autoprune.models.ultralytics.loading import load_content
from autoprune.models.ultralytics.plain import is_plain


@dataclass(frozen=True)
class Checkpoint:
    """Content of a stock checkpoint.

    Attributes:
        module: the network (the moving average of an interrupted training), float32, eval mode, on the CPU.
        train_args: the settings of its training; missing ones are Ultralytics' defaults.
        notes: notes of an earlier run of autoprune; {} if there are none.
    """

    module: nn.Module
    train_args: Mapping[str, Any]
    notes: Mapping[str, Any]


def read_checkpoint(path: Path, *, trust: bool = False) -> Checkpoint:
    """Read a checkpoint that Ultralytics wrote, without running code from it.

    Args:
        path: the ``.pt`` file.
        trust: also allow classes that are not Ultralytics' or torch's own. This runs code that the file names:
            only for files whose origin you trust. Nothing is ever installed to satisfy a checkpoint.

    Raises:
        ModelError: the file is missing, corrupt, not an Ultralytics checkpoint, or needs ``trust``.
    """
    content = load_content(path, trust=trust)
    module = network_of(content, path)
    check_entries(content, path)
    if content.get("modelopt"):
        raise ModelError(f"{path} was trained for quantization (QAT); prune the network first and quantize it after")
    with usable(path):
        check_network(module, path, trust=trust)
        module = module.float().eval()
    notes = content.get(NOTES_KEY)
    return Checkpoint(
        module=module,
        train_args=train_args_of(content, path),
        notes=notes if isinstance(notes, dict) and is_plain(notes) else {},
    )


def settings_of(module: Any, file: Path) -> Mapping[str, Any]:
    """Return the settings of the training of a network in memory, all of Ultralytics' keys.

    ``YOLO`` keeps four of them in the network; the others are read from its file, or are Ultralytics' defaults if the
    file is gone.
    """
    kept = module.args if isinstance(module.args, Mapping) else vars(module.args)
    trained: Mapping[str, Any] = stock.DEFAULT_CFG_DICT
    if not stock.DEFAULT_CFG_DICT.keys() <= kept.keys():
        with suppress(ModelError):
            trained = read_checkpoint(file).train_args
    return {**trained, **{key: value for key, value in kept.items() if key in trained}}


def checkpoint_bytes(
    module: nn.Module, *, train_args: Mapping[str, Any], notes: Mapping[str, Any] | None = None
) -> bytes:
    """Return the stock checkpoint of a module: half precision, as Ultralytics ships trained networks.

    The length depends on the module, the settings and the notes alone, not on the date, the file's name or the device.

    Args:
        module: a network of stock classes, on any device; it is not changed.
        train_args: the settings to record; Ultralytics reads ``imgsz`` and ``task`` from them.
        notes: plain JSON values, kept under the key ``autoprune``.
    """
    content: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        "version": stock.version,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "epoch": -1,
        "best_fitness": None,
        "model": _shipped(module),
        "ema": None,
        "updates": None,
        "optimizer": None,
        "scaler": None,
        "train_args": {k: v for k, v in train_args.items() if k in stock.DEFAULT_CFG_DICT},
        "train_metrics": None,
        "train_results": None,
    }
    if notes:
        content[NOTES_KEY] = json.loads(json.dumps(notes))
    buffer = io.BytesIO()  # to a path, torch.save would put the file's name inside and so change the length
    torch.save(content, buffer)
    return buffer.getvalue()


def write_checkpoint(
    module: nn.Module, path: Path, *, train_args: Mapping[str, Any], notes: Mapping[str, Any] | None = None
) -> None:
    """Write the stock checkpoint of a module completely or not at all.

    Raises:
        RunError: the file cannot be written (disk full, not permitted, no such folder).
    """
    write_atomic(path, checkpoint_bytes(module, train_args=train_args, notes=notes))


def _shipped(module: nn.Module) -> nn.Module:
    """Return a copy as Ultralytics stores it: on the CPU, half precision, eval mode, settings as a dictionary."""
    criterion = vars(module).get("criterion")
    copy: Any = deepcopy(module, {id(criterion): None} if criterion is not None else None)
    copy = copy.cpu().half().eval().to(memory_format=torch.contiguous_format).requires_grad_(False)
    copy.criterion = None
    vars(copy).pop("pt_path", None)  # a path on the machine that loaded it
    for name in ("anchors", "strides", "shape", "shapes", "valid_mask"):  # the head's cache of its last image size
        vars(copy.model[-1]).pop(name, None)
    if "args" in vars(copy):
        copy.args = {k: v for k, v in dict(copy.args).items() if k in stock.DEFAULT_CFG_DICT}
    shipped: nn.Module = copy
    return shipped
