"""The example input of every adapter: noise, the same at every call."""

from __future__ import annotations

import torch


def noise(*shape: int, device: torch.device) -> torch.Tensor:
    """Return uniform noise in [0, 1) of a shape, on a device."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(device)
