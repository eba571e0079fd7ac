"""Open networks of a user's own classes: from a function (``my_network.py:make``), a checkpoint, or a pickle.

Checkpoints that pickle a network, as YOLOv5's and YOLOv7's training write, name classes such as ``models.yolo.Model``.
Unpickling imports and runs them, so only if the user says so; nothing is ever installed for a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from autoprune.choices import match_factory
from autoprune.errors import AutopruneError, ModelError, first_line
from autoprune.io.files import saying_why, sha256_of, why_no_file
from autoprune.models.module.adapter import ModuleAdapter
from autoprune.models.module.checkpoint import read_checkpoint
from autoprune.models.module.data import reason_of

Make = Callable[[], ModuleAdapter]
"""A user's function, which returns the trained network with its data."""

_OWN = "autoprune_own_"
_DIGEST = "__autoprune_sha256__"  # a file that was edited since is executed anew


def load(path: Path, make: Make, *, device: str | torch.device = "cpu") -> ModuleAdapter:
    """Open a checkpoint that autoprune wrote of a module, such as a run's ``model.pt``.

    Args:
        path: the checkpoint. Reading it runs no code.
        make: builds the same dense network as when the checkpoint was written.
        device: where to compute.

    Returns:
        An adapter with the checkpoint's network, with its widths, in eval mode.

    Raises:
        ModelError: the checkpoint is missing, corrupt, or belongs to another network.
    """
    path, dense = Path(path), make()
    return dense.opened(read_checkpoint(path).rebuild(dense.module, path), device=device)


def open_factory(model: Path, *, device: str | torch.device = "cpu") -> ModuleAdapter:
    """Run a user's function by its name on the command line, and return its adapter.

    Args:
        model: ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``, followed by ``@CHECKPOINT`` for the network of a
            checkpoint. The file or module is executed.
        device: where to compute.

    Raises:
        ModelError: the file, the function or the checkpoint is missing, or the function does not return an adapter.
    """
    found = match_factory(model)
    assert found is not None
    source, function, weights = found["source"], found["function"], found["weights"]
    make = getattr(_imported(source), function, None)
    if not callable(make):
        raise ModelError(f"{source} must have a function {function}, and has none; `model` names FILE.py:FUNCTION")

    def made() -> ModuleAdapter:
        adapter = _called(make, model)
        if not isinstance(adapter, ModuleAdapter):
            got = "nothing" if adapter is None else f"a {type(adapter).__name__}"
            raise ModelError(f"{source}:{function} must return an autoprune.models.module.ModuleAdapter, got {got}")
        return adapter

    return made().opened(device=device) if weights is None else load(Path(weights), made, device=device)


def _imported(source: str) -> ModuleType:
    """Import a file by its path, or a module by its name."""
    if not source.endswith(".py"):
        return _executed(lambda: importlib.import_module(source), source)
    path = Path(source).resolve()
    if not path.is_file():
        raise ModelError(f"the file {source} does not exist; `model` takes FILE.py:FUNCTION")
    name = f"{_OWN}{path.stem}"  # differs from every other module's name
    digest = sha256_of(path)
    known = sys.modules.get(name)
    if known is not None and (known.__file__, vars(known).get(_DIGEST)) == (str(path), digest):
        return known
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # its neighbours can be imported, as when Python runs the file
    module = _executed(lambda: _run(path, name), source)
    setattr(module, _DIGEST, digest)
    return module


def _run(path: Path, name: str) -> ModuleType:
    """Execute a file as the module of this name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _executed(run: Callable[[], ModuleType], source: str) -> ModuleType:
    try:
        return run()
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # a user's own code
        raise ModelError(f"{source} cannot be imported ({reason_of(error)})") from error


def _called(make: Callable[[], Any], model: Path) -> Any:
    try:
        return make()
    except (AutopruneError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # a user's own code
        raise ModelError(f"{model} must return a ModuleAdapter, and raised {reason_of(error)}") from error


def load_pickled(path: Path, *, trust: bool = False, repository: Path | None = None) -> nn.Module:
    """Open the network of a checkpoint that contains it as a pickle.

    Args:
        path: a file of ``torch.save``: the network, or a dictionary with the network under ``ema`` (the moving average,
            preferred) or ``model``.
        trust: run code that the file names; without it the file is refused. A pickle can run any code of its author,
            so trust only files whose origin you know.
        repository: the folder with the classes, first on Python's path while the file is read; the modules stay
            imported.

    Returns:
        The network: float32, eval mode, on the CPU, its parameters trainable.

    Raises:
        ModelError: the file is missing, corrupt, not trusted, holds no network, or names a class that cannot be
            imported; the message says which one.
    """
    path, repository = Path(path), None if repository is None else Path(repository)
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
        reason = first_line(error)
        raise ModelError(f"{path} is corrupt, cut short, or no checkpoint ({reason})") from error


@contextmanager
def _importable(repository: Path | None) -> Iterator[None]:
    """Put a folder first on Python's path within the context."""
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
