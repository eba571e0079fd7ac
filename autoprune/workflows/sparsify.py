"""``autoprune sparsify``: the dense network trained so that many of its channels can go."""

from __future__ import annotations

import numpy as np

from autoprune.choices import PenaltyName, reopened
from autoprune.config import SparsifyConfig
from autoprune.listener import Listener
from autoprune.report.sections import publish
from autoprune.results import Result, Stage
from autoprune.training.extensions.sparsity_record import SHARES
from autoprune.workflows import stages
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.network import open_network, pin_threads
from autoprune.workflows.run import with_model
from autoprune.workflows.sparsity import RECORD, SPARSE, SparsitySettings, sparsify

_CRITERIA = {PenaltyName.L1: "bn", PenaltyName.GROUP_LASSO: "l2"}
"""The criterion that finds what a penalty made small."""


def run(config: SparsifyConfig, listener: Listener, caller: Caller) -> Finished:
    """Train with a penalty; write ``sparse``, ``summary.json``, ``sparsity.json`` and three pictures."""
    with RunFolder.open("sparsify", config, caller) as folder:
        _sparsify(with_model(config), folder, listener)
    return Finished(folder.path)


def _sparsify(config: SparsifyConfig, folder: RunFolder, listener: Listener) -> None:
    assert config.model is not None
    listener.stages(stages.of_sparsifying(config))
    listener.stage(stages.OPEN)
    pin_threads(config.threads, folder, listener)
    network = open_network(config, criterion="l1", listener=listener)  # channels are ranked once they are sparse
    settings = SparsitySettings.of(config, epochs=config.epochs, lr=config.lr, batch=config.batch, seed=config.seed)
    listener.stage(stages.SPARSITY)
    module, found = sparsify(network, folder.path, settings, listener)
    networks = {"dense": (network.adapter.module, found.dense), "sparse": (module, found.sparse)}
    listener.stage(stages.RESULT)
    measured = {
        name: Stage(
            folder.validated(name, one, network.adapter),
            details={
                "scale_median": float(np.median(scales)),
                "scale_quintiles": np.quantile(scales, SHARES).tolist(),
                "scales_near_zero": found.near_zero(scales),
            },
        )
        for name, (one, scales) in networks.items()
    }
    result = Result(
        command=folder.command,
        title=f"{network.adapter.name}, {config.penalty.value} {config.sparsity:g}",
        metric_names=network.adapter.metric_names,
        stages=measured,
        figures={
            "zero_below": found.limit,
            "dead_units": list(found.dead),
            "penalty": config.penalty.value,
            "sparsity": config.sparsity,
            "sparsity_warmup": config.sparsity_warmup,
            "sparsity_decay": config.sparsity_decay,
            "epochs": config.epochs,
            "lr": config.lr,
        },
        environment=environment(),
    )
    publish(result, folder.path / "summary.json", listener)
    path = network.adapter.checkpoint(folder.path, SPARSE)
    listener.note(
        f"The sparse network is {path}; its training is recorded in {folder.path / RECORD} and in three charts."
    )
    data = "" if config.data is None else f" --data {config.data}"
    listener.note(
        f"Prune it: autoprune search --model {reopened(config.model, path)}{data} --strategy global --criterion "
        f"{_CRITERIA[config.penalty]} --budget flops=50%"
    )
