"""Prune a Darknet network in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from autoprune.errors import ConfigError
from autoprune.models.darknet.network import DarknetNetwork
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse

Order = Callable[[nn.Module, ChannelGraph], Sequence[npt.NDArray[np.int64]]]
"""(network, its channel groups) → per group its channels, most important first, as ``Importance.order``."""

_ANY = 1e-6
"""A lower bound that bounds nothing."""


def prune(
    network: DarknetNetwork, keep: Mapping[str, int] | float, *, order: Order, round_to: int = 8
) -> DarknetNetwork:
    """Return a smaller network; batch norm is not recalibrated.

    For example, with ``autoprune.criteria.make_criterion``::

        network, header = read(Path("yolov4.cfg"), Path("yolov4.weights"))
        smaller = prune(network, 0.5, order=make_criterion("l1").order)
        write(smaller, header, cfg=Path("pruned.cfg"), weights=Path("pruned.weights"))

    ``Policy.apply`` does the same by a policy file, with ``network.example()`` as its example.

    Args:
        network: not modified.
        keep: kept channels by the name of the unit, all channels where a unit is not named; or one keep ratio in (0, 1]
            for all units. ``autoprune.structure.validation.analyse(network, network.example()).units`` tells the units.
        order: which channels stay.
        round_to: with a ratio, widths are rounded down to multiples of this.

    Raises:
        ConfigError: a unit is unknown, or a count or the ratio is out of range.
        ModelError: the network cannot be analysed.
    """
    graph = analyse(network, network.example())
    if isinstance(keep, Mapping):
        space = Space(graph, round_to=1, min_keep=_ANY)
        widths = {unit.name: unit.width for unit in space.units}
        if unknown := [name for name in keep if name not in widths]:
            raise ConfigError(f"{unknown[0]} is no unit of {network.cfg.file} that can be pruned")
        allocation = space.from_names({**widths, **keep})
    else:
        if not 0 < keep <= 1:
            raise ConfigError(f"The keep ratio must lie in (0, 1], got {keep:g}")
        space = Space(graph, round_to=round_to, min_keep=_ANY)
        allocation = space.allocation(space.round_down(keep * np.ones(len(space))))
    smaller = Pruner(network, space, order(network, graph)).materialise(allocation)
    assert isinstance(smaller, DarknetNetwork)
    return smaller
