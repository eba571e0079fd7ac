"""Read a Darknet network, prune it, write it back for every tool that reads Darknet's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from autoprune.errors import ConfigError, ModelError
from autoprune.files import write_atomic
from autoprune.graph import ChannelGraph
from autoprune.models.darknet.cfg import Cfg, read_cfg
from autoprune.models.darknet.network import DarknetNetwork
from autoprune.models.darknet.weights import Header, read_weights, write_weights
from autoprune.proof import analyse
from autoprune.space import Space
from autoprune.surgery import Pruner

Order = Callable[[nn.Module, ChannelGraph], Sequence[npt.NDArray[np.int64]]]
"""(network, its channel groups) → per group its channels, most important first, as ``Importance.order``."""

_ANY = 1e-6
"""A lower bound that bounds nothing."""


def read(cfg: Path, weights: Path) -> tuple[DarknetNetwork, Header]:
    """Read a trained network, in eval mode, and its weights file's header.

    Raises:
        ModelError: a file cannot be read, is malformed or not supported, or the two do not belong together.
    """
    network = _empty(read_cfg(cfg)).to_empty(device="cpu")
    for _, layer in network.convolutions():
        if layer.norm is not None:
            layer.norm.num_batches_tracked = torch.zeros((), dtype=torch.long)
    header = read_weights(weights, network)
    return network.eval(), header


def prune(
    network: DarknetNetwork, keep: Mapping[str, int] | float, *, order: Order, round_to: int = 8
) -> DarknetNetwork:
    """Return a smaller network; batch norm is not recalibrated.

    For example, with ``autoprune.importance.make_criterion``::

        network, header = read(Path("yolov4.cfg"), Path("yolov4.weights"))
        smaller = prune(network, 0.5, order=make_criterion("l1").order)
        write(smaller, header, cfg=Path("pruned.cfg"), weights=Path("pruned.weights"))

    ``Policy.apply`` does the same by a policy file, with ``network.example()`` as its example.

    Args:
        network: not modified.
        keep: kept channels by the name of the unit, all channels where a unit is not named; or one keep ratio in (0, 1]
            for all units. ``autoprune.proof.analyse(network, network.example()).units`` tells the units.
        order: which channels stay.
        round_to: with a ratio, widths are rounded down to multiples of this.

    Raises:
        ConfigError: a unit is unknown, or a count or the ratio is out of range.
        ModelError: the network cannot be analysed.
    """
    graph = analyse(network, network.example())
    if isinstance(keep, Mapping):
        space = Space(graph, round_to=1, min_keep=_ANY)
        known = {unit.name for unit in space.units}
        if unknown := [name for name in keep if name not in known]:
            raise ConfigError(f"{unknown[0]} is no unit of {network.cfg.file} that can be pruned")
        allocation = space.from_names(keep)
    else:
        if not 0 < keep <= 1:
            raise ConfigError(f"The keep ratio must lie in (0, 1], got {keep:g}")
        space = Space(graph, round_to=round_to, min_keep=_ANY)
        allocation = space.allocation(space.round_down(keep * np.ones(len(space))))
    smaller = Pruner(network, space, order(network, graph)).materialise(allocation)
    assert isinstance(smaller, DarknetNetwork)
    return smaller


def write(network: DarknetNetwork, header: Header, *, cfg: Path, weights: Path) -> None:
    """Write a network, dense or pruned, as a cfg and its weights.

    The cfg is the one that was read but for ``filters`` and ``groups``; comments stay.

    Args:
        network: what is written.
        header: of the weights file; that which was read, or a new one.
        cfg: where the cfg is written.
        weights: where the weights are written.

    Raises:
        ModelError: a cfg cannot express the network; nothing is written.
        RunError: a file cannot be written.
    """
    content = network.current_cfg()
    expected = {name: tensor.shape for name, tensor in _empty(content).state_dict().items()}
    for name, tensor in network.state_dict().items():
        if tensor.shape != expected[name]:
            raise ModelError(
                f"A cfg must be able to express a network; {name} has shape {tuple(tensor.shape)} and would be read as "
                f"{tuple(expected[name])}"
            )
    write_weights(weights, network, header)
    write_atomic(cfg, content.text.encode(errors="surrogateescape"))


def _empty(cfg: Cfg) -> DarknetNetwork:
    """Build a network without numbers: drawing those of a YOLOv4 takes seconds and changes the random state."""
    with torch.device("meta"):
        return DarknetNetwork(cfg)
