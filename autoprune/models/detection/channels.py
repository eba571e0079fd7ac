"""Number of image channels (3 for colour, 1 for grey, others for multispectral) of networks and data sets, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from autoprune.errors import DataError, ModelError

COLOUR = 3
"""Default number of channels."""

_MOST = 512
"""Most channels of an image in OpenCV."""


def input_channels(module: Any) -> int:
    """Return the number of input channels in the YAML inside a network of Ultralytics.

    Raises:
        ModelError: the YAML's value is no number of channels.
    """
    described = getattr(module, "yaml", None)
    described = described if isinstance(described, Mapping) else {}
    named = described.get("channels", described.get("ch", COLOUR))
    if not _is_number_of_channels(named):
        raise ModelError(f"'channels' of the YAML inside the network must be {_RULE}, got {named!r}")
    return int(named)


def data_channels(file: Path, described: Mapping[str, Any]) -> int:
    """Return the number of channels of a data set's images, the key ``channels`` of its YAML file.

    Raises:
        DataError: the value is no number of channels.
    """
    named = described.get("channels", COLOUR)
    if not _is_number_of_channels(named):
        raise DataError(f"'channels' of {file} must be {_RULE}, got {named!r}")
    return int(named)


def check_channels(weights: Path, channels: int, data: Mapping[str, Any]) -> None:
    """Raise ``DataError`` if a data set's images have another number of channels than a network's input.

    Args:
        weights: the network's file, for the message.
        channels: of the network's input.
        data: the description of the data set in Ultralytics' form.
    """
    found, file = data["channels"], data.get("yaml_file", "the data set")
    if found != channels:
        raise DataError(
            f"{weights} takes images of {_counted(channels)}, but those of {file} have {found} ('channels' of a YAML "
            f"file, {COLOUR} if it is left out); use the data set that the network was trained on"
        )


def check_image(file: str, found: int, channels: int) -> None:
    """Raise ``DataError`` if an image has ``found`` channels and its data set names another number."""
    if found != channels:
        raise DataError(
            f"{file} has {_counted(found)}, and 'channels' of its data set's YAML file is {channels}; correct it, or "
            "leave the image out"
        )


def reading_flag(channels: int) -> int:
    """Return OpenCV's flag to read images with ``channels`` channels, as Ultralytics does.

    For 1 and 3 channels files are converted to grey or colour; others are read unchanged (RGBA, pages of a TIFF file).
    """
    return {1: cv2.IMREAD_GRAYSCALE, COLOUR: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)


def _counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


_RULE = f"a whole number from 1 to {_MOST}"


def _is_number_of_channels(named: object) -> bool:
    return type(named) is int and 1 <= named <= _MOST
