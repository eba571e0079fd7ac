"""ONNX Runtime, on a CPU or through its CUDA provider."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autoprune.errors import DeviceError
from autoprune.runtimes.separate import ENGINES, Kit, SeparateBackend


class OnnxRuntimeBackend(SeparateBackend):
    """ONNX Runtime with all its graph optimisations, as a session that a user opens has them."""

    @property
    def runtime(self) -> Kit:
        """ONNX Runtime, with TF32 as torch has it, which the fingerprint holds."""
        device = torch.device(self.settings.device)
        options = {
            "threads": self.settings.threads,
            "device": "cpu" if device.type == "cpu" else str(device.index),
            "tf32": torch.backends.cudnn.allow_tf32,
        }
        packages = ("onnx", "onnxruntime")
        return Kit("The runtime onnxruntime", ENGINES / "onnx_runtime.py", packages, "onnxruntime", options)

    @property
    def quantizer(self) -> Kit:
        """ONNX Runtime's own."""
        packages = ("onnx", "onnxruntime")
        options = {"runtime": "onnxruntime"}
        return Kit("Quantisation for onnxruntime", ENGINES / "quantize_onnx.py", packages, "onnxruntime", options)

    def check(self, capabilities: Sequence[str]) -> None:
        """Check that the build has the device's execution provider."""
        if self.settings.device != "cpu" and "CUDAExecutionProvider" not in capabilities:
            raise DeviceError(
                f"On {self.settings.device} the runtime onnxruntime needs its CUDAExecutionProvider, and the build "
                f"here has {', '.join(capabilities)}: pip install onnxruntime-gpu in place of onnxruntime"
            )
