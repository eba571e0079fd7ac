"""Latency within a run: the dense reference, the predictor, and the measurements that decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.budget import format_amount
from autoprune.commands.folder import RunFolder
from autoprune.commands.network import Network, choose_device
from autoprune.commands.screen import Screen
from autoprune.config import BudgetedConfig, ProfileConfig
from autoprune.constraint import Ceiling, Constraint
from autoprune.cost.latency import LatencyCost, LatencyError, Sample, latency_predictor
from autoprune.cost.meter import SAMPLE_EFFORT, LatencyMeter
from autoprune.cost.samples import spread_allocations
from autoprune.cost.timing import Effort, PairedTiming, Timing
from autoprune.runtimes.settings import fingerprint, runtime_settings
from autoprune.space import Allocation

MARGIN = 0.03
"""Candidates are held to this share below the latency budget: what a measurement of 40 pairs may be off."""

FITTED, HELD_OUT = 10, 10
"""Whole networks that the predictor is fitted to, and that its error is told from."""

STAGE_EFFORT = Effort(runs=80, max_runs=240)
"""What ends up in the summary is measured twice as long as a candidate …"""

STAGE_REPEATS, MOST_REPEATS = 3, 9
"""… and so often; the median of the ratios counts. Up to the second number where the machine is disturbed."""

CALIBRATION_IMAGES = 16
"""Training images that an int8 network's ranges are found on."""

DOUBT = 0.05
"""A measurement whose ratio may be off by more than this share is taken again."""


