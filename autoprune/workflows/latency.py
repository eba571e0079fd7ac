"""Latency and energy within a run: the dense reference, the predictor, and the measurements that decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from autoprune.choices import Precision
from autoprune.config import BudgetedConfig, ProfileConfig
from autoprune.errors import ConfigError
from autoprune.latency.layers import layer_milliseconds
from autoprune.latency.meter import Build, calm
from autoprune.latency.predictor import LatencyCost, Sample, latency_predictor, spread_allocations
from autoprune.latency.timing import MeasurementConfig, PairedTiming, Timing
from autoprune.listener import Listener
from autoprune.metrics import format_amount, latency_target, spec_of
from autoprune.runtimes.load import measure_load
from autoprune.runtimes.settings import fingerprint
from autoprune.structure.space import Allocation
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.measuring import meter_of, settings_of
from autoprune.workflows.network import Network, warn_of_slow_int8
from autoprune.workflows.noise import MOST_REPEATS, MOST_UNCERTAINTY, REPEATS, NoiseModel, least_disturbed, typical
from autoprune.workflows.prediction import Prediction

EVEN, NEAR = 16, 8
"""Whole networks that the predictor is fitted to and judged by: spread evenly, and around the budget.

On yolov8n at 320 px, 12 of them predict 38 others with a median error of 2% on OpenVINO and on ONNX Runtime; fitted to
38, the error is the same.
"""

FOCUS_STEP = 0.05
"""Budgets within such a share of the dense latency share their networks, and so what is known of them."""

STAGE_MEASUREMENT = MeasurementConfig(runs=80, max_runs=240)
"""What ends up in the summary is measured twice as long as a candidate."""

SAMPLE_ATTEMPTS = 3
"""How often a network for the predictor is measured at most, if other processes disturb it."""

CALIBRATION_IMAGES = 1
"""Training images that an int8 network's ranges are found on: they decide what it computes, not how long that takes.

