"""Compute the steps of Ultralytics' MuSGD in float32 where bfloat16 is slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autoprune.models.ultralytics import stock

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic iteration (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024)."""

_ORTHOGONALISE = "zeropower_via_newtonschulz5"


@contextmanager
def float32_steps(device: torch.device) -> Iterator[None]:
    """Let MuSGD orthogonalise in float32 on a CPU, where it has no choice but bfloat16.

    Of a pruned yolov5nu a step so takes 0.05 s in place of 0.32 s on a core without instructions for bfloat16.

    Args:
        device: where the training runs; nothing is changed on others than the CPU.
    """
    original = getattr(stock.muon, _ORTHOGONALISE, None)
    if device.type != "cpu" or original is None:  # another release may have another name for it: slower, no worse
        yield
        return
    setattr(stock.muon, _ORTHOGONALISE, orthogonalised)
    try:
        yield
    finally:
        setattr(stock.muon, _ORTHOGONALISE, original)


def orthogonalised(matrices: torch.Tensor, eps: float = 1e-7) -> torch.Tensor:
    """Return about the nearest semi-orthogonal matrices: singular values between 0.7 and 1.2.

    Args:
        matrices: shape (rows, columns) or (batch, rows, columns).
        eps: added to the norm.

    Example:
        >>> found = orthogonalised(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
        >>> bool((torch.linalg.svdvals(found) > 0.6).all())
        True
    """
    wide = matrices.mT if matrices.size(-2) > matrices.size(-1) else matrices
    found: torch.Tensor = wide.float() / (wide.float().norm(dim=(-2, -1), keepdim=True) + eps)
    first, second, third = COEFFICIENTS
    for _ in range(5):
        gram = found @ found.mT
        found = first * found + (second * gram + third * gram @ gram) @ found
    return found.mT if wide is not matrices else found
