"""Checkpoints that pickle a network of classes from a user's repository, as YOLOv5's and YOLOv7's training write.

Such a file names classes, ``models.yolo.Model``, and unpickling imports and runs them: only where a user says so.
Nothing is ever installed to satisfy a file.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.io.files import saying_why, why_no_file


def load_pickled(path: Path, *, trust: bool = False, repository: Path | None = None) -> nn.Module:
    """Open the network of a checkpoint that pickled it whole.

    Args:
        path: a file that ``torch.save`` wrote: the network, or a dictionary that has it under ``ema`` (the moving
            average, taken where there is one) or ``model``.
        trust: run code that the file names. Without it the file is refused: a pickle can do anything that its author
            wanted it to, so say so only of files whose origin you trust.
        repository: the folder that the classes are imported from, put in front of Python's path meanwhile; they stay
            imported.

    Returns:
        The network: float32, eval mode, on the CPU, its parameters trainable.

    Raises:
        ModelError: the file is missing, corrupt, not trusted, holds no network, or names a class that cannot be
            imported; the message says which one.
    """
    if reason := why_no_file(path):
        raise ModelError(f"the checkpoint {path} {reason}")
    if not trust:
        raise ModelError(
            f"{path} holds a pickled network, and opening it runs code that the file names; if you trust its origin, "
            "call load_pickled(..., trust=True)"
        )
    with _importable(repository):
        content = _unpickled(path)
    if isinstance(content, Mapping):
        content = content.get("ema") if content.get("ema") is not None else content.get("model")
    if not isinstance(content, nn.Module):
        raise ModelError(
            f"{path} holds no network under 'ema' or 'model', only {type(content).__name__}; a state dict needs the "
            "network that it belongs to: build that, and load_state_dict"
        )
    return content.float().eval().requires_grad_(True)


def _unpickled(path: Path) -> Any:
    try:
        with saying_why(path, "read"):
            return torch.load(path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{path} needs the Python module {error.name!r}, which cannot be imported here; put the repository that "
            "trained it on the path, load_pickled(..., repository=FOLDER) with the folder that has it"
        ) from error
    except AttributeError as error:
        raise ModelError(
            f"{path} needs a class that is not there ({error}); give the repository, at the version, that trained it"
        ) from error
    except (pickle.UnpicklingError, EOFError, zipfile.BadZipFile, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} is corrupt, cut short, or no checkpoint ({reason})") from error


@contextmanager
def _importable(repository: Path | None) -> Iterator[None]:
    """Put a folder in front of Python's path for a while."""
    if repository is None:
        yield
        return
    if not repository.is_dir():
        raise ModelError(f"the repository must be a folder, and {repository} is none")
    folder = str(repository.resolve())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