class Bench:
    """Measures and predicts latency for one run; everything is journalled by the meter.

    Attributes:
        meter: what measures.
    """

    def __init__(
        self, network: Network, config: BudgetedConfig | ProfileConfig, folder: RunFolder, screen: Screen
    ) -> None:
        adapter = network.adapter
        self._network, self._seed, self._screen = network, config.seed, screen
        settings = runtime_settings(
            choose_device(config.device),
            image_size=adapter.image_size,
            runtime=config.runtime,
            precision=config.precision,
            threads=config.threads,
            batch=config.runtime_batch,
            with_nms=config.with_nms,
        )
        self.meter = LatencyMeter(
            adapter.deployable(adapter.module), settings, recorder=folder.journal, calibration=self._calibration
        )
        self._predictor: LatencyCost | None = None
        self._error: LatencyError | None = None

    def _calibration(self) -> Sequence[torch.Tensor]:
        return self._network.adapter.calibration(images=CALIBRATION_IMAGES, batch=1, seed=self._seed)

    # -- measured ----------------------------------------------------------------------------------

    def stage(self, name: str, module: nn.Module) -> dict[str, Any]:
        """Return a stage's latency as the summary has it; the stage ``dense`` is the reference itself."""
        if name == "dense":
            return self._described(self.meter.reference)
        timing = self._typical(lambda: self._network.adapter.deployable(module), ["stage", name])
        if timing.note is not None:
            self._screen.warn(f"Measuring the {name} network: {timing.note}.")
        return self._described(self.meter.milliseconds(timing))

    def confirm(self, allocation: Allocation) -> float:
        """Return a candidate's median in milliseconds, measured as thoroughly as a stage."""
        timing = self._typical(lambda: self._built(allocation), ["confirm", *allocation])
        return timing.ratio * self.meter.reference.median

    def measure(self, allocation: Allocation) -> float:
        """Return a candidate's median in milliseconds of the dense reference."""
        return self._sample(allocation, attempts=2).timing.ratio * self.meter.reference.median

    def environment(self) -> Mapping[str, Any]:
        """Return what the measurements depend on."""
        return fingerprint(self.meter.settings)

    def _described(self, timing: Timing) -> dict[str, Any]:
        settings = self.meter.settings
        return {
            **timing.to_json(),
            "device": settings.device,
            "runtime": settings.runtime.value,
            "precision": settings.precision.value,
            "threads": settings.threads,
            "batch": settings.batch,
        }

    def _sample(self, allocation: Allocation, *, attempts: int = 1) -> Sample:
        effort = SAMPLE_EFFORT if attempts == 1 else None
        timing = self._surest(lambda: self._built(allocation), [*allocation, attempts], effort, attempts=attempts)
        return Sample(allocation, timing)

    def _built(self, allocation: Allocation) -> nn.Module:
        return self._network.adapter.deployable(self._network.pruner.materialise(allocation))

    def _typical(self, build: Callable[[], nn.Module], key: list[Any]) -> PairedTiming:
        """Measure several times, as thoroughly as what ends up in the summary."""

        def measure(repeat: int) -> PairedTiming:
            return self.meter.measure(build, [*key, "repeat", repeat], effort=STAGE_EFFORT)

        return typical(measure, self._doubt)

    def _surest(
        self, build: Callable[[], nn.Module], key: list[Any], effort: Effort | None, *, attempts: int
    ) -> PairedTiming:
        """Measure, again where the machine was disturbed, and return the measurement that may be off least.

        Where another process takes the memory's bandwidth, a wide network loses more than a narrow one and the ratio is
        off; that shows in the dense network's own time.
        """
        timings: list[PairedTiming] = []
        while len(timings) < attempts and (not timings or self._doubt(timings[-1]) > DOUBT):
            attempt = [] if not timings else ["attempt", len(timings)]
            timings.append(self.meter.measure(build, [*key, *attempt], effort=effort))
        return min(timings, key=self._doubt)

    def _doubt(self, timing: PairedTiming) -> float:
        """Return how far a ratio may be off: its spread, and a share of the dense network's drift."""
        drift = abs(timing.dense.median / self.meter.reference.median - 1)
        return timing.spread + 0.3 * drift

    # -- predicted ---------------------------------------------------------------------------------

    def target(self, limit: float) -> float:
        """Return what candidates are held to for a latency budget, in milliseconds."""
        return limit * (1 - MARGIN)

    def predictor(self, limit: float) -> LatencyCost:
        """Return a predictor fitted to whole networks around a latency limit in milliseconds."""
        if self._predictor is None:
            space, focus = self._network.space, limit / self.meter.reference.median
            self._screen.note("Measuring single layers (kept for the next search on this device) …")
            tables = latency_predictor(space, self.meter)
            fitted, held_out = self._chosen(tables, focus)
            self._predictor = tables.fit(fitted, focus=focus)
            self._error = self._predictor.error(held_out)
            self._screen.note(
                f"Latency is predicted with a median error of {self._error.median_abs_rel:.1%} "
                f"(p90 {self._error.p90_abs_rel:.1%}, Spearman {self._error.spearman:.2f}, "
                f"{self._error.n} networks that it was not fitted to)."
            )
        return self._predictor

    def predicted(self, allocation: Allocation) -> float:
        """Return a candidate's predicted milliseconds; ``predictor`` comes first."""
        assert self._predictor is not None
        return float(self._predictor(np.array(allocation)))

    def prediction_error(self) -> dict[str, float | int] | None:
        """Return the predictor's error on networks that it was not fitted to, or None where there is no predictor."""
        return self._error.to_json() if self._error is not None else None

    def reachable(self) -> str:
        """Return the measured latency with every unit at its lower bound, as people read it."""
        return format_amount("latency", self.measure(self._lowest))

    @cached_property
    def _lowest(self) -> Allocation:
        return self._network.space.allocation(self._network.space.lower)

    def _chosen(self, tables: LatencyCost, focus: float) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """Measure networks to fit to, the narrowest among them, and as many others, spread around the focus."""
        allocations = spread_allocations(
            self._network.space, tables, number=FITTED + HELD_OUT, seed=self._seed, around=focus
        )
        samples = []
        with self._screen.progress("Latency", len(allocations)) as advance:
            for done, allocation in enumerate(allocations, start=1):
                samples.append(self._sample(allocation))
                advance(done)
        pairs = [samples[index : index + 2] for index in range(0, len(samples), 2)]  # one near the focus, one anywhere
        fitted, held_out = (list(chain.from_iterable(pairs[start::2])) for start in (0, 1))
        return [self._sample(self._lowest), *fitted], held_out


def typical(measure: Callable[[int], PairedTiming], doubt: Callable[[PairedTiming], float]) -> PairedTiming:
    """Measure several times and return the measurement with the median ratio: one alone may meet a bad moment.

    Measurements that the machine disturbed do not count, as long as there is hope for others.

    Args:
        measure: takes the number of the measurement, from 0.
        doubt: by what share a measurement may be off.
    """
    timings: list[PairedTiming] = []
    while len(timings) < MOST_REPEATS and sum(doubt(timing) <= DOUBT for timing in timings) < STAGE_REPEATS:
        timings.append(measure(len(timings)))
    surest = sorted(timings, key=doubt)[:STAGE_REPEATS]
    return sorted(surest, key=lambda timing: timing.ratio)[len(surest) // 2]


def rescaled(constraint: Constraint, factor: float, target: float) -> Constraint:
    """Return the constraint with the latency limit in terms of a predictor that is off by ``factor``."""
    ceilings: Sequence[Ceiling] = [
        Ceiling(ceiling.cost, target * factor * 0.995) if ceiling.cost.metric == "latency" else ceiling
        for ceiling in constraint.ceilings
    ]
    return Constraint(constraint.space, ceilings)
