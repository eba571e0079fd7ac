"""TorchScript files, run by torch in this process."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from autoprune.errors import DeviceError
from autoprune.runtimes._base import FileBackend, FileRunner, memory_guard
from autoprune.runtimes._torch import DTYPES, check_precision, make_runner, torch_session
from autoprune.runtimes.settings import RuntimeSettings


class TorchScriptBackend(FileBackend):
    """Torch's interpreter of traced networks.

    Args:
        settings: how networks run.

    Raises:
        DeviceError: the device lacks the precision.
    """

    def __init__(self, settings: RuntimeSettings) -> None:
        check_precision(settings)
        self.settings = settings

    def session(self) -> AbstractContextManager[None]:
        """Pin torch's threads and run without gradients; see ``FileBackend``."""
        return torch_session(self.settings)

    def open(self, path: Path, shape: tuple[int, ...]) -> FileRunner:
        """Load a file onto the device; see ``FileBackend``."""
        with warnings.catch_warnings(), memory_guard(self.settings):
            warnings.simplefilter("ignore")  # torch advises other formats
            network = torch.jit.load(str(path), map_location=self.settings.device)  # type: ignore[no-untyped-call]
        return _ScriptRunner(network, shape, self.settings)

    def convert(self, source: Path, to: Path) -> None:
        """Refuse it; see ``FileBackend``."""
        raise DeviceError(f"TorchScript is traced from a network and cannot be made of {source.name}")


class _ScriptRunner(FileRunner):
    """One traced network."""

    def __init__(self, network: Any, shape: tuple[int, ...], settings: RuntimeSettings) -> None:
        self._network = network
        self._where = (torch.device(settings.device), DTYPES[settings.precision])
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(*self._where)
        self._timed = make_runner(lambda: (lambda: network(image), None), settings)

    def elapsed(self) -> float:
        return self._timed.elapsed()

    def outputs(self, image: torch.Tensor) -> list[torch.Tensor]:
        found = self._network(image.to(*self._where))
        return [found.cpu()] if isinstance(found, torch.Tensor) else [one.cpu() for one in found]
