"""A dense network, analysed: what every command starts from."""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Array
from autoprune.choices import is_board
from autoprune.config import ApplyConfig, ProfileConfig, PruningConfig, SparsifyConfig, TrainConfig, devices_of
from autoprune.costs import CostSubject
from autoprune.criteria._base import Importance, ranking
from autoprune.criteria.registry import make_criterion
from autoprune.errors import ConfigError, ModelError
from autoprune.evaluation.pruning import evidence_of
from autoprune.listener import Listener
from autoprune.metrics import METRICS
from autoprune.models import open_adapter
from autoprune.models._base import Adapter
from autoprune.policy import PolicyModel
from autoprune.runtimes.load import Load, measure_load
from autoprune.runtimes.settings import has_int8_instructions, threads_in_words
from autoprune.strategies.curves import SensitivityCurves
from autoprune.structure.constraint import Cost
from autoprune.structure.graph import ChannelGraph, tie
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation, Space
from autoprune.structure.validation import analyse
from autoprune.workflows.folder import RunFolder

OpeningConfig: TypeAlias = ApplyConfig | ProfileConfig | PruningConfig | SparsifyConfig | TrainConfig
"""The options of a command that analyses a network."""


@dataclass(frozen=True)
class Network:
    """A dense network with its channel groups and the allocations that may be chosen.

    Attributes:
        adapter: the network with its data, loss and metric.
        graph: its channel groups, with all units that there are.
        space: its allocations; its own graph has fewer units if some are tied.
        pruner: makes smaller copies.
        importance: per group, the score of each channel.
    """

    adapter: Adapter
    graph: ChannelGraph
    space: Space
    pruner: Pruner
    importance: Sequence[Array]

    @property
    def described(self) -> PolicyModel:
        """The network as a policy names it."""
        return PolicyModel(self.adapter.name, {unit.name: unit.width for unit in self.graph.units})

    def check_prunable(self) -> None:
        """Make sure that a unit can be narrower than it is.

        Raises:
            ConfigError: none can with this ``min_keep`` and ``round_to``.
        """
        space = self.space
        if all(len(choices) == 1 for choices in space.choices):
            raise ConfigError(
                f"No unit can be pruned with `min_keep` {space.min_keep} and `round_to` {space.round_to}; "
                + (space.narrowing or "lower both")
            )

    def keep(self, allocation: Allocation) -> dict[str, int]:
        """Return the kept channels of all units of the graph, tied or not, by name."""
        counts = self.space.group_counts(allocation)
        return {unit.name: counts[unit.groups[0]] for unit in self.graph.units}

    def untied(self) -> Network:
        """Return the network with the allocations that there are if nothing is tied."""
        space = Space(self.graph, round_to=self.space.round_to, min_keep=self.space.min_keep)
        return _ranked(self.adapter, self.graph, space, self.importance)

    def scored_by(self, criterion: str) -> Network:
        """Return the network with its channels scored by another criterion; one that looks at images needs data."""
        scorer = make_criterion(criterion, partial(evidence_of, self.adapter))
        return _scored(self.adapter, self.graph, self.space, scorer)

    def curves(self, path: Path, criterion: str) -> SensitivityCurves:
        """Read sensitivity curves that were measured on this network.

        Raises:
            ConfigError: the file is none, or belongs to another network or criterion.
        """
        header, curves = SensitivityCurves.load(path)
        if header.criterion != criterion:
            raise ConfigError(f"{path} was measured with `criterion` {header.criterion}, this search has {criterion}")
        curves.check(self.space)
        return curves

    @cached_property
    def static_costs(self) -> Mapping[str, Cost]:
        """The costs in closed form, by metric."""
        return static_costs(self.adapter, self.adapter.module, self.graph, self.space)

    def costs(
        self, allocation: Allocation, module: nn.Module | None = None, file: Path | None = None
    ) -> dict[str, float]:
        """Return what an allocation costs in closed form, by metric.

        Args:
            allocation: kept channels per unit.
            module: its network, if the size is to be that of its checkpoint.
            file: the checkpoint, if it is written.
        """
        costs = {metric: float(cost(np.array(allocation))) for metric, cost in self.static_costs.items()}
        if module is not None:
            costs["size"] = self.adapter.checkpoint_size(module) if file is None else self.adapter.saved_size(file)
        return costs


def static_costs(adapter: Adapter, module: nn.Module, graph: ChannelGraph, space: Space) -> Mapping[str, Cost]:
    """Return what allocations of a network cost in closed form, by metric.

    Args:
        adapter: of its family.
        module: the network.
        graph: its channel groups.
        space: its allocations.
    """
    subject = CostSubject(
        module, graph, space, adapter.example(1), adapter.checkpoint_size(module), adapter.bytes_per_number
    )
    return {spec.name: pkgutil.resolve_name(spec.cost).of(subject) for spec in METRICS if spec.cost}


