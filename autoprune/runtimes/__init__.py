"""Runtimes that latency is measured on, one file each; a further one is one more ``Backend`` in ``BACKENDS``."""

from collections.abc import Mapping

from autoprune.runtimes._base import Backend, Runner
from autoprune.runtimes.settings import MemoryFormat, Precision, Runtime, RuntimeSettings, fingerprint, runtime_settings
from autoprune.runtimes.torch_eager import TorchBackend

BACKENDS: Mapping[Runtime, type[Backend]] = {Runtime.TORCH: TorchBackend, Runtime.CUDAGRAPH: TorchBackend}
"""Which backend serves which runtime."""


def open_backend(settings: RuntimeSettings) -> Backend:
    """Return the backend of the settings' runtime.

    Raises:
        DeviceError: the runtime is not installed.
    """
    return BACKENDS[settings.runtime](settings)


__all__ = [
    "BACKENDS",
    "Backend",
    "MemoryFormat",
    "Precision",
    "Runner",
    "Runtime",
    "RuntimeSettings",
    "fingerprint",
    "open_backend",
    "runtime_settings",
]
