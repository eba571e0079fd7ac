"""Networks that a user's own function builds: ``my_network.py:make`` on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from autoprune.choices import match_factory
from autoprune.errors import AutopruneError, ModelError
from autoprune.models.module.adapter import ModuleAdapter
from autoprune.models.module.checkpoint import read_checkpoint

Make = Callable[[], ModuleAdapter]
"""A user's function: the trained network with its data."""

_OWN = "autoprune_own_"


def load(path: Path, make: Make, *, device: str | torch.device = "cpu") -> ModuleAdapter:
    """Open a checkpoint that autoprune wrote of a module, such as a run's ``model.pt``.

    Args:
        path: the checkpoint. Reading it runs no code.
        make: builds the dense network as it was built when the checkpoint was written.
        device: where to compute.

    Returns:
        An adapter with the network of the checkpoint, as wide as it is, in eval mode.

    Raises:
        ModelError: the checkpoint is missing, corrupt, or belongs to another network.
    """
    dense = make()
    return dense.opened(read_checkpoint(path).rebuild(dense.module, path), device=device)


def open_factory(model: Path, *, device: str | torch.device = "cpu") -> ModuleAdapter:
    """Run a user's function, which the command line names, and return what it builds.

    Args:
        model: ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``, with ``@CHECKPOINT`` behind it for the network of a
            checkpoint. The file, or the module, is executed.
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
    name = f"{_OWN}{path.stem}"  # no name of another module, whatever the file is called
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # what lies next to it can be imported, as when Python runs the file
    return _executed(lambda: _run(path, name), source)


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
        raise ModelError(f"{source} cannot be imported ({_told(error)})") from error


def _called(make: Callable[[], Any], model: Path) -> Any:
    try:
        return make()
    except (AutopruneError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # a user's own code
        raise ModelError(f"{model} must return a ModuleAdapter, and raised {_told(error)}") from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
