"""How many channels images have: 3 of colour, 1 of grey, others of several bands, as networks and data sets name it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from autoprune.errors import DataError, ModelError

COLOUR = 3
"""Channels of images where nothing else is named."""

_MOST = 512
"""Channels that an image can have in OpenCV, which reads the images."""


def input_channels(module: Any) -> int:
    """Return the channels of the images that a network takes, as the YAML inside a network of Ultralytics names them.

    Raises:
        ModelError: what it names is no number of channels.
    """
    described = getattr(module, "yaml", None)
    described = described if isinstance(described, Mapping) else {}
    named = described.get("channels", described.get("ch", COLOUR))
    if not _is_number_of_channels(named):
        raise ModelError(f"'channels' of the YAML inside the network must be {_RULE}, got {named!r}")
    return int(named)


def data_channels(file: Path, described: Mapping[str, Any]) -> int:
    """Return the channels of a data set's images, the key ``channels`` of its YAML file.

    Raises:
        DataError: it is no number of channels.
    """
    named = described.get("channels", COLOUR)
    if not _is_number_of_channels(named):
        raise DataError(f"'channels' of {file} must be {_RULE}, got {named!r}")
    return int(named)


def check_channels(weights: Path, channels: int, data: Mapping[str, Any]) -> None:
    """Raise ``DataError`` where the images of a data set have other channels than those that a network takes.

    Args:
        weights: where the network is from.
        channels: what it takes.
        data: the description of the data set in Ultralytics' form.
    """
    found, file = data["channels"], data.get("yaml_file", "the data set")
    if found != channels:
        raise DataError(
            f"{weights} takes images of {_counted(channels)}, but those of {file} have {found} ('channels' of a YAML "
            f"file, {COLOUR} where it is left out); use the data set that the network was trained on"
        )


def check_image(file: str, found: int, channels: int) -> None:
    """Raise ``DataError`` where an image has ``found`` channels and its data set names others."""
    if found != channels:
        raise DataError(
            f"{file} has {_counted(found)}, and 'channels' of its data set's YAML file is {channels}; correct it, or "
            "leave the image out"
        )


def reading_flag(channels: int) -> int:
    """Return how OpenCV reads images for so many channels, as Ultralytics does: any file as grey or as colour images.

    Images of other channels are read as they are: RGBA, or the pages of a TIFF file.
    """
    return {1: cv2.IMREAD_GRAYSCALE, COLOUR: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)


def _counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


_RULE = f"a whole number from 1 to {_MOST}"


def _is_number_of_channels(named: object) -> bool:
    return type(named) is int and 1 <= named <= _MOST
