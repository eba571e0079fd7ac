"""Predicted latency of any allocation: layer tables, corrected by whole networks that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from autoprune.costs.static import Floats
from autoprune.latency.deployed import deployed_layers
from autoprune.latency.features import Features, LayerFeatures
from autoprune.latency.fitting import simplex_fit, spearman
from autoprune.latency.meter import LatencyMeter
from autoprune.latency.tables import Interpolation, plan_grids
from autoprune.latency.timing import PairedTiming, Timing
from autoprune.structure.constraint import Cost
from autoprune.structure.space import Allocation, Counts, Space

_LEAST_SPREAD = 0.02  # what a ratio cannot be known better than, whatever its own spread says
_DRIFT = 0.3  # how much of the dense network's own slow-down in a pair may be an error of the ratio
_FOCUS_WIDTH = 0.1
_FOCUS_FLOOR = 0.15


@dataclass(frozen=True)
class Sample:
    """A whole network that was measured.

    Attributes:
        allocation: its kept counts.
        timing: its times against the dense network's.
    """

    allocation: Allocation
    timing: PairedTiming


@dataclass(frozen=True)
class LatencyError:
    """How far predictions lie from measurements that they were not fitted to.

    Attributes:
        median_abs_rel: median of |predicted − measured| / measured.
        p90_abs_rel: its ninetieth percentile.
        spearman: rank correlation of predicted and measured.
        n: number of allocations.
    """

    median_abs_rel: float
    p90_abs_rel: float
    spearman: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """Return plain JSON values."""
        return asdict(self)


class LatencyCost(Cost):
    """Latency in milliseconds of the reference: a mixture of a constant and features, scaled to the dense network.

    The mixture's weights are at least 0 and sum to 1. So the prediction never falls when a unit keeps more, equals the
    reference at the dense network and never exceeds it. A fit returns a new predictor; this one stays as it is.

    Args:
        features: what it is a mixture of.
        reference: the dense network's time.
        samples: measured networks to fit the mixture to.
        focus: ratio to the dense network near which it should be best, e.g. budget / reference; None for everywhere.
        metric: ``latency``, or ``latency@<target>`` where a budget names what it is measured on.

    Attributes:
        weights: the mixture, constant first.
    """

    unit = "ms"
    predicted = True

    def __init__(
        self,
        features: Features,
        reference: Timing,
        samples: Sequence[Sample] = (),
        *,
        focus: float | None = None,
        metric: str = "latency",
    ) -> None:
        self.metric = metric
        self.features = features
        self.reference = reference
        self.samples = tuple(samples)
        self.focus = focus
        self.weights = self._fitted()

    def __call__(self, counts: Counts) -> Floats:
        """Return predicted milliseconds; see ``Cost``."""
        saved = (1 - self.features(counts)) @ self.weights[1:]
        return np.asarray(np.minimum(1 - saved, 1.0) * self.reference.median)

    def fit(self, samples: Sequence[Sample], *, focus: float | None = None) -> LatencyCost:
        """Return a predictor fitted to these samples alone."""
        return LatencyCost(self.features, self.reference, samples, focus=focus, metric=self.metric)

    def correct(self, samples: Sequence[Sample]) -> LatencyCost:
        """Return a predictor fitted to what this one was fitted to and to further samples, with the same focus."""
        return self.fit([*self.samples, *samples], focus=self.focus)

    def error(self, samples: Sequence[Sample]) -> LatencyError:
        """Compare with networks that it was not fitted to; at least one."""
        measured = np.array([sample.timing.ratio for sample in samples]) * self.reference.median
        predicted = self(_counts(samples))
        off = np.abs(predicted - measured) / measured
        median, p90 = (float(value) for value in np.percentile(off, (50, 90)))
        return LatencyError(median, p90, spearman(predicted, measured), len(samples))

    def _fitted(self) -> Floats:
        if not self.samples:
            return self.features.prior
        features = self.features(_counts(self.samples))
        design = np.column_stack([np.ones(len(features)), features])
        timings = [sample.timing for sample in self.samples]
        ratios = np.array([timing.ratio for timing in timings])
        trust = 1 / uncertainty(timings) ** 2
        if self.focus is not None:
            near = np.exp(-0.5 * ((ratios - self.focus) / _FOCUS_WIDTH) ** 2)
            trust = trust * (_FOCUS_FLOOR + near)
        return simplex_fit(design, ratios, trust=trust, prior=self.features.prior)


def uncertainty(timings: Sequence[PairedTiming]) -> Floats:
    """Return how far each ratio may be off, relative.

    Its own spread, and a share of how far the dense network's time in that pair lies from its usual time: where another
    process takes the memory's bandwidth, the dense network loses more than a smaller one, and the ratio is off.
    """
    spread = np.array([timing.spread for timing in timings])
    dense = np.array([timing.dense.median for timing in timings])
    drift = dense / np.percentile(dense, 25) - 1
    return np.asarray(np.sqrt(_LEAST_SPREAD**2 + spread**2 + (_DRIFT * drift) ** 2))


def latency_predictor(space: Space, meter: LatencyMeter, metric: str = "latency") -> LatencyCost:
    """Return a predictor that is fitted to nothing yet; layer tables are measured where they are not known yet."""
    layers = deployed_layers(space.graph.layers, meter.dense, meter.settings.shape)
    tables = None
    if meter.layers_alone:
        grids = plan_grids(space, layers)
        times = meter.layer_times([point for grid in grids for point in grid.points()])
        tables = Interpolation(space, grids, times, block=meter.block)
    return LatencyCost(LayerFeatures(space, layers, block=meter.block, tables=tables), meter.reference, metric=metric)


def _counts(samples: Sequence[Sample]) -> Counts:
    return np.array([sample.allocation for sample in samples], dtype=np.int64)
