"""ExecuTorch on a CPU with XNNPACK; networks come from ``torch.export``, and the subprocess lowers them.

It is no runtime for boards: ExecuTorch's Python package needs torch.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from autoprune.runtimes.exported import export_pt2
from autoprune.runtimes.subprocess_backend import ENGINES, EngineSpec, SubprocessBackend


class ExecuTorchBackend(SubprocessBackend):
    """ExecuTorch's runtime: XNNPACK computes what it takes, portable kernels the rest."""

    @property
    def runtime(self) -> EngineSpec:
        """ExecuTorch."""
        options = {"threads": self.settings.threads}
        return EngineSpec("The runtime executorch", ENGINES / "executorch.py", ("executorch",), "executorch", options)

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
