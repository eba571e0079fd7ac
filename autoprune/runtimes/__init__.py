"""Runtimes that latency is measured on, one file each; a further one is one more ``Backend`` in ``BACKENDS``."""

from collections.abc import Mapping

from autoprune.choices import Precision, Runtime
from autoprune.runtimes._base import Backend, Calibration, Runner
from autoprune.runtimes.onnx_runtime import OnnxRuntimeBackend
from autoprune.runtimes.open_vino import OpenVinoBackend
from autoprune.runtimes.settings import MemoryFormat, RuntimeSettings, fingerprint, runtime_settings
from autoprune.runtimes.tensor_rt import TensorRtBackend
from autoprune.runtimes.torch_compile import TorchCompileBackend
from autoprune.runtimes.torch_eager import TorchBackend

BACKENDS: Mapping[Runtime, type[Backend]] = {
    Runtime.TORCH: TorchBackend,
    Runtime.TORCH_COMPILE: TorchCompileBackend,
    Runtime.CUDAGRAPH: TorchBackend,
    Runtime.ONNXRUNTIME: OnnxRuntimeBackend,
    Runtime.OPENVINO: OpenVinoBackend,
    Runtime.TENSORRT: TensorRtBackend,
}
"""Which backend serves which runtime."""


def open_backend(settings: RuntimeSettings, calibration: Calibration | None = None) -> Backend:
    """Return the backend of the settings' runtime.

    Args:
        settings: how networks run.
        calibration: gives the images that an int8 network's ranges are found on.

    Raises:
        DeviceError: the runtime is not installed, or the device lacks the precision.
    """
    return BACKENDS[settings.runtime](settings, calibration)


__all__ = [
    "BACKENDS",
    "Backend",
    "Calibration",
    "MemoryFormat",
    "Precision",
    "Runner",
    "Runtime",
    "RuntimeSettings",
    "fingerprint",
    "open_backend",
    "runtime_settings",
]
