"""A policy applied to weights: what ``apply`` and ``train`` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune import __version__
from autoprune.config import ApplyConfig, TrainConfig
from autoprune.evaluation.pruning import calibration_of, prune
from autoprune.listener import Listener
from autoprune.policy import Policy
from autoprune.report.sections import publish
from autoprune.results import Result, Stage
from autoprune.structure.space import Allocation
from autoprune.workflows import stages
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.network import Network, open_network, warn_of_skipped


@dataclass(frozen=True)
class Applied:
    """A network with the allocation that a policy gives it.

    Attributes:
        network: the dense network.
        policy: the policy.
        allocation: kept channels per unit.
        module: the pruned network; batch norm recalibrated if there were images.
    """

    network: Network
    policy: Policy
    allocation: Allocation
    module: nn.Module

    @property
    def notes(self) -> Mapping[str, Any]:
        """What travels inside the checkpoints."""
        return {"autoprune": __version__, "budget": list(self.policy.budget), "keep": dict(self.policy.keep)}

    def stage(
        self, folder: RunFolder, name: str, module: nn.Module, file: Path | None = None, *, validate: bool = True
    ) -> Stage:
        """Measure a network: accuracy on the validation split, once in a run, costs and checkpoint size, no latency.

        Args:
            folder: of the run.
            name: of the stage.
            module: the network.
            file: its checkpoint; None for the dense network.
            validate: whether the accuracy is measured.
        """
        network = self.network
        allocation = self.allocation if file is not None else network.space.allocation(network.space.dense)
        metrics = folder.validated(name, module, network.adapter) if validate else None
        return Stage(metrics, network.costs(allocation, module, file))

    def publish(self, stages: Mapping[str, Stage], folder: RunFolder, listener: Listener) -> None:
        """Write ``summary.json``, and show the stages next to each other."""
        adapter = self.network.adapter
        result = Result(
            command=folder.command,
            title=f"{adapter.name}, {', '.join(self.policy.budget)}",
            metric_names=adapter.metric_names,
            stages=stages,
            environment=environment(),
        )
        publish(result, folder.path / "summary.json", listener)


def apply_policy(config: ApplyConfig | TrainConfig, listener: Listener, *, images: int) -> Applied:
    """Load policy and weights, and prune; compensate and recalibrate batch norm if there is a data set.

    Raises:
        PolicyError: the policy does not fit the network, or names an unknown criterion.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    policy = config.policy if isinstance(config.policy, Policy) else Policy.load(config.policy)
    policy.check_criterion()  # before the network is loaded
    network = open_network(
        config,
        criterion=policy.criterion,
        check=lambda graph: policy.check({unit.name: unit.width for unit in graph.units}),
        listener=listener,
    )
    listener.stage(stages.PRUNE)
    allocation = network.space.from_names(policy.keep)
    calibration = calibration_of(
        network.adapter, compensate=config.compensate, images=images, batch=config.batch, seed=config.seed
    )
    warn_of_skipped(network.adapter, listener)
    with listener.progress("Pruning", 1) as advance:
        module = prune(
            network.pruner,
            allocation,
            criterion=policy.criterion,
            example=network.adapter.example(1),
            calibration=calibration,
            reconstructed=config.reconstruct,
        )
        advance(1)
    return Applied(network, policy, allocation, module)
