"""The honest alternatives to pruning: train on, train a smaller network of the family, use a lower image size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from autoprune.config import IMAGE_MULTIPLE, CompareConfig
from autoprune.metrics import is_measured, latency_target, spec_of
from autoprune.models import open_adapter
from autoprune.models._base import Adapter
from autoprune.results import Metrics
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from autoprune.workflows.latency import meter_of, settings_of
from autoprune.workflows.network import static_costs
from autoprune.workflows.run import PruningRun
from autoprune.workflows.tuning import Tuned, Tuning, tune

Named = tuple[str, Tuned]

WIDTH_STEPS = 7
"""Bisections of the width multiple: to a hundredth."""


class References:
    """Trains and measures the alternatives; each is journalled.

    Args:
        run: the dense network.
        config: the comparison.
        limits: what each metric may be at most.
    """

    def __init__(self, run: PruningRun, config: CompareConfig, limits: Mapping[str, float]) -> None:
        self._run, self._config, self._limits = run, config, limits

    def all(self) -> dict[str, Tuned]:
        """Return the references by name; one that cannot meet the budget is left out, which is reported."""
        makers: dict[str, Callable[[str], Named | None]] = {
            "dense, trained on": self._dense,
            "same family, smaller": self._smaller,
            "dense, lower image size": self._lower,
        }
        found = {}
        for name, make in makers.items():

            def made(name: str = name, make: Callable[[str], Named | None] = make) -> dict[str, Any] | None:
                made = make(name)
                return {"row": None if made is None else {"name": made[0], **made[1].to_json()}}

            row = self._run.folder.once("reference", made, name)["row"]
            if row is not None:
                found[row["name"]] = Tuned.from_json(row)
            else:
                budget = ", ".join(self._config.budget)
                self._run.listener.note(f"There is no row '{name}': no such network meets {budget}.")
        return found

    # -- the alternatives --------------------------------------------------------------------------

    def _dense(self, name: str) -> Named:
        adapter = self._run.network.adapter
        costs = self._costs(adapter, adapter.module)
        before = adapter.validate(adapter.module)
        return name, Tuned(before, self._trained(adapter, adapter.module, "dense"), costs)

    def _smaller(self, name: str) -> Named | None:
        """Train the widest network of the family that meets the budget, from nothing."""
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
        module, costs = best
        return f"{name} (width × {low:.2f})", Tuned(None, self._trained(adapter, module, "smaller"), costs)

    def _lower(self, name: str) -> Named | None:
        """Use the dense network at the largest lower image size that meets the budget."""
        dense = self._run.network.adapter
        for longest in range(dense.image_size.longest - IMAGE_MULTIPLE, 0, -IMAGE_MULTIPLE) if dense.resizable else ():
            config, size = self._config, dense.image_size.scaled(longest, IMAGE_MULTIPLE)
            assert config.model is not None
            adapter = open_adapter(
                config.model, data=config.data, image_size=size, device=dense.device, trust=config.trust_checkpoint
            )
            costs = self._costs(adapter, adapter.module)
            if self._meets(costs):
                before = adapter.validate(adapter.module)
                after = self._trained(adapter, adapter.module, f"lower-{size}")
                return f"{name} ({size} px)", Tuned(before, after, costs)
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

    def _trained(self, adapter: Adapter, module: nn.Module, name: str) -> Metrics | None:
        config = self._config
        if not config.finetune_epochs:
            return None
        path = self._run.folder.path / "references" / name
        path.mkdir(parents=True, exist_ok=True)
        self._run.listener.note(f"Reference: {name}")
        tuning = Tuning.of(config, adapter.module)  # alike for all: if there is a teacher, these have it too
        trained = tune(adapter, module, path, tuning=tuning, notes={}, listener=self._run.listener)
        return adapter.validate(trained)
