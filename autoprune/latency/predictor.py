"""Predicted latency of any allocation: layer tables and closed forms, fitted to measured networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.latency.features import LayerFeatures, deployed_layers
from autoprune.latency.meter import LatencyMeter
from autoprune.latency.tables import Interpolation, plan_grids
from autoprune.latency.timing import PairedTiming, Timing
from autoprune.metrics import latency_target, spec_of
from autoprune.structure.constraint import Cost
from autoprune.structure.space import Allocation, Space

RIDGE = 1e-3
"""How much the prior weighs: as much as a tenth of a sample's share would with a feature spread of 0.1."""

SCATTER = 0.5
"""Standard deviation of the random log keep ratios of samples."""

_LEAST_SPREAD = 0.02  # no ratio is known better than this, even if its own spread is smaller
_DRIFT = 0.3  # share of the dense network's own slow-down in a pair that may be an error of the ratio
_FOCUS_WIDTH = 0.1
_FOCUS_FLOOR = 0.15
_HUBER = 1.345  # 95% as efficient as plain least squares if errors are normal (Huber 1981)
_FIT_ROUNDS = 8
_NEAR = 0.1
_BISECTIONS = 30


@dataclass(frozen=True)
class Sample:
    """A measured network.

    Attributes:
        allocation: kept channels of each unit.
        timing: its times, paired with the dense network's.
    """

    allocation: Allocation
    timing: PairedTiming


@dataclass(frozen=True)
class LatencyError:
    """Errors of predictions on measured networks that they were not fitted to.

    Attributes:
        median_abs_rel: median of |predicted − measured| / measured.
        p90_abs_rel: ninetieth percentile of the same.
        spearman: rank correlation of predicted and measured.
        n: number of networks.
    """

    median_abs_rel: float
    p90_abs_rel: float
    spearman: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """Return plain JSON values."""
        return asdict(self)


class LatencyCost(Cost):
    """Predict latency in ms, or energy in mJ: a mixture of a constant and features, scaled to the dense network.

    The mixture's weights are at least 0 and sum to 1. So the prediction never falls when a unit keeps more channels,
    equals the reference at the dense network and never exceeds it. A fit returns a new predictor; this one stays.

    Args:
        features: the terms of the mixture.
        reference: the dense network's time.
        samples: measured networks to fit the mixture to.
        focus: ratio to the dense network near which it should be best, e.g. budget / reference; None for everywhere.
        metric: ``latency`` or ``energy``, with ``@<target>`` if a budget names the device or runtime.

    Attributes:
        weights: the mixture, constant first.
    """

    predicted = True

    def __init__(
        self,
        features: LayerFeatures,
        reference: Timing,
        samples: Sequence[Sample] = (),
        *,
        focus: float | None = None,
        metric: str = "latency",
    ) -> None:
        self.metric, self.unit = metric, spec_of(metric).suffix
        self.features = features
        self.reference = reference
        self.samples = tuple(samples)
        self.focus = focus
        self.weights = self._fitted()

    def __call__(self, counts: Counts) -> Array:
        """Return predicted milliseconds; see ``Cost``."""
        saved = (1 - self.features(counts)) @ self.weights[1:]
        return np.asarray(np.minimum(1 - saved, 1.0) * self.reference.median)

    def fit(self, samples: Sequence[Sample], *, focus: float | None = None) -> LatencyCost:
        """Return a predictor fitted to these samples alone."""
        return LatencyCost(self.features, self.reference, samples, focus=focus, metric=self.metric)

    def correct(self, samples: Sequence[Sample]) -> LatencyCost:
        """Return a predictor fitted to this one's samples and to further ones, with the same focus."""
        return self.fit([*self.samples, *samples], focus=self.focus)

    def error(self, samples: Sequence[Sample]) -> LatencyError:
        """Return the errors on networks that it was not fitted to; at least one."""
        measured = np.array([sample.timing.ratio for sample in samples]) * self.reference.median
        predicted = self(_counts(samples))
        off = np.abs(predicted - measured) / measured
        median, p90 = (float(value) for value in np.percentile(off, (50, 90)))
        return LatencyError(median, p90, spearman(predicted, measured), len(samples))

    def _fitted(self) -> Array:
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


def uncertainty(timings: Sequence[PairedTiming]) -> Array:
    """Return the relative uncertainty of each measured ratio, shape (timings,).

    It joins the ratio's own spread with a share of the deviation of the dense network's time from its usual time: if
    another process takes memory bandwidth, the dense network loses more than a smaller one, and the ratio is biased.
    """
    spread = np.array([timing.spread for timing in timings])
    dense = np.array([timing.dense.median for timing in timings])
    drift = dense / np.percentile(dense, 25) - 1
    return np.asarray(np.sqrt(_LEAST_SPREAD**2 + spread**2 + (_DRIFT * drift) ** 2))


