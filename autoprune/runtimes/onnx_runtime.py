"""ONNX Runtime, on a CPU or through its CUDA provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import DeviceError
from autoprune.runtimes.separate import ENGINES, Kit, SeparateBackend, export_as


class OnnxRuntimeBackend(SeparateBackend):
    """ONNX Runtime with all its graph optimisations, as a session that a person opens has them."""

    @property
    def kit(self) -> Kit:
        """See ``SeparateBackend``."""
        return Kit(("onnx", "onnxruntime"), "onnxruntime", ENGINES / "onnx_runtime.py")

    def options(self) -> Mapping[str, Any]:
        """Return threads, device, and TF32 as torch has it, which the fingerprint holds."""
        device = torch.device(self.settings.device)
        return {
            "threads": self.settings.threads,
            "device": "cpu" if device.type == "cpu" else str(device.index),
            "tf32": torch.backends.cudnn.allow_tf32,
        }

    def check(self, capabilities: list[str]) -> None:
        """Check that the build has the device's execution provider."""
        if self.settings.device != "cpu" and "CUDAExecutionProvider" not in capabilities:
            raise DeviceError(
                f"On {self.settings.device} ONNX Runtime needs its CUDAExecutionProvider, and this build has "
                f"{', '.join(capabilities)}: pip install onnxruntime-gpu in place of onnxruntime"
            )

    def export(self, module: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
        """Write ONNX."""
        return export_as(module, shape, folder, self.settings)
