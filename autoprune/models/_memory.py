"""Estimate the memory of a network's activations at an image size, without running it there."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoprune.errors import ModelError, first_line
from autoprune.image_size import ImageSize

_UNIT = 32
"""Image sizes are multiples of this, in pixels."""

_SMALL, _LARGE = 4, 8
"""The two sizes at which activations are measured, in units; both are large enough for RT-DETR's 300 queries."""

_KERNELS = 1.3
"""Factor for the kernels' own memory: the process grew by 1.1 to 1.45 times the tensors' bytes."""

Series: TypeAlias = "npt.NDArray[np.float64]"
"""Bytes after each operation of a network."""

_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Linux's files with a container's memory limit, and its current use."""


def check_memory(
    module: nn.Module, size: ImageSize, *, name: str, channels: int, stride: int, images: int, device: torch.device
) -> None:
    """Check that a network runs, and that its activations fit into the free memory.

    The memory at this size is extrapolated from runs at two small ones.

    Args:
        module: the network; it is not changed.
        size: of an image.
        name: of the network, for the message.
        channels: of an image.
        stride: image sizes are multiples of it.
        images: batch size.
        device: of the computation.

    Raises:
        ModelError: it does not run, or needs more memory than is free; the message names the largest size that fits.
    """
    unit = -(-_UNIT // stride) * stride
    copy = deepcopy(module).cpu().eval()

    def run(pixels: int) -> Series:
        try:
            return living_bytes(copy, torch.zeros(1, channels, pixels, pixels))
        except Exception as error:  # wrong attributes of a network from a file can raise any class
            reason = first_line(error)
            raise ModelError(f"{name} does not run on an image of {pixels}×{pixels} pixels: {reason}") from error

    small, large = _SMALL * unit, _LARGE * unit
    first = run(small)
    if size.height * size.width <= large**2:
        return
    second, free = run(large), free_bytes(device)

    def needed(asked: ImageSize) -> float:
        side = math.sqrt(asked.height * asked.width)  # of a square of the same area
        return images * _KERNELS * _at(side, (small, first), (large, second))

    if needed(size) > free:
        side = _largest(lambda longest: needed(size.scaled(longest, unit)) <= free, size.longest, unit)
        fits = size.scaled(side, unit).written
        way = f"the largest image size that fits is {fits}: give `imgsz` {fits} or less" if side else "free some memory"
        raise ModelError(
            f"{name} at {size} px would take about {needed(size) / 1e9:.1f} GB for {images} images at once, and "
            f"{free / 1e9:.1f} GB are free on {device}; {way}"
        )


def living_bytes(module: nn.Module, images: torch.Tensor) -> Series:
    """Run a network without gradients and return the bytes of the tensors that are alive after each operation."""
    with torch.no_grad(), _Living() as living:
        module(images)
    return images.nbytes + np.array(living.series, dtype=np.float64)


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of memory on a device; on a CPU within the limit of its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(psutil.virtual_memory().available)
    for limit, taken in _GROUPS:
        try:
            free = min(free, int(limit.read_text()) - int(taken.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return free


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live tensors, each storage once; `series` has the sum after each operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.series: list[int] = []
        self._bytes = 0
        self._tensors: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._born(tensor)
        self.series.append(self._bytes)
        return result

    def _born(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        self._tensors[key] += 1
        self._bytes += size * (self._tensors[key] == 1)
        weakref.finalize(tensor, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        self._bytes -= size * (self._tensors[key] == 0)


def _at(size: float, first: tuple[int, Series], second: tuple[int, Series]) -> float:
    """Return the peak bytes at a square's side, extrapolated from the bytes after each operation at two smaller sizes.

    Each operation's bytes are modelled as a constant plus a term in the area, or, if they grow faster, as a term in the
    area plus one in its square.
    """
    (small, few), (large, many) = first, second
    if len(few) != len(many):  # the network does something else at another size
        few, many = few.max(keepdims=True), many.max(keepdims=True)
    area, less, more = size**2, small**2, large**2
    slope = (many - few) / (more - less)
    constant = few - slope * less
    square = np.maximum(0.0, (many / more - few / less) / (more - less))
    linear = np.maximum(0.0, few / less - square * less)
    grown = np.where(constant >= 0, constant + slope * area, linear * area + square * float(area) ** 2)
    return float(grown.max())


def _largest(fits: Callable[[int], bool], below: int, unit: int) -> int:
    """Return the largest multiple of a unit below a size that fits; 0 if none does."""
    low, high = 0, math.ceil(below / unit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit
