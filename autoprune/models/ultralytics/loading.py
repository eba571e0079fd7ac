"""Read a ``.pt`` file without running code from it, unless the user trusts it.

A checkpoint is a pickle. Ultralytics' safe loader allows objects of known classes only, but lets the pickle call their
constructors, and those of whole networks open further files by the unsafe loader, and download. Trained networks are
restored, not constructed, so a file that constructs one is refused.
"""

from __future__ import annotations

import importlib.util
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.io.files import saying_why
from autoprune.models import stock
from autoprune.models.finding import check_weights

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of a file in torch's format before version 1.6."""

_TRUST = "if you trust its origin, add `trust_checkpoint`"


def load_content(path: Path, *, trust: bool) -> dict[str, Any]:
    """Return the content of a file of ``torch.save``, tensors on the CPU.

    Args:
        path: the ``.pt`` file.
        trust: also allow classes outside Ultralytics and torch, which runs code that the file names. Nothing is ever
            installed for it.

    Raises:
        ModelError: the file is missing, corrupt, no dictionary, or needs ``trust``.
    """
    _check_file(path, trust)
    try:
        with stock.quiet(), _no_installs(path), nullcontext() if trust else _restoring_only(path):
            content, _ = stock.torch_safe_load(str(path), safe_only=not trust)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # the loader raises seven kinds of errors for four conditions
        _explain(path, error, trust)
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not an Ultralytics checkpoint")
    return content


def _check_file(path: Path, trust: bool) -> None:
    """Refuse files that are no checkpoints before a loader sees them (Ultralytics' would search the internet)."""
    check_weights(path)
    if path.suffix != ".pt":
        raise ModelError(f"the weights must be a .pt file that Ultralytics' training wrote, got {path}")
    with saying_why(path, "read"), path.open("rb") as file:
        legacy = file.read(len(_LEGACY)) == _LEGACY
    if legacy and not trust:
        raise ModelError(
            f"{path} has the format that torch wrote before version 1.6, which cannot be read without running code "
            f"from it; {_TRUST}"
        )
    if not legacy and not _is_whole(path):
        raise ModelError(f"{path} is corrupt, cut short, or no checkpoint: it is not a file that torch.save wrote")


def _is_whole(path: Path) -> bool:
    """Return whether a file is an uncompressed archive, as torch writes it, that claims no more bytes than it has."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist()) <= path.stat().st_size
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


@contextmanager
def _no_installs(path: Path) -> Iterator[None]:
    """Keep the loader from installing the modules that a checkpoint names by pip."""

    def refuse(requirement: str, *_: object, **__: object) -> NoReturn:
        raise ModelError(f"{path} needs the Python module {requirement!r}, which is not installed here")

    before: Callable[..., object] = stock.tasks.check_requirements
    stock.tasks.check_requirements = refuse
    try:
        yield
    finally:
        stock.tasks.check_requirements = before


@contextmanager
def _restoring_only(path: Path) -> Iterator[None]:
    """Let a pickle restore modules, but not construct any.

    In addition to Ultralytics' classes, layers of torchvision and ``DataParallel`` are allowed. Afterwards torch's list
    of safe classes is restored, which Ultralytics would leave extended.
    """
    construct, here = nn.Module.__init__, threading.get_ident()
    known = torch.serialization.get_safe_globals()

    def refuse(module: nn.Module, *arguments: Any, **options: Any) -> None:
        if threading.get_ident() == here:
            raise ModelError(
                f"{path} would construct a {type(module).__name__}, which can read other files, while training writes "
                f"networks to be restored; {_TRUST}"
            )
        construct(module, *arguments, **options)

    nn.Module.__init__ = refuse  # type: ignore[method-assign, assignment]
    try:
        torch.serialization.add_safe_globals([nn.DataParallel, *_torchvision_layers(path)])
        yield
    finally:
        nn.Module.__init__ = construct  # type: ignore[method-assign]
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(known)


def _torchvision_layers(path: Path) -> Iterator[type]:
    """Yield the layers of torchvision that a file names."""
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        home, _, kind = name.rpartition(".")
        if re.match(r"torchvision\.(models|ops)\.", name) and importlib.util.find_spec(home) is not None:
            found = getattr(importlib.import_module(home), kind, None)
            if isinstance(found, type) and issubclass(found, nn.Module):
                yield found


def _explain(path: Path, error: Exception, trust: bool) -> NoReturn:
    """Raise a ``ModelError`` that explains a loader's error."""
    reason = f"{error} {error.__cause__ or ''}"
    if "torchscript" in reason.lower():
        raise ModelError(f"{path} is a TorchScript export; give the .pt file that training wrote") from error
    foreign = re.search(r"GLOBAL ([\w.]+)", reason)
    if "YOLOv5 model originally trained" in reason or (foreign and foreign[1].startswith("models.")):
        raise ModelError(
            f"{path} is of the YOLOv5 or YOLOv7 repository, which Ultralytics does not open; open it with "
            "autoprune.models.module.load_pickled in a function of your own, `model` FILE.py:FUNCTION"
        ) from error
    if not trust and ("outside the supported" in reason or foreign or isinstance(error, ModuleNotFoundError)):
        what = f"the class {foreign[1]}" if foreign else "classes"
        raise ModelError(
            f"{path} uses {what} that Ultralytics' safe loader does not know, and loading it would run code from the "
            f"file; {_TRUST}"
        ) from error
    if isinstance(error, AttributeError) and error.name == "model":  # the loader's error for anything but a dictionary
        raise ModelError(f"{path} holds a {type(error.obj).__name__}, not an Ultralytics checkpoint") from error
    if isinstance(error, (ImportError, AttributeError)):
        raise ModelError(f"{path} uses a class that cannot be imported here: {error}") from error
    raise ModelError(f"{path} is corrupt or no Ultralytics checkpoint ({type(error).__name__})") from error
