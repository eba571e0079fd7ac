"""``autoprune slim``: network slimming in one run: (train →) sparsify → prune → fine-tune."""

from __future__ import annotations

from dataclasses import replace

from autoprune.choices import reopened
from autoprune.config import SlimConfig
from autoprune.listener import Listener
from autoprune.models import build_adapter
from autoprune.policy import Policy
from autoprune.results import Stage
from autoprune.workflows import stages
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.network import Network, choose_device, open_network, pin_threads
from autoprune.workflows.run import with_model
from autoprune.workflows.search import SearchRun, with_amounts
from autoprune.workflows.sparsity import SPARSE, SparsitySettings, sparsify
from autoprune.workflows.tuning import Tuning, train_from_nothing


def run(config: SlimConfig, listener: Listener, caller: Caller) -> Finished:
    """Train if there are no weights yet, sparsify, search, fine-tune and measure."""
    with RunFolder.open("slim", config, caller) as folder:
        return Finished(folder.path, _Pipeline(config, folder, listener).execute())


class _Pipeline:
    """One run, stage by stage."""

    def __init__(self, config: SlimConfig, folder: RunFolder, listener: Listener) -> None:
        self._folder, self._listener = folder, listener
        pin_threads(config.threads_here, folder, listener)
        config = with_amounts(config, demo=config.model is None and config.architecture is None)
        listener.stages(stages.of_slim(config))
        self._config = with_model(config if config.architecture is None else self._trained(config))

    def execute(self) -> bool:
        """Run all stages; return whether every limit is held."""
        config, folder = self._config, self._folder
        self._listener.stage(stages.OPEN)
        dense = self._dense()
        metrics = folder.validated("before sparsity", dense.adapter.module, dense.adapter)
        settings = SparsitySettings.of(
            config, epochs=config.sparsity_epochs, lr=config.sparsity_lr, batch=config.batch, seed=config.seed
        )
        self._listener.stage(stages.SPARSITY)
        sparsify(dense, folder.path, settings, self._listener)
        assert config.model is not None
        model = reopened(config.model, dense.adapter.checkpoint(folder.path, SPARSE))
        search = SearchRun(replace(config, model=model), folder, self._listener, teacher=dense.adapter.module)
        networks, figures = search.shipped()
        sparse = networks.pop("dense")
        first = replace(sparse, metrics=metrics)  # its costs are the same
        named: dict[str, Stage] = {"dense": first, "sparse": sparse, **networks}
        policy = Policy.load(folder.path / "policy.json")
        channels = {"before": dict(policy.model.layers), "after": dict(policy.keep)}
        return search.deployment.finish(named, figures, channels=channels)

    def _trained(self, config: SlimConfig) -> SlimConfig:
        """Train the architecture from nothing, once; return the configuration with its weights."""
        assert config.architecture is not None
        assert config.data is not None
        adapter = build_adapter(
            config.architecture,
            data=config.data,
            image_size=config.imgsz,
            device=choose_device(config.device),
            seed=config.seed,
        )
        tuning = Tuning(epochs=config.train_epochs, lr_scale=1.0, batch=config.batch, seed=config.seed)
        self._listener.stage(stages.TRAIN)
        weights = train_from_nothing(adapter, self._folder.path / "dense", tuning=tuning, listener=self._listener)
        return replace(config, model=weights, architecture=None)

    def _dense(self) -> Network:
        return open_network(self._config, criterion="l1", listener=self._listener)
