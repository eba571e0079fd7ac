"""Torch in eager mode on a CPU; on CUDA eager, or replaying a captured graph."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property

from torch import nn

from autoprune.runtimes._base import Backend, Calibration, Runner
from autoprune.runtimes._torch import Graphs, Run, check_precision, loaded, make_runner, torch_session
from autoprune.runtimes.settings import RuntimeSettings


class TorchBackend(Backend):
    """Torch in eager mode, or on CUDA replaying a captured graph, which leaves only the kernels' time."""

    def __init__(self, settings: RuntimeSettings, calibration: Calibration | None = None) -> None:
        super().__init__(settings, calibration)
        check_precision(settings)

    def session(self) -> AbstractContextManager[None]:
        """Pin torch's threads and run without gradients; see ``Backend``."""
        return torch_session(self.settings)

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        """Copy the network to the device, in the settings' precision and memory format; see ``Backend``."""
        settings = self.settings

        def load() -> tuple[Run, str | None]:
            copied, image = loaded(module, shape, settings)
            if settings.runtime.value == "cudagraph":
                return self._graphs.capture(copied, image)
            return lambda: copied(image), None

        return make_runner(load, settings)

    @cached_property
    def _graphs(self) -> Graphs:
        return Graphs()
