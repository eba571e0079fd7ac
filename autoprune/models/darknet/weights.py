"""Darknet's ``.weights`` files: a header and the numbers of all convolutional layers, one after the other."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autoprune.errors import ModelError
from autoprune.io.files import read_bytes
from autoprune.models.darknet.network import DarknetNetwork

_NUMBER = np.dtype("<f4")


@dataclass(frozen=True)
class Header:
    """What a file begins with (``parser.c``: ``save_weights_upto``), little-endian.

    Attributes:
        major: version of the format, 32 bits.
        minor: likewise. From version 0.2 on, ``seen`` has 64 bits, before it 32.
        revision: likewise.
        seen: how many images the network was trained on.
    """

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0

    @property
    def layout(self) -> str:
        """The header's layout, for ``struct``."""
        return "<iiiQ" if self.major * 10 + self.minor >= 2 else "<iiiI"

    def to_bytes(self) -> bytes:
        """Return the header as it stands in a file."""
        return struct.pack(self.layout, self.major, self.minor, self.revision, self.seen)

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """Read the header at the beginning of a file; ``struct.error`` where the file is shorter than one."""
        version = cls(*struct.unpack_from("<iii", data))
        return cls(*struct.unpack_from(version.layout, data))


def read_weights(path: Path, network: DarknetNetwork) -> Header:
    """Fill a network with a file's numbers.

    Args:
        path: the file.
        network: of the cfg that the file belongs to; changed in place.

    Raises:
        ModelError: the file cannot be read, or holds more or fewer numbers than the network has.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        header = Header.from_bytes(data)
    except struct.error as error:
        raise ModelError(f"{path} is no Darknet weights file: its {len(data)} bytes are less than a header") from error
    tensors = [tensor for _, layer in network.convolutions() for tensor in layer.tensors()]
    expected, found = sum(tensor.numel() for tensor in tensors), len(data) - len(header.to_bytes())
    if found != expected * _NUMBER.itemsize:
        raise ModelError(
            f"{path} must hold {expected} numbers behind its header for {network.cfg.file}, got "
            f"{found / _NUMBER.itemsize:.15g}; {_where(network, found // _NUMBER.itemsize)}"
        )
    numbers = np.frombuffer(data, _NUMBER, offset=len(header.to_bytes())).astype(np.float32)
    parts = np.split(numbers, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(torch.from_numpy(part).view_as(tensor))
    return header


def _where(network: DarknetNetwork, found: int) -> str:
    """Say where a file of so many numbers ends, and why that may be."""
    for index, layer in network.convolutions():
        found -= sum(tensor.numel() for tensor in layer.tensors())
        if found < 0:
            line = network.cfg.layers[index].line
            return (
                "it was cut off, holds only some layers, or belongs to another cfg: it ends within layer "
                f"{index}, line {line} of the cfg"
            )
    return "it goes on after the last layer, and so belongs to another cfg"


def weights_bytes(network: DarknetNetwork, header: Header) -> bytes:
    """Return a network's numbers as a file holds them."""
    tensors = [tensor for _, layer in network.convolutions() for tensor in layer.tensors()]
    parts = [tensor.detach().cpu().numpy().astype(_NUMBER).tobytes() for tensor in tensors]
    return header.to_bytes() + b"".join(parts)
