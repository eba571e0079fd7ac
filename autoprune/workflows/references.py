"""What needs no pruning: train on, train a smaller network of the family, use a lower image size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.config import IMAGE_MULTIPLE, CompareConfig
from autoprune.io.files import make_folder
from autoprune.metrics import is_measured, latency_target, spec_of
from autoprune.models import open_adapter
from autoprune.models._base import Adapter
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from autoprune.workflows.measuring import meter_of, settings_of
from autoprune.workflows.network import static_costs
from autoprune.workflows.run import PruningRun
from autoprune.workflows.tuning import Tuned, Tuning, tune
from autoprune.workflows.tuning_workers import TuningJob

WIDTH_STEPS = 7
"""Bisections of the width multiple: to a hundredth."""


@dataclass(frozen=True)
class _Reference:
    """An alternative before it is trained.

    Attributes:
        row: its name in the table.
        folder: name of its folder.
        adapter: its own, or that of the run.
        module: the network.
        costs: by metric.
        learnt: whether it has learnt something, so that its metrics before the training mean something.
    """

    row: str
    folder: str
    adapter: Adapter
    module: nn.Module
    costs: Mapping[str, float]
    learnt: bool = True


class References:
    """Trains and measures the alternatives; each is journalled.

    Args:
        run: the dense network.
        config: the comparison.
        limits: what each metric may be at most.
    """

    def __init__(self, run: PruningRun, config: CompareConfig, limits: Mapping[str, float]) -> None:
        self._run, self._config, self._limits = run, config, limits

    def jobs(self) -> Sequence[TuningJob]:
        """Return the fine-tunes that are missing, for workers to do before `all` asks for them."""
        if not self._config.finetune_epochs:
            return []
        return [self._job(one) for one in self._missing.values() if one is not None]

    def all(self) -> dict[str, Tuned]:
        """Return the references by name; one that cannot meet the budget is left out, which is reported."""
        found = {}
        for name in self._makers:

            def made(name: str = name) -> dict[str, Any]:
                one = self._missing[name]
                return {"row": None if one is None else {"name": one.row, **self._tuned(one).to_json()}}

            row = self._run.folder.once("reference", made, name)["row"]
            if row is not None:
                found[row["name"]] = Tuned.from_json(row)
            else:
                budget = ", ".join(self._config.budget)
                self._run.listener.note(f"There is no row '{name}': no such network meets {budget}.")
        return found

    # -- the alternatives --------------------------------------------------------------------------

    @property
    def _makers(self) -> Mapping[str, Callable[[str], _Reference | None]]:
        return {
            "dense, trained on": self._dense,
            "same family, smaller": self._smaller,
            "dense, lower image size": self._lower,
        }

    @cached_property
    def _missing(self) -> Mapping[str, _Reference | None]:
        """What the journal does not have, untrained; None for one that cannot meet the budget."""
        journal = self._run.folder.journal
        return {name: make(name) for name, make in self._makers.items() if journal.lookup("reference", name) is None}

    def _dense(self, name: str) -> _Reference:
        adapter = self._run.network.adapter
        return _Reference(name, "dense", adapter, adapter.module, self._costs(adapter, adapter.module))

    def _smaller(self, name: str) -> _Reference | None:
        """Return the widest network of the family that meets the budget, which has learnt nothing."""
        adapter = self._run.network.adapter
        low, high = 0.0, 1.0
        best: tuple[nn.Module, dict[str, float]] | None = None
        for _ in range(WIDTH_STEPS):
            width = (low + high) / 2
            torch.manual_seed(self._config.seed)
            module = adapter.scaled(width)
            if module is None:
                return None
            costs = self._costs(adapter, module)
            if self._meets(costs):
                low, best = width, (module, costs)
            else:
                high = width
        if best is None:
            return None
        return _Reference(f"{name} (width × {low:.2f})", "smaller", adapter, *best, learnt=False)

    def _lower(self, name: str) -> _Reference | None:
        """Return the dense network at the largest lower image size that meets the budget."""
        dense = self._run.network.adapter
        for longest in range(dense.image_size.longest - IMAGE_MULTIPLE, 0, -IMAGE_MULTIPLE) if dense.resizable else ():
            config, size = self._config, dense.image_size.scaled(longest, IMAGE_MULTIPLE)
            assert config.model is not None
            adapter = open_adapter(
                config.model, data=config.data, image_size=size, device=dense.device, trust=config.trust_checkpoint
            )
            costs = self._costs(adapter, adapter.module)
            if self._meets(costs):
                return _Reference(f"{name} ({size} px)", f"lower-{size}", adapter, adapter.module, costs)
        return None

    # -- what they share ---------------------------------------------------------------------------

    def _meets(self, costs: Mapping[str, float]) -> bool:
        return all(costs[metric] <= most for metric, most in self._limits.items())

    def _costs(self, adapter: Adapter, module: nn.Module) -> dict[str, float]:
        """Return a network's parameters, and what it costs under every metric that is limited."""
        costs = {"params": float(sum(parameter.numel() for parameter in module.parameters()))}
        if any(spec_of(metric).cost for metric in self._limits):
            graph = analyse(module, adapter.example(2), free_outputs=adapter.free_outputs)
            space = Space(graph)
            known = static_costs(adapter, module, graph, space)
            costs |= {metric: float(known[metric](space.dense)) for metric in self._limits if metric in known}
        for metric in filter(is_measured, self._limits):
            statistic = latency_target(metric)[1]
            if adapter is self._run.network.adapter:
                name = f"reference of {costs['params']} parameters"
                costs[metric] = self._run.estimators[metric].stage(name, module)[statistic]
            else:  # another input: it cannot run paired with the dense network
                settings = settings_of(metric, self._config, adapter.input_shape)
                deployed = adapter.deployable(module, with_nms=settings.with_nms)
                costs[metric] = getattr(meter_of(metric)(deployed, settings).reference, statistic)
        return costs

    def _tuned(self, one: _Reference) -> Tuned:
        adapter = one.adapter
        before = adapter.validate(one.module) if one.learnt else None
        if not self._config.finetune_epochs:
            return Tuned(before, None, one.costs)
        self._run.listener.note(f"Reference: {one.folder}")
        tuning, path = self._tuning(one), self._place(one)
        trained = tune(adapter, one.module, path, tuning=tuning, notes={}, listener=self._run.listener)
        return Tuned(before, adapter.validate(trained), one.costs)

    def _job(self, one: _Reference) -> TuningJob:
        return TuningJob(lambda: one.module, self._place(one), self._tuning(one), {}, adapter=one.adapter)

    def _tuning(self, one: _Reference) -> Tuning:
        return Tuning.of(self._config, one.adapter.module)  # alike for all: if there is a teacher, these have it too

    def _place(self, one: _Reference) -> Path:
        """Return the folder of a reference, which exists then."""
        return make_folder(self._run.folder.path / "references" / one.folder)
