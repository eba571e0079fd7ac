"""``autoprune slim``: network slimming in one run: (train →) sparsify → prune → fine-tune."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoprune.config import SlimConfig
from autoprune.models import build_adapter
from autoprune.policy import Policy
from autoprune.report import slimmed_channels
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.network import Network, choose_device, open_network, pin_threads
from autoprune.workflows.screen import Screen
from autoprune.workflows.search import SearchRun, with_defaults
from autoprune.workflows.sparsity import SPARSE, SparsitySettings, sparsify
from autoprune.workflows.stages import Stage, validated
from autoprune.workflows.tuning import Tuning, train_from_nothing


def run(config: SlimConfig, screen: Screen) -> int:
    """Train where there are no weights yet, sparsify, search, fine-tune and measure.

    Returns:
        0 where every limit is held as measured, 3 where the final network misses one.
    """
    with RunFolder.open("slim", config) as folder:
        return _Pipeline(config, folder, screen).execute()


class _Pipeline:
    """One run, stage by stage."""

    def __init__(self, config: SlimConfig, folder: RunFolder, screen: Screen) -> None:
        self._folder, self._screen = folder, screen
        pin_threads(config.threads, folder)
        self._config = with_defaults(config if config.architecture is None else self._trained(config))

    def execute(self) -> int:
        """Run all stages and return the exit code."""
        config, folder = self._config, self._folder
        dense = self._dense()
        accuracy = validated("before sparsity", dense.adapter.module, dense.adapter, folder)
        settings = SparsitySettings.of(
            config, epochs=config.sparsity_epochs, lr=config.sparsity_lr, batch=config.batch, seed=config.seed
        )
        sparsify(dense, folder.path, settings, self._screen)
        search = SearchRun(
            replace(config, model=folder.path / SPARSE), folder, self._screen, teacher=dense.adapter.module,
        )  # fmt: skip
        stages, figures = search.shipped()
        sparse = stages.pop("dense")
        first = replace(sparse, accuracy=accuracy)  # its costs are the same
        _draw(search.run.network, folder.path)
        named: dict[str, Stage] = {"dense": first, "sparse": sparse, **stages}
        return search.deployment.finish(named, figures)

    def _trained(self, config: SlimConfig) -> SlimConfig:
        """Train the architecture from nothing, once; return the configuration with its weights."""
        assert config.architecture is not None
        assert config.data is not None
        adapter = build_adapter(
            config.architecture, data=config.data, image_size=config.imgsz, device=choose_device(config.device),
            seed=config.seed,
        )  # fmt: skip
        tuning = Tuning(epochs=config.train_epochs, lr_scale=1.0, batch=config.batch, seed=config.seed)
        weights = train_from_nothing(adapter, self._folder.path / "dense", tuning=tuning, screen=self._screen)
        return replace(config, model=weights, architecture=None)

    def _dense(self) -> Network:
        config = self._config
        assert config.model is not None
        return open_network(
            config.model, data=config.data, image_size=config.imgsz, device=config.device,
            trust=config.trust_checkpoint, criterion="l1", screen=self._screen,
        )  # fmt: skip


def _draw(network: Network, folder: Path) -> None:
    """Draw how many channels each unit has and keeps."""
    policy = Policy.load(folder / "policy.json")
    slimmed_channels(
        policy.model.layers, policy.keep, folder / "channels.png",
        title=f"{network.adapter.name}, {', '.join(policy.budget)}",
    )  # fmt: skip
