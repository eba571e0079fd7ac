"""ONNX Runtime, on a CPU or through its CUDA provider."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autoprune.errors import DeviceError
from autoprune.io.installed import install_package
from autoprune.runtimes.subprocess_backend import ENGINES, EngineSpec, SubprocessBackend


class OnnxRuntimeBackend(SubprocessBackend):
    """ONNX Runtime with all its graph optimisations, the default of its sessions."""

    @property
    def runtime(self) -> EngineSpec:
        """ONNX Runtime, with torch's setting of TF32, which is in the fingerprint."""
        device = self.settings.computing
        options = {
            "threads": self.settings.threads,
            "device": "cpu" if device.type == "cpu" else str(device.index),
            "tf32": torch.backends.cudnn.allow_tf32,
        }
        packages = ("onnx", "onnxruntime")
        return EngineSpec("The runtime onnxruntime", ENGINES / "onnx_runtime.py", packages, "onnxruntime", options)

    def check(self, capabilities: Sequence[str]) -> None:
        """Check that the build has the device's execution provider."""
        if not self.settings.on_cpu and "CUDAExecutionProvider" not in capabilities:
            raise DeviceError(
                f"On {self.settings.device} the runtime onnxruntime needs its CUDAExecutionProvider, and the build "
                f"here has {', '.join(capabilities)}: {install_package('onnxruntime-gpu')} in place of onnxruntime"
            )
