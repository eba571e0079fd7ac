"""Stock Ultralytics checkpoints: reading them safely, writing them as Ultralytics does."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from autoprune.choices import MODULE_FORMAT
from autoprune.errors import ModelError
from autoprune.files import saying_why, write_atomic
from autoprune.models import stock
from autoprune.models.detection.exporting import NOTES_KEY


@dataclass(frozen=True)
class Checkpoint:
    """What a stock checkpoint holds.

    Attributes:
        module: the network (its moving average where training was interrupted), float32, eval mode, on the CPU.
        train_args: the settings that it was trained with; Ultralytics' defaults fill what is missing.
        notes: autoprune's own notes, where an earlier run wrote some.
        epoch: the last finished epoch of an interrupted training, from 0; -1 for a finished one.
        best_epoch: the epoch with the best accuracy so far, from 1, where early stopping looks for it; else 0.
    """

    module: nn.Module
    train_args: Mapping[str, Any]
    notes: Mapping[str, Any]
    epoch: int
    best_epoch: int = 0


def read_checkpoint(path: Path, *, trust: bool = False) -> Checkpoint:
    """Read a checkpoint that Ultralytics wrote, without running code from it.

    Args:
        path: the ``.pt`` file.
        trust: also allow classes that are not Ultralytics' or torch's own. This runs code that the file names:
            only for files whose origin you trust. Nothing is ever installed to satisfy a checkpoint.

    Raises:
        ModelError: the file is missing, corrupt, not an Ultralytics checkpoint, or needs ``trust``.
    """
    _check_file(path)
    with stock.quiet():
        content = _load(path, trust)
    if content.get("format") == MODULE_FORMAT:
        raise ModelError(f"{path} is of a network of one's own; name the function too, --model FILE.py:FUNCTION@{path}")
    module = content.get("ema") if content.get("ema") is not None else content.get("model")
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{path} holds no network, only {type(module).__name__}; give the .pt file that Ultralytics' training wrote"
        )
    if content.get("modelopt"):
        raise ModelError(f"{path} was trained for quantization (QAT); prune the network first and quantize it after")
    # A newer release's None, by which it decides itself, is refused by an older one: that one decides, too.
    given = {k: v for k, v in (content.get("train_args") or {}).items() if v is not None}
    notes, epoch = content.get(NOTES_KEY), content.get("epoch")
    return Checkpoint(
        module=module.float().eval(),
        train_args={**stock.DEFAULT_CFG_DICT, **{k: v for k, v in given.items() if k in stock.DEFAULT_CFG_DICT}},
        notes=notes if isinstance(notes, dict) else {},
        epoch=-1 if epoch is None else int(epoch),
        best_epoch=int((content.get("stopper") or {}).get("best_epoch", 0)),
    )


def _check_file(path: Path) -> None:
    """Refuse what cannot be a checkpoint, before any loader guesses (or searches the network for it)."""
    if not path.exists():
        raise ModelError(f"the weights file {path} does not exist")
    if not path.is_file():
        raise ModelError(f"the weights must be a .pt file, but {path} is a folder")
    if path.suffix != ".pt":
        raise ModelError(f"the weights must be a .pt file that Ultralytics' training wrote, got {path}")
    with saying_why(path, "read"), path.open("rb"):
        pass
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path} is corrupt, cut short, or no checkpoint: it is not a file that torch.save wrote")


def _load(path: Path, trust: bool) -> dict[str, Any]:
    try:
        with _no_installs(path):
            content, _ = stock.torch_safe_load(str(path), safe_only=not trust)
    except ModelError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # the loader raises seven kinds of errors for four conditions
        _explain(path, error, trust)
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not an Ultralytics checkpoint")
    return content


@contextmanager
def _no_installs(path: Path) -> Iterator[None]:
    """Keep the loader from installing, by pip, the modules that a checkpoint names."""

    def refuse(requirement: str, *_: object, **__: object) -> NoReturn:
        raise ModelError(f"{path} needs the Python module {requirement!r}, which is not installed here")

    before: Callable[..., object] = stock.tasks.check_requirements
    stock.tasks.check_requirements = refuse
    try:
        yield
    finally:
        stock.tasks.check_requirements = before


def _explain(path: Path, error: Exception, trust: bool) -> NoReturn:
    """Raise what a loader's error means."""
    reason = f"{error} {error.__cause__ or ''}"
    if "TorchScript" in reason:
        raise ModelError(f"{path} is a TorchScript export; give the .pt file that training wrote") from error
    foreign = re.search(r"GLOBAL ([\w.]+)", reason)
    if not trust and ("outside the supported" in reason or foreign or isinstance(error, ModuleNotFoundError)):
        what = f"the class {foreign[1]}" if foreign else "classes"
        raise ModelError(
            f"{path} uses {what} that Ultralytics' safe loader does not know, and loading it would run code from the "
            "file; if you trust its origin, add --trust-checkpoint"
        ) from error
    if isinstance(error, (ImportError, AttributeError)):
        raise ModelError(f"{path} uses a class that cannot be imported here: {error}") from error
    raise ModelError(f"{path} is corrupt or no Ultralytics checkpoint ({type(error).__name__})") from error


def checkpoint_bytes(
    module: nn.Module, *, train_args: Mapping[str, Any], notes: Mapping[str, Any] | None = None
) -> bytes:
    """Return the stock checkpoint of a module: half precision, as Ultralytics ships trained networks.

    The length depends on nothing but the module, the settings and the notes: not on the date, the file's name or
    the device.

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
    """Write the stock checkpoint of a module, whole or not at all.

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
    vars(copy).pop("pt_path", None)  # where it was loaded from, on the machine that did so
    for name in ("anchors", "strides", "shape", "shapes", "valid_mask"):  # the head's cache of its last image size
        vars(copy.model[-1]).pop(name, None)
    if "args" in vars(copy):
        copy.args = {k: v for k, v in dict(copy.args).items() if k in stock.DEFAULT_CFG_DICT}
    shipped: nn.Module = copy
    return shipped
