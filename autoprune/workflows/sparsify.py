"""``autoprune sparsify``: the dense network trained so that many of its channels can go."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from autoprune.choices import PenaltyName, reopened
from autoprune.config import SparsifyConfig
from autoprune.listener import Listener
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.network import open_network, pin_threads
from autoprune.workflows.run import with_model
from autoprune.workflows.sparsity import RECORD, SPARSE, Sparsity, SparsitySettings, sparsify
from autoprune.workflows.stages import accuracy_rows, validated

_CRITERIA = {PenaltyName.L1: "bn", PenaltyName.GROUP_LASSO: "l2"}
"""The criterion that finds what a penalty made small."""


def run(config: SparsifyConfig, listener: Listener, caller: Caller) -> Finished:
    """Train with a penalty; write ``sparse``, ``summary.json``, ``sparsity.json`` and three pictures."""
    with RunFolder.open("sparsify", config, caller) as folder:
        _sparsify(with_model(config), folder, listener)
    return Finished(folder.path)


def _sparsify(config: SparsifyConfig, folder: RunFolder, listener: Listener) -> None:
    assert config.model is not None
    pin_threads(config.threads, folder)
    network = open_network(
        config.model,
        data=config.data,
        image_size=config.imgsz,
        device=config.device,
        trust=config.trust_checkpoint,
        criterion="l1",
        listener=listener,  # which channels matter is not asked before they are sparse
    )
    settings = SparsitySettings.of(config, epochs=config.epochs, lr=config.lr, batch=config.batch, seed=config.seed)
    module, found = sparsify(network, folder.path, settings, listener)
    dense = validated("dense", network.adapter.module, network.adapter, folder)
    sparse = validated("sparse", module, network.adapter, folder)
    names = network.adapter.accuracy_names
    summary = {
        "dense": asdict(dense),
        "sparse": asdict(sparse),
        "accuracy_names": asdict(names),
        "scales": found.as_json(),
        "penalty": config.penalty.value,
        "sparsity": config.sparsity,
        "sparsity_warmup": config.sparsity_warmup,
        "sparsity_decay": config.sparsity_decay,
        "epochs": config.epochs,
        "lr": config.lr,
        "environment": environment(),
    }
    folder.write("summary.json", json.dumps(summary, indent=2) + "\n")
    listener.table(
        f"{network.adapter.name}, {config.penalty.value} {config.sparsity:g}",
        *_table(accuracy_rows([dense, sparse], names), found),
    )
    path = network.adapter.checkpoint(folder.path, SPARSE)
    listener.note(f"The sparse network is {path}, how it became so {folder.path / RECORD}, drawn in three pictures.")
    data = "" if config.data is None else f" --data {config.data}"
    listener.note(
        f"Prune it: autoprune search --model {reopened(config.model, path)}{data} --strategy global --criterion "
        f"{_CRITERIA[config.penalty]} --budget flops=50%"
    )


def _table(accuracies: list[list[str]], found: Sparsity) -> tuple[list[str], list[list[str]]]:
    """Return header and rows that compare the networks."""
    scales = (found.dense, found.sparse)
    rows = [
        *accuracies,
        ["median scale", *(f"{np.median(values):.3g}" for values in scales)],
        [f"scales below {found.limit:.2g}", *(f"{found.near_zero(values):.1%}" for values in scales)],
    ]
    return ["", "dense", "sparse"], rows