With 4 of them, quantising yolov8n for ONNX Runtime takes 1.2 s of CPU time in place of 1.0.
"""


MeasureOne: TypeAlias = Callable[[Allocation, Build, Build | None], PairedTiming]
"""Measures an allocation; takes what builds its network, and what builds the next one if there is one."""


class LatencyEstimator:
    """Measures and predicts one latency, or one energy, for one run; everything is journalled by the meter.

    Of an energy, every figure is in millijoules in place of milliseconds.

    Args:
        network: the dense network.
        config: how it runs.
        folder: the run's.
        listener: hears the progress.
        metric: ``latency`` or ``energy``, with ``@<target>`` for another runtime or device than the configuration's.

    Attributes:
        metric: the budget's name of what it measures.
        meter: what measures.

    Raises:
        DeviceError: the device or the runtime is not here, or nothing counts energy there.
    """

    def __init__(
        self,
        network: Network,
        config: BudgetedConfig | ProfileConfig,
        folder: RunFolder,
        listener: Listener,
        *,
        metric: str = "latency",
    ) -> None:
        adapter = network.adapter
        self.metric = metric
        self._statistic = latency_target(metric)[1]
        self._label = spec_of(metric).label.capitalize()
        self._network, self._seed, self._listener = network, config.seed, listener
        self._with_nms = config.with_nms
        settings = settings_of(metric, config, adapter.input_shape)
        if settings.precision is Precision.INT8 and settings.device == "cpu":
            warn_of_slow_int8(listener)
        self.meter = meter_of(metric)(
            adapter.deployable(adapter.module, with_nms=config.with_nms),
            settings,
            recorder=folder.journal,
            kind=metric,
            calibration=self._calibration,
        )
        if counter := self.meter.counter:
            listener.note(f"Energy is what {counter} counts meanwhile; idle power and other processes are in it.")
        if settings.command is not None:
            if self._statistic != "median":
                raise ConfigError(f"{metric} needs the times of single runs, which `runtime_command` does not print")
            listener.note(
                f"Latency is what {settings.command.text} prints: run 3 to 12 times for each network, alternating with "
                "the dense one."
            )
        self._predictions: dict[float | None, Prediction] = {}
        self._learnt: list[Sample] = []
        self._confirmed: dict[Allocation, PairedTiming] = {}
        self._taken = self._disturbed = 0

    def _calibration(self) -> Sequence[torch.Tensor]:
        return self._network.adapter.calibration(images=CALIBRATION_IMAGES, batch=1, seed=self._seed)

    # -- measured ----------------------------------------------------------------------------------

    def stage(
        self, name: str, module: nn.Module, allocation: Allocation | None = None, limit: float | None = None
    ) -> dict[str, Any]:
        """Return a stage's latency as the summary has it; the stage ``dense`` is the reference itself.

        Where the allocation's time is known already, the network runs paired with one of the same layers, not with the
        dense one: then nothing is left of what the machine did in between.

        Args:
            name: of the stage.
            module: its network.
            allocation: its kept channels per unit; None if it is no pruned dense network.
            limit: milliseconds that it must hold, if any; a miss is measured more often before it is believed.
        """
        if name == "dense":
            return self._described(self.meter.reference)
        known = self._confirmed.get(allocation) if allocation is not None else None
        if allocation is None or known is None:
            timing = self._typical(lambda: self._deployed(module), ["stage", name])
            if allocation is not None:
                self._confirmed[allocation] = timing
        else:
            timing = self._typical_paired(module, ["stage", name], allocation, known, limit)
        if timing.note is not None:
            self._listener.warn(f"Measuring the {name} network: {timing.note}.")
        return self._described(self.meter.milliseconds(timing))

    def confirm(self, allocation: Allocation) -> float:
        """Return a candidate's median in milliseconds, measured as thoroughly as a stage."""
        timing = self._typical(lambda: self._built(allocation), ["confirm", *allocation])
        self._confirmed[allocation] = timing
        return self._milliseconds(timing)

    def measure(self, allocation: Allocation) -> float:
        """Return a candidate's median in milliseconds of the dense reference; the predictor may learn from it."""
        timing = self._least_disturbed(lambda: self._built(allocation), [*allocation, 2], attempts=2)
        self._learnt.append(Sample(allocation, timing))
        return self._milliseconds(timing)

    def _milliseconds(self, timing: PairedTiming) -> float:
        """Return what a limit compares: the ratio of the dense median, or the candidate's own 95th percentile.

        A percentile of a candidate is its own, in the unit of the dense reference. It is predicted as if it were the
        same multiple of the median as the dense network's, and the difference is then taken out where it is measured.
        """
        if self._statistic == "median":
            return timing.ratio * self.meter.reference.median
        return float(getattr(self.meter.milliseconds(timing), self._statistic))

    @property
    def _dense(self) -> float:
        """The dense network's milliseconds that limits are shares of."""
        return float(getattr(self.meter.reference, self._statistic))

    def environment(self) -> Mapping[str, Any]:
        """Return what the measurements depend on."""
        return {**fingerprint(self.meter.settings), "under_load": self.under_load}

    @property
    def under_load(self) -> bool:
        """Whether other processes disturbed the dense network's reference, or a quarter of the other measurements."""
        return self.meter.reference.under_load or self._disturbed > max(1, self._taken / 4)

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

    def _built(self, allocation: Allocation) -> nn.Module:
        return self._deployed(self._network.pruner.materialise(allocation))

    def _deployed(self, module: nn.Module) -> nn.Module:
        return self._network.adapter.deployable(module, with_nms=self._with_nms)

    def _typical(self, build: Build, key: list[Any]) -> PairedTiming:
        """Measure paired with the dense network, several times."""
        with self._listener.progress("Timing", MOST_REPEATS) as advance:

            def measure(repeat: int) -> PairedTiming:
                again = build if repeat + 1 < REPEATS else None
                timing = self._measured(build, [*key, "repeat", repeat], config=STAGE_MEASUREMENT, following=again)
                advance(repeat + 1)
                return timing

            return typical(measure, self._noise.uncertainty, self._milliseconds)

    def _typical_paired(
        self, module: nn.Module, key: list[Any], allocation: Allocation, known: PairedTiming, limit: float | None
    ) -> PairedTiming:
        """Measure paired with a network of the same layers whose time is known, several times."""

        def measure(repeat: int) -> PairedTiming:
            timing = self.meter.measure(
                lambda: self._deployed(module),
                [*key, "beside", repeat],
                config=STAGE_MEASUREMENT,
                paired_with=lambda: self._built(allocation),
            )
            more = "beyond the limit, measured more often" if repeat >= MOST_REPEATS else ""
            advance(min(repeat + 1, MOST_REPEATS), more)
            return timing.chained(known)

        with self._listener.progress("Timing", MOST_REPEATS) as advance:
            return typical(measure, lambda timing: timing.spread, self._milliseconds, limit)

    def _least_disturbed(
        self, build: Build, key: list[Any], *, attempts: int, following: Build | None = None
    ) -> PairedTiming:
        """Measure, again if the machine was disturbed, and return the measurement that may be off least.

        Where another process takes the memory's bandwidth, a wide network loses more than a narrow one and the ratio is
        off; that shows in the dense network's own time.
        """
        with self._listener.progress("Timing", attempts) as advance:

            def measure(attempt: int) -> PairedTiming:
                timing = self._measured(build, [*key, *(["attempt", attempt] if attempt else [])], following=following)
                advance(attempt + 1)
                return timing

            return least_disturbed(measure, self._noise.uncertainty, attempts)

    def _measured(
        self, build: Build, key: list[Any], *, config: MeasurementConfig | None = None, following: Build | None = None
    ) -> PairedTiming:
        timing = self.meter.measure(build, key, config=config, following=following)
        self._noise.learn(timing)
        before = self.under_load
        self._taken, self._disturbed = self._taken + 1, self._disturbed + timing.under_load
        if self.under_load and not before:
            self._listener.warn(
                f"{measure_load()}: figures of {self._label.lower()} that are measured under load are marked so from "
                "here on."
            )
        return timing

    @cached_property
    def _noise(self) -> NoiseModel:
        return NoiseModel(self.meter.reference.median)

    # -- predicted ---------------------------------------------------------------------------------

    def prediction(self, limit: float | None = None) -> Prediction:
        """Return a predictor fitted to whole networks, more of them around a latency limit in milliseconds if given."""
        focus = None
        if limit is not None:
            focus = round(limit / self._dense / FOCUS_STEP) * FOCUS_STEP
        if focus not in self._predictions:
            self._predictions[focus] = self._predicted(focus)
        return self._predictions[focus]

    def predictor(self) -> dict[str, Any] | None:
        """Return the last predictor for reports, see `Prediction.to_json`, or None if there is none."""
        found = [prediction for prediction in self._predictions.values() if prediction.error is not None]
        return found[-1].to_json(self._dense) if found else None

    def layers(self, allocation: Allocation) -> list[dict[str, Any]] | None:
        """Return what each layer takes of the dense and of another network's predicted latency, or None if unknown."""
        found = [prediction.cost for prediction in self._predictions.values() if prediction.error is not None]
        if not found:
            return None
        space = self._network.space
        dense, pruned = (layer_milliseconds(found[-1], counts) for counts in (space.dense, np.array(allocation)))
        return [{"layer": name, "dense": dense[name], "pruned": pruned[name]} for name in dense]

    def prediction_error(self) -> dict[str, float | int] | None:
        """Return the predictor's error on networks that it was not fitted to, or None if there is no predictor."""
        errors = [prediction.error for prediction in self._predictions.values() if prediction.error is not None]
        return errors[-1].to_json() if errors else None

    def corrected(self, cost: LatencyCost) -> LatencyCost:
        """Return a predictor fitted to all candidates that were measured, too."""
        known = {sample.allocation for sample in cost.samples}
        return cost.correct([sample for sample in self._learnt if sample.allocation not in known])

    def reachable(self) -> str:
        """Return what is measured with every unit at its lower bound, as text."""
        return format_amount(self.metric, self.measure(self._lowest))

    @cached_property
    def _lowest(self) -> Allocation:
        return self._network.space.allocation(self._network.space.lower)

    def _predicted(self, focus: float | None) -> Prediction:
        """Measure networks and fit to them: every other one tells the error, then all of them count."""
        space = self._network.space
        if self.meter.layers_alone:
            self._listener.note("Measuring single layers (kept for the next search on this device) …")
        plain = latency_predictor(space, self.meter, self.metric)
        flops = self._network.static_costs["flops"]
        (lowest,) = self._samples([self._lowest])
        samples = self._samples(spread_allocations(space, flops, number=EVEN, seed=0))
        if focus is not None:
            rough = plain.fit([lowest, *samples], focus=focus)
            samples += self._samples(spread_allocations(space, rough, number=NEAR, seed=1, around=focus))
        fitted, held_out = (lowest, *samples[::2]), tuple(samples[1::2])
        error = plain.fit(fitted, focus=focus).error(held_out)
        disturbed = sum(self._uncertainty(sample.timing) > MOST_UNCERTAINTY for sample in held_out)
        remark = f", {disturbed} of them disturbed while they were measured" if disturbed else ""
        where = f" on {self.meter.settings.runtime.value}" if self.metric != "latency" else ""
        self._listener.note(
            f"{self._label}{where} is predicted with a median error of {error.median_abs_rel:.1%} "
            f"(p90 {error.p90_abs_rel:.1%}, Spearman {error.spearman:.2f}, "
            f"{error.n} networks that it was not fitted to{remark})."
        )
        return Prediction(plain.fit([lowest, *samples], focus=focus), fitted, held_out, error)

    def _samples(self, allocations: Sequence[Allocation]) -> list[Sample]:
        return self._each(self._sample, allocations, self._label)

    def fresh(self, allocations: Sequence[Allocation]) -> list[Sample]:
        """Return networks measured in this run, whatever earlier ones have kept."""
        return self._each(self._fresh, allocations, "Check")

    def _each(self, measure: MeasureOne, allocations: Sequence[Allocation], label: str) -> list[Sample]:
        """Measure networks in order; each measurement knows which network follows."""
        builds = [partial(self._built, allocation) for allocation in allocations]
        samples = []
        with self._listener.progress(label, len(allocations)) as advance:
            for allocation, build, following in zip(allocations, builds, [*builds[1:], None], strict=True):
                samples.append(Sample(allocation, measure(allocation, build, following)))
                advance(len(samples))
        return samples

    def _sample(self, allocation: Allocation, build: Build, following: Build | None) -> PairedTiming:
        """Measure a network for the predictor, again if it was disturbed: its error would be that of the machine."""

        def measure(attempt: int) -> PairedTiming:
            return self.meter.sample(build, allocation, attempt=attempt, following=following)

        return least_disturbed(measure, self._uncertainty, SAMPLE_ATTEMPTS)

    def _fresh(self, allocation: Allocation, build: Build, following: Build | None) -> PairedTiming:
        return self._least_disturbed(build, ["fresh", *allocation], attempts=2, following=following)

    def _uncertainty(self, timing: PairedTiming) -> float:
        """Return by what share a sample may be off; a calm one may be of an earlier run on a faster or slower day."""
        return timing.spread if calm(timing) else self._noise.uncertainty(timing)
