"""A Darknet network as its two files, for every tool that reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from autoprune.errors import ModelError
from autoprune.io.files import write_atomic
from autoprune.models.darknet.cfg import Cfg, read_cfg
from autoprune.models.darknet.network import DarknetNetwork
from autoprune.models.darknet.weights import Header, read_weights, weights_bytes

_ENCODING: Mapping[str, str] = {"encoding": "utf-8", "errors": "surrogateescape"}
"""Comments may be in any encoding."""


def weights_beside(cfg: Path) -> Path:
    """Return the weights file that belongs to a cfg: of the same name, next to it.

    Raises:
        ModelError: there is none, or a weights file was given in the cfg's place.
    """
    if cfg.suffix == ".weights":
        raise ModelError(
            f"{cfg} has Darknet's numbers alone; give the cfg of that network, as {cfg.with_suffix('.cfg')} next to it"
        )
    weights = cfg.with_suffix(".weights")
    if cfg.is_file() and not weights.is_file():
        raise ModelError(f"{cfg} needs the numbers of its network next to it, and {weights} does not exist")
    return weights


def read(cfg: Path, weights: Path, *, resize: Callable[[Cfg], int] | None = None) -> tuple[DarknetNetwork, Header]:
    """Read a trained network, in eval mode, and its weights file's header.

    Args:
        cfg: its cfg.
        weights: its weights.
        resize: chooses another image size, in pixels; None for the cfg's own width and height.

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

    The cfg is the one that was read but for ``filters`` and ``groups``; comments stay.

    Args:
        network: what is written.
        header: of the weights file; that which was read, or a new one.
        cfg: where the cfg is written.
        weights: where the weights are written.
        notes: plain JSON values, put into a comment of the cfg in place of earlier ones.

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
    """Return the bytes of both files that ``write`` makes without notes."""
    return len(weights_bytes(network, header)) + len(network.current_cfg().noted({}).encode(**_ENCODING))


def empty(cfg: Cfg) -> DarknetNetwork:
    """Build a network without numbers: drawing those of a YOLOv4 takes seconds and changes the random state."""
    with torch.device("meta"):
        return DarknetNetwork(cfg)