def latency_predictor(space: Space, meter: LatencyMeter, metric: str = "latency") -> LatencyCost:
    """Return a predictor that is not fitted yet; layer tables that are not cached are measured."""
    layers = deployed_layers(space.graph.layers, meter.dense, meter.settings.shape)
    tables = None
    if meter.layers_alone:
        grids = plan_grids(space, layers)
        times = meter.layer_times([point for grid in grids for point in grid.points()])
        tables = Interpolation(space, grids, times, block=meter.block)
    reference = replace(meter.reference, median=getattr(meter.reference, latency_target(metric)[1]))
    return LatencyCost(LayerFeatures(space, layers, block=meter.block, tables=tables), reference, metric=metric)


def _counts(samples: Sequence[Sample]) -> Counts:
    return np.array([sample.allocation for sample in samples], dtype=np.int64)


def simplex_fit(design: Array, target: Array, *, trust: Array, prior: Array) -> Array:
    """Return the mixture weights w ≥ 0, Σw = 1 with the least robust weighted error, shape (features,).

    Minimises Σ trust · ρ(design·w − target) + RIDGE · ‖w − prior‖². ρ is Huber's loss by reweighting, so that an
    outlier has little influence on the fit.

    Args:
        design: shape (samples, features).
        target: shape (samples,).
        trust: weight of each sample; only ratios matter, shape (samples,).
        prior: weights in the absence of samples, shape (features,).
    """
    trust = trust / trust.sum()
    weights = prior
    robust = np.ones_like(trust)
    for _ in range(_FIT_ROUNDS):
        weights = _constrained(design, target, trust * robust, prior)
        off = np.abs(design @ weights - target)
        scale = max(1.4826 * float(np.median(off)), 1e-3)
        robust = np.minimum(1.0, _HUBER * scale / np.maximum(off, 1e-12))
    return weights


def _constrained(design: Array, target: Array, trust: Array, prior: Array) -> Array:
    """Solve the weighted problem exactly, as one of non-negative least squares.

    With Σw = 1 the error design·w − target is (design − target)·w and w − prior is (I − prior)·w, without constants.
    The u ≥ 0 that solves these equations next to Σu = 1 is then a multiple of w (Lawson and Hanson, "Solving Least
    Squares Problems", 1974, chapter 23, least distance programming).
    """
    from scipy.optimize import nnls

    errors = np.sqrt(trust)[:, None] * (design - target[:, None])
    shift = np.sqrt(RIDGE) * (np.eye(len(prior)) - prior[:, None])
    system = np.vstack([errors, shift, np.ones_like(prior)])
    scaled, _ = nnls(system, np.append(np.zeros(len(system) - 1), 1.0))
    return np.asarray(scaled / scaled.sum(), dtype=np.float64)


def spearman(one: Array, other: Array) -> float:
    """Return the rank correlation of two vectors; ties share their mean rank, a constant vector gives 0."""
    from scipy.stats import spearmanr

    if min(np.ptp(one), np.ptp(other)) == 0:
        return 0.0
    return float(spearmanr(one, other).statistic)


def spread_allocations(
    space: Space, cost: Cost, *, number: int, seed: int, around: float | None = None
) -> list[Allocation]:
    """Return random allocations with costs spread over the reachable range, to fit and test a predictor.

    Args:
        space: the space of allocations.
        cost: the cost to spread; a predictor that is not fitted yet will do.
        number: how many allocations.
        seed: of the random allocations.
        around: share of the dense cost near which every second one lies; None spreads all of them evenly.
    """
    generator = np.random.default_rng(seed)
    found = []
    for level in _levels(float(cost(space.lower) / cost(space.dense)), number, around):
        log_ratios = generator.normal(0.0, SCATTER, len(space))
        found.append(space.allocation(_scale_to(space, cost, log_ratios, level)))
    return found


def _scale_to(space: Space, cost: Cost, log_ratios: Array, level: float) -> Counts:
    """Scale keep ratios by one common factor until the cost is at most ``level`` of the dense one, and round down."""
    most = level * float(cost(space.dense))
    low, high = float(np.log(1e-4) - log_ratios.max()), float(-log_ratios.min())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        counts = space.round_down(np.exp(np.minimum(log_ratios + middle, 0.0)))
        low, high = (middle, high) if cost(counts) <= most else (low, middle)
    return space.round_down(np.exp(np.minimum(log_ratios + low, 0.0)))


def _levels(least: float, number: int, around: float | None) -> Array:
    """Return cost levels over (least, 1), shape (number,); every second one near ``around``."""
    even = least + (np.arange(number) + 0.5) / number * (1 - least)
    if around is not None:
        near = np.linspace(around - _NEAR, around + _NEAR, len(even[::2]))
        even[::2] = np.clip(near, least, 1.0)
    return np.asarray(even)
