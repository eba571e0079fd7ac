"""Small least squares: a mixture with weights that are at least 0 and sum to 1, and rank correlation."""

from __future__ import annotations

from itertools import combinations

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
    """Solve the weighted problem exactly: for each set of weights that may differ from 0, the equations of Lagrange."""
    size = design.shape[1]
    normal = design.T @ (design * trust[:, None]) + RIDGE * np.eye(size)
    right = design.T @ (target * trust) + RIDGE * prior
    best, least = prior, np.inf
    for count in range(1, size + 1):
        chosen = np.array(list(combinations(range(size), count)))
        systems = np.ones((len(chosen), count + 1, count + 1))
        systems[:, :count, :count] = normal[chosen[:, :, None], chosen[:, None, :]]
        systems[:, count, count] = 0.0
        sides = np.column_stack([right[chosen], np.ones(len(chosen))])
        solutions = np.linalg.solve(systems, sides[..., None])[:, :count, 0]
        feasible = (solutions >= 0).all(axis=1)
        weights = np.zeros((int(feasible.sum()), size))
        np.put_along_axis(weights, chosen[feasible], solutions[feasible], axis=1)
        weights /= weights.sum(axis=1, keepdims=True)
        values = np.einsum("si,ij,sj->s", weights, normal, weights) - 2 * weights @ right
        if len(values) and values.min() < least - 1e-15:
            best, least = weights[values.argmin()], float(values.min())
    return best


def spearman(one: Floats, other: Floats) -> float:
    """Return the rank correlation of two runs of numbers; equal ones share their mean rank, a constant run gives 0."""
    first, second = _ranks(one), _ranks(other)
    if min(first.std(), second.std()) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Floats) -> Floats:
    """Return mean ranks, shape as ``values``."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)
