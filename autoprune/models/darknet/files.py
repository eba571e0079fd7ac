"""Darknet networks as files: a ``.cfg``, and ``.weights`` with a header and the numbers of all convolutional layers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoprune.errors import ModelError
from autoprune.image_size import ImageSize
from autoprune.io.files import read_bytes, write_atomic
from autoprune.models.darknet.cfg import Cfg, read_cfg
from autoprune.models.darknet.network import DarknetNetwork

_NUMBER = np.dtype("<f4")

_ENCODING: Mapping[str, str] = {"encoding": "utf-8", "errors": "surrogateescape"}
"""Comments may be in any encoding."""


@dataclass(frozen=True)
class Header:
    """The header of a weights file (``parser.c``: ``save_weights_upto``), little-endian.

    Attributes:
        major: version of the format, 32 bits.
        minor: of the version. From version 0.2 on, ``seen`` has 64 bits, before it 32.
        revision: of the version.
        seen: number of images that the network was trained on.
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
        """Return the header's bytes in a file."""
        return struct.pack(self.layout, self.major, self.minor, self.revision, self.seen)

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """Read the header at the beginning of a file; ``struct.error`` if the file is too short."""
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
    """Return in words at which layer a file of ``found`` numbers ends, and the likely reason."""
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
    """Return the content of a network's weights file."""
    tensors = [tensor for _, layer in network.convolutions() for tensor in layer.tensors()]
    parts = [tensor.detach().cpu().numpy().astype(_NUMBER).tobytes() for tensor in tensors]
    return header.to_bytes() + b"".join(parts)


def weights_of(cfg: Path) -> Path:
    """Return the weights file of a cfg: of the same name, next to it.

    Raises:
        ModelError: there is none, or a weights file was given instead of a cfg.
    """
    if cfg.suffix == ".weights":
        raise ModelError(
            f"{cfg} holds weights only; give the cfg of that network, as {cfg.with_suffix('.cfg')} next to it"
        )
    weights = cfg.with_suffix(".weights")
    if cfg.is_file() and not weights.is_file():
        raise ModelError(f"{cfg} needs the weights of its network next to it, and {weights} does not exist")
    return weights


def read(
    cfg: Path, weights: Path, *, resize: Callable[[Cfg], ImageSize] | None = None
) -> tuple[DarknetNetwork, Header]:
    """Read a trained network, in eval mode, and the header of its weights file.

    Args:
        cfg: its cfg.
        weights: its weights.
        resize: chooses the image size; None for the cfg's own width and height.

    Raises:
        ModelError: a file cannot be read, is malformed or not supported, or the two do not belong together.
    """
    content = read_cfg(cfg)
    if resize is not None:
        content = content.resized(resize(content))
    network = empty(content).to_empty(device="cpu")
    for _, layer in network.convolutions():
        if layer.norm is not None:
            layer.norm.num_batches_tracked = torch.zeros((), dtype=torch.long)
    header = read_weights(weights, network)
    return network.eval(), header


def write(
    network: DarknetNetwork, header: Header, *, cfg: Path, weights: Path, notes: Mapping[str, Any] | None = None
) -> None:
    """Write a network, dense or pruned, as a cfg and its weights; the cfg last.

    The cfg is the original one except for ``filters`` and ``groups``; comments stay.

    Args:
        network: the network.
        header: of the weights file: the one that was read, or a new one.
        cfg: path of the cfg.
        weights: path of the weights.
        notes: plain JSON values for a comment of the cfg, which replaces earlier notes.

    Raises:
        ModelError: a cfg cannot express the network; nothing is written.
        RunError: a file cannot be written.
    """
    content = network.current_cfg()
    expected = {name: tensor.shape for name, tensor in empty(content).state_dict().items()}
    for name, tensor in network.state_dict().items():
        if tensor.shape != expected[name]:
            raise ModelError(
                f"A cfg must be able to express a network; {name} has shape {tuple(tensor.shape)} and would be read as "
                f"{tuple(expected[name])}"
            )
    write_atomic(weights, weights_bytes(network, header))
    write_atomic(cfg, content.noted(notes or {}).encode(**_ENCODING))


def checkpoint_size(network: DarknetNetwork, header: Header) -> int:
    """Return the size in bytes of both files together, without notes."""
    return len(weights_bytes(network, header)) + len(network.current_cfg().noted({}).encode(**_ENCODING))


def empty(cfg: Cfg) -> DarknetNetwork:
    """Build a network on the meta device: drawing weights of a YOLOv4 takes seconds and changes the random state."""
    with torch.device("meta"):
        return DarknetNetwork(cfg)
