"""TensorRT on CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autoprune.runtimes.separate import ENGINES, Kit, SeparateBackend


class TensorRtBackend(SeparateBackend):
    """TensorRT engines, strongly typed: the exported network says which number format each operation has."""

    @property
    def runtime(self) -> Kit:
        """TensorRT, with TF32 as torch has it, which the fingerprint holds."""
        options = {"device": torch.device(self.settings.device).index, "tf32": torch.backends.cudnn.allow_tf32}
        packages = ("onnx", "tensorrt", "cuda.bindings")
        return Kit("The runtime tensorrt", ENGINES / "tensor_rt.py", packages, "tensorrt", options)

    @property
    def quantizer(self) -> Kit:
        """ONNX Runtime's, in the form that TensorRT reads."""
        packages, options = ("onnx", "onnxruntime"), {"runtime": "tensorrt"}
        return Kit("Quantisation for tensorrt", ENGINES / "quantize_onnx.py", packages, "tensorrt", options)

    def check(self, capabilities: Sequence[str]) -> None:
        """Check nothing more: the builder names the operation that a card cannot compute."""