def open_network(
    config: OpeningConfig,
    *,
    criterion: str,
    round_to: int = 1,
    min_keep: float = 1e-6,
    stock_yaml: bool = False,
    check: Callable[[ChannelGraph], None] = lambda graph: None,
    listener: Listener,
) -> Network:
    """Load the weights that a configuration names, find their channel groups and rank their channels.

    Args:
        config: has the model, its data set, its image size and the device; of several devices the first is taken.
        criterion: ranks the channels.
        round_to: as for `Space`.
        min_keep: as for `Space`.
        stock_yaml: allow only networks that the network's own tool can describe, see `Description`.
        check: refuses a network that is not the one expected, before its channels are ranked.
        listener: hears what was found.
    """
    assert config.model is not None
    device = choose_device(devices_of(config.device)[0])
    adapter = open_adapter(
        config.model, data=config.data, image_size=config.imgsz, device=device, trust=config.trust_checkpoint
    )
    with listener.progress("Analysing", 1) as advance:
        graph = analyse(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
        advance(1)
    check(graph)
    space = Space(_tied(graph, adapter) if stock_yaml else graph, round_to=round_to, min_keep=min_keep)
    pinned = {group.name: group.pinned for group in space.graph.groups if group.pinned not in (None, "network input")}
    listener.note(
        f"{adapter.name} at {adapter.image_size} px on {adapter.device}: {len(space)} units can be pruned, "
        f"{len(pinned)} layers keep all their channels."
    )
    for name, reason in pinned.items():
        listener.debug(f"{name} keeps all its channels: {reason}.")
    scorer = make_criterion(criterion, partial(evidence_of, adapter) if adapter.has_images else None)
    return _scored(adapter, graph, space, scorer)


def _scored(adapter: Adapter, graph: ChannelGraph, space: Space, scorer: Importance) -> Network:
    return _ranked(adapter, graph, space, scorer(adapter.module, graph))


def _ranked(adapter: Adapter, graph: ChannelGraph, space: Space, importance: Sequence[Array]) -> Network:
    return Network(adapter, graph, space, Pruner(adapter.module, space, ranking(importance)), importance)


def _tied(graph: ChannelGraph, adapter: Adapter) -> ChannelGraph:
    """Return the graph whose allocations the network's own tool can describe."""
    if adapter.description is None:
        raise ModelError(f"{adapter.name} has no stock YAML that could describe it pruned; leave `stock_yaml` out")
    return tie(graph, adapter.description.ties(adapter.module))


def choose_device(asked: str) -> str:
    """Return the device to compute on: a board only measures, and then this is as for ``auto``, a GPU or the CPU."""
    if asked != "auto" and not is_board(asked):
        return asked
    return "cuda:0" if torch.cuda.is_available() else "cpu"


WAITS, WAIT_SECONDS = 3, 5.0
"""How often, and how long each time, a run waits for cores that other processes use."""


def pin_threads(asked: int | None, folder: RunFolder, listener: Listener) -> None:
    """Set torch's CPU threads: as many as asked, or else as cores were free when the run began.

    A run that goes on in another process keeps the number: latencies of different numbers of threads must not mix.
    If other processes use the cores, the run says so, and waits a little before it begins.
    """

    def choose() -> int:
        wanted, load = asked or torch.get_num_threads(), _settled_load(listener)
        threads = asked or min(wanted, load.free)
        counted = threads_in_words(threads)
        if load.overloaded:
            listener.warn(
                f"{load}: this run takes {counted}, and its figures in milliseconds are measured under load and "
                "marked so; for figures to rely on, run it again when they are done."
            )
        elif wanted > load.free:
            waiting = ", which wait for each other" if threads > load.free else "; choose with `threads`"
            listener.warn(f"{load}: this run takes {counted}{waiting}.")
        return threads

    torch.set_num_threads(folder.once("threads", choose))


def _settled_load(listener: Listener) -> Load:
    """Measure what other processes use; if they leave no core, wait a little for one."""
    load = measure_load()
    if load.overloaded:
        listener.note(f"{load}; waiting up to {WAITS * WAIT_SECONDS:.0f} s for a core …")
    for _ in range(WAITS):
        if not load.overloaded:
            break
        time.sleep(WAIT_SECONDS)
        load = measure_load()
    return load


def warn_of_skipped(adapter: Adapter, listener: Listener) -> None:
    """Name the images that were left out since they cannot be used, and why."""
    for skipped in adapter.skipped:
        listener.warn(f"Skipped {skipped}")


def warn_of_slow_int8(listener: Listener) -> None:
    """Say so if the processor has no instructions for int8."""
    if has_int8_instructions() is False:
        listener.warn(
            "This CPU has no instructions for int8 (avx512_vnni, avx_vnni or amx_int8): a quantised network works "
            "here, but may be slower than the float one"
        )
