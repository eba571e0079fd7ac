"""A device named by a user, checked."""

from __future__ import annotations

import torch

from autoprune.errors import DeviceError


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of this name, if it is there.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or a bare CUDA index as Ultralytics takes it (``0``).

    Raises:
        DeviceError: the name is unknown, or this machine (or this build of torch) has no such device.
    """
    name = str(device).strip().lower()
    name = f"cuda:{name}" if name.isdigit() else name
    try:
        resolved = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"The device must be cpu, cuda, cuda:<index> or mps, got {str(device)!r}") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise DeviceError(
                f"The device {name} was asked for, but torch {torch.__version__} sees no CUDA device here"
            )
        if resolved.index is not None and resolved.index >= count:
            raise DeviceError(
                f"The device {name} was asked for, but there are {count} CUDA devices (cuda:0 is the first)"
            )
        return resolved if resolved.index is not None else torch.device("cuda", torch.cuda.current_device())
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("The device mps was asked for, but torch sees no Apple GPU here")
    if resolved.type not in {"cpu", "mps"}:
        raise DeviceError(f"The device must be cpu, cuda, cuda:<index> or mps, got {str(device)!r}")
    return torch.device("cpu") if resolved.type == "cpu" else resolved
