"""Runtimes that latency is measured on, one file each; a further one is one more ``Backend`` in ``BACKENDS``."""

from collections.abc import Callable, Mapping

from autoprune.choices import ExportFormat, Precision, Runtime
from autoprune.runtimes._base import Backend, Calibration, FileBackend, FileRunner, Runner
from autoprune.runtimes.onnx_runtime import OnnxRuntimeBackend
from autoprune.runtimes.open_vino import OpenVinoBackend
from autoprune.runtimes.separate import SeparateBackend
from autoprune.runtimes.settings import MemoryFormat, RuntimeSettings, fingerprint, runtime_settings
from autoprune.runtimes.tensor_rt import TensorRtBackend
from autoprune.runtimes.torch_compile import TorchCompileBackend
from autoprune.runtimes.torch_eager import TorchBackend
from autoprune.runtimes.torch_script import TorchScriptBackend

BACKENDS: Mapping[Runtime, type[Backend]] = {
    Runtime.TORCH: TorchBackend,
    Runtime.TORCH_COMPILE: TorchCompileBackend,
    Runtime.CUDAGRAPH: TorchBackend,
    Runtime.ONNXRUNTIME: OnnxRuntimeBackend,
    Runtime.OPENVINO: OpenVinoBackend,
    Runtime.TENSORRT: TensorRtBackend,
}
"""Which backend serves which runtime."""

RUNTIMES: Mapping[ExportFormat, Runtime] = {
    ExportFormat.ONNX: Runtime.ONNXRUNTIME,
    ExportFormat.OPENVINO: Runtime.OPENVINO,
    ExportFormat.TORCHSCRIPT: Runtime.TORCH,
    ExportFormat.TENSORRT: Runtime.TENSORRT,
}
"""What runs files of each format."""

_FILE_BACKENDS: Mapping[Runtime, Callable[[RuntimeSettings], FileBackend]] = {
    Runtime.ONNXRUNTIME: OnnxRuntimeBackend,
    Runtime.OPENVINO: OpenVinoBackend,
    Runtime.TORCH: TorchScriptBackend,
    Runtime.TENSORRT: TensorRtBackend,
}

_QUANTIZING: Mapping[Runtime, Callable[[RuntimeSettings], SeparateBackend]] = {
    Runtime.ONNXRUNTIME: OnnxRuntimeBackend,
    Runtime.OPENVINO: OpenVinoBackend,
}


def open_backend(settings: RuntimeSettings, calibration: Calibration | None = None) -> Backend:
    """Return the backend of the settings' runtime.

    Args:
        settings: how networks run.
        calibration: gives the images that an int8 network's ranges are found on.

    Raises:
        DeviceError: the runtime is not installed, or the device lacks the precision.
    """
    return BACKENDS[settings.runtime](settings, calibration)


def open_file_backend(settings: RuntimeSettings) -> FileBackend:
    """Return what runs files of the settings' runtime, one of ``RUNTIMES``.

    Raises:
        DeviceError: the runtime is not installed, or the device lacks the precision.
    """
    return _FILE_BACKENDS[settings.runtime](settings)


def open_quantizing_backend(settings: RuntimeSettings) -> SeparateBackend:
    """Return what quantises networks into files for a CPU's runtime, ``onnxruntime`` or ``openvino``, and runs them.

    Args:
        settings: with the precision int8.

    Raises:
        DeviceError: the runtime or what quantises for it is not installed, or the device lacks the precision.
    """
    return _QUANTIZING[settings.runtime](settings)


__all__ = [
    "BACKENDS",
    "RUNTIMES",
    "Backend",
    "Calibration",
    "FileBackend",
    "FileRunner",
    "MemoryFormat",
    "Precision",
    "Runner",
    "Runtime",
    "RuntimeSettings",
    "SeparateBackend",
    "fingerprint",
    "open_backend",
    "open_file_backend",
    "open_quantizing_backend",
    "runtime_settings",
]
