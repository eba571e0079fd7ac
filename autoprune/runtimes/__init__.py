"""Runtimes that latency is measured on, one file each; `autoprune.choices.RUNTIMES` has one record for each."""

import pkgutil

from autoprune.choices import Precision, Runtime
from autoprune.formats import FormatSpec
from autoprune.runtimes._base import Backend, Calibration, FileBackend, FileRunner, Runner
from autoprune.runtimes.separate import SeparateBackend
from autoprune.runtimes.settings import MemoryFormat, RuntimeSettings, fingerprint, runtime_settings


def open_backend(settings: RuntimeSettings, calibration: Calibration | None = None) -> Backend:
    """Return the backend of the settings' runtime.

    Args:
        settings: how networks run.
        calibration: gives the images that an int8 network's ranges are found on.

    Raises:
        DeviceError: the runtime is not installed, or the device lacks the precision.
    """
    backend: Backend = pkgutil.resolve_name(settings.runtime.spec.backend)(settings, calibration)
    return backend


def open_file_backend(settings: RuntimeSettings, spec: FormatSpec) -> FileBackend:
    """Return what runs files of a format; the settings name its runtime.

    Raises:
        DeviceError: the runtime is not installed, or the device lacks the precision.
    """
    backend: FileBackend = pkgutil.resolve_name(spec.backend)(settings)
    return backend


def open_quantizing_backend(settings: RuntimeSettings) -> SeparateBackend:
    """Return what quantises networks into files for a CPU's runtime, ``onnxruntime`` or ``openvino``, and runs them.

    Args:
        settings: with the precision int8.

    Raises:
        DeviceError: the runtime or what quantises for it is not installed, or the device lacks the precision.
    """
    backend: SeparateBackend = pkgutil.resolve_name(settings.runtime.spec.backend)(settings)
    return backend


__all__ = [
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
