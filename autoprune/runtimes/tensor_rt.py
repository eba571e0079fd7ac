"""TensorRT on CUDA."""

from __future__ import annotations

import torch

from autoprune.runtimes.subprocess_backend import ENGINES, EngineSpec, SubprocessBackend


class TensorRtBackend(SubprocessBackend):
    """TensorRT engines, strongly typed: the exported network says which number format each operation has.

    There are no capabilities to check: the builder names the operations that a GPU does not support.
    """

    @property
    def runtime(self) -> EngineSpec:
        """TensorRT, with torch's setting of TF32, which is in the fingerprint."""
        options = {"device": torch.device(self.settings.device).index, "tf32": torch.backends.cudnn.allow_tf32}
        packages = ("onnx", "tensorrt", "cuda.bindings")
        return EngineSpec("The runtime tensorrt", ENGINES / "tensor_rt.py", packages, "tensorrt", options)
