"""Runtimes that latency is measured on, one file each; `autoprune.choices.RUNTIMES` has one record for each."""

import pkgutil

from autoprune.choices import Precision, Runtime
from autoprune.formats import FormatSpec
from autoprune.runtimes._base import Backend, Calibration, FileBackend, FileRunner, Runner, Times
from autoprune.runtimes.settings import MemoryFormat, PrecisionError, RuntimeSettings, fingerprint, runtime_settings
from autoprune.runtimes.subprocess_backend import BrokenRuntimeError, SubprocessBackend


def open_backend(settings: RuntimeSettings, calibration: Calibration | None = None) -> Backend:
    """Return the backend of the settings' runtime.

    Args:
        settings: how networks run.
        calibration: returns the images for the activation ranges of an int8 network.

    Raises:
        DeviceError: the runtime is not installed, or the device lacks the precision.
    """
    backend: Backend = pkgutil.resolve_name(settings.runtime.spec.backend)(settings, calibration)
    return backend


def open_file_backend(settings: RuntimeSettings, spec: FormatSpec) -> FileBackend:
    """Return the backend that runs files of a format; the settings name its runtime.

    Raises:
        DeviceError: the runtime is not installed, or the device lacks the precision.
    """
    backend: FileBackend = pkgutil.resolve_name(spec.backend)(settings)
    return backend


__all__ = [
    "Backend",
    "BrokenRuntimeError",
    "Calibration",
    "FileBackend",
    "FileRunner",
    "MemoryFormat",
    "Precision",
    "PrecisionError",
    "Runner",
    "Runtime",
    "RuntimeSettings",
    "SubprocessBackend",
    "Times",
    "fingerprint",
    "open_backend",
    "open_file_backend",
    "runtime_settings",
]
