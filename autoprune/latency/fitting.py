"""Small least squares: a mixture with weights that are at least 0 and sum to 1, and rank correlation."""

from __future__ import annotations

import numpy as np

from autoprune.costs.static import Floats

RIDGE = 1e-3
"""How much the prior weighs: as much as a tenth of a sample's share would with a feature spread of 0.1."""

_HUBER = 1.345  # 95% as efficient as plain least squares where errors are normal (Huber 1981)
_ROUNDS = 8


def simplex_fit(design: Floats, target: Floats, *, trust: Floats, prior: Floats) -> Floats:
    """Return the mixture weights w ≥ 0, Σw = 1 with the least robust weighted error, shape (features,).

    Minimises Σ trust · ρ(design·w − target) + RIDGE · ‖w − prior‖², ρ being Huber's loss by reweighting, so that a
    measurement that went wrong does not bend the fit.

    Args:
        design: shape (samples, features).
        target: shape (samples,).
        trust: how much each sample counts; only ratios matter, shape (samples,).
        prior: weights in the absence of samples, shape (features,).
    """
    trust = trust / trust.sum()
    weights = prior
    robust = np.ones_like(trust)
    for _ in range(_ROUNDS):
        weights = _constrained(design, target, trust * robust, prior)
        off = np.abs(design @ weights - target)
        scale = max(1.4826 * float(np.median(off)), 1e-3)
        robust = np.minimum(1.0, _HUBER * scale / np.maximum(off, 1e-12))
    return weights


def _constrained(design: Floats, target: Floats, trust: Floats, prior: Floats) -> Floats:
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


def spearman(one: Floats, other: Floats) -> float:
    """Return the rank correlation of two runs of numbers; equal ones share their mean rank, a constant run gives 0."""
    from scipy.stats import spearmanr

    if min(np.ptp(one), np.ptp(other)) == 0:
        return 0.0
    return float(spearmanr(one, other).statistic)
