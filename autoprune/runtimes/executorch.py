"""ExecuTorch on a CPU with XNNPACK; networks come from ``torch.export``, and the subprocess lowers them.

It is no runtime for boards: ExecuTorch's Python package needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from autoprune.errors import DeviceError
from autoprune.runtimes.exported import export_pt2
from autoprune.runtimes.subprocess_backend import ENGINES, EngineSpec, SubprocessBackend


class ExecuTorchBackend(SubprocessBackend):
    """ExecuTorch's runtime: XNNPACK computes what it takes, portable kernels the rest."""

    @property
    def runtime(self) -> EngineSpec:
        """ExecuTorch."""
        options = {"threads": self.settings.threads}
        return EngineSpec("The runtime executorch", ENGINES / "executorch.py", ("executorch",), "executorch", options)

    @property
    def quantizer(self) -> EngineSpec:
        """None is there; settings with int8, which the runtime's record has not, are refused before."""
        raise DeviceError("The runtime executorch has no int8 here, got `precision` int8")

    def check(self, capabilities: Sequence[str]) -> None:
        """Check nothing: XNNPACK computes in fp32 on every CPU."""

    def trace(self, module: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
        """Write a network as a program of ``torch.export``; see ``SubprocessBackend``."""
        path = folder / "network.pt2"
        export_pt2(module, shape, path)
        return path

    def translated(self, path: Path) -> Path:
        """Return the file lowered of a program; see ``SubprocessBackend``."""
        to = path.with_suffix(".pte")
        self.convert(path, to)
        return to
