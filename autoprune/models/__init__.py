"""Adapters of networks, one per family of models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.choices import DARKNET, match_factory
from autoprune.errors import DataError, ModelError
from autoprune.image_size import ImageSize, SizeLike

if TYPE_CHECKING:
    import torch
    from torch import nn

    from autoprune.models._base import Adapter

__all__ = ["adapter_of", "build_adapter", "open_adapter"]


def open_adapter(
    weights: Path,
    *,
    data: Path | None = None,
    image_size: SizeLike | None = None,
    device: str | torch.device = "cpu",
    trust: bool = False,
) -> Adapter:
    """Open a checkpoint with the adapter of its family: Ultralytics, Darknet, or a user's function.

    Args:
        weights: the checkpoint; a Darknet ``.cfg``, with its ``.weights`` of the same name next to it; or
            ``FILE.py:FUNCTION``, with ``@CHECKPOINT`` for a pruned one, which runs that file.
        data: the data set's description; without it methods that need images raise ``DataError``.
        image_size: of the input, one number for squares or (height, width); the checkpoint's own if None.
        device: where to compute.
        trust: allow the checkpoint to run code; see `UltralyticsAdapter.load`.

    Raises:
        ModelError: the checkpoint cannot be used.
        DataError: the data set is missing or malformed, or does not fit the network.
        DeviceError: the device is unknown or not there.
    """
    if match_factory(weights):
        return _built(weights, data=data, image_size=image_size, device=device)
    if weights.suffix in DARKNET:
        from autoprune.models.darknet.adapter import DarknetAdapter

        return DarknetAdapter.load(weights, data=data, image_size=image_size, device=device)
    from autoprune.models.ultralytics import UltralyticsAdapter  # late: Ultralytics loads slowly

    return UltralyticsAdapter.load(weights, data=data, image_size=image_size, device=device, trust=trust)


def adapter_of(module: nn.Module, *, data: Path, image_size: SizeLike | None = None) -> Adapter:
    """Return the adapter of a network of Ultralytics in memory; see `UltralyticsAdapter.of`."""
    from autoprune.models.ultralytics import UltralyticsAdapter  # late: Ultralytics loads slowly

    return UltralyticsAdapter.of(module, data=data, image_size=image_size)


def _built(model: Path, *, data: Path | None, image_size: SizeLike | None, device: str | torch.device) -> Adapter:
    """Return the adapter of a user's function, which has its own data and image size."""
    from autoprune.models.module.loading import open_factory

    adapter = open_factory(model, device=device)
    if data is not None:
        raise DataError(f"{model} brings its own data; leave `data` {data} out")
    if image_size is not None and (asked := ImageSize.of(image_size)) != adapter.image_size:
        raise ModelError(f"{model} brings its own image size, {adapter.input_shape}; leave `imgsz` {asked.written} out")
    return adapter


def build_adapter(
    architecture: str,
    *,
    data: Path,
    image_size: SizeLike | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Adapter:
    """Build an untrained network of Ultralytics for the classes of a data set.

    Args:
        architecture: see `UltralyticsAdapter.untrained`.
        data: the data set's description.
        image_size: as for `open_adapter`; the family's default if None.
        device: where to compute.
        seed: of the weights.

    Raises:
        ModelError: there is no such architecture.
        DataError: the data set is missing or malformed.
        DeviceError: the device is unknown or not there.
    """
    from autoprune.models.ultralytics import UltralyticsAdapter  # late: Ultralytics loads slowly

    return UltralyticsAdapter.untrained(architecture, data=data, image_size=image_size, device=device, seed=seed)
