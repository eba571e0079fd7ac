"""NetAdapt's steps: for every unit, the least pruning of it alone that saves so much of the budgeted cost."""

from __future__ import annotations

import numpy as np

from autoprune.structure.constraint import Constraint
from autoprune.structure.space import Counts

ITERATIONS = 40
"""Steps to the budget when there is time for all: with a decay of 0.96 and half of the cost to be saved, the first one
saves 2.5% of the dense network's cost, as in the paper."""


def proposals(constraint: Constraint, counts: Counts, saving: float) -> list[tuple[int, Counts]]:
    """Return for each unit the allocation that prunes it alone, as little as saves enough.

    Yang et al., "NetAdapt", ECCV 2018, algorithm 1: the largest width with which the saving is reached. The cost here
    is that of the whole network, so that what a narrower unit saves in the layers after it counts.

    Args:
        constraint: the limits.
        counts: where the step starts, shape (units,).
        saving: how far ``constraint.load`` must fall, in shares of the limit that is exceeded most.

    Returns:
        (unit, new counts) in the order of the units; units that cannot save as much alone are left out.
    """
    space = constraint.space
    narrower = [choices[choices < count] for choices, count in zip(space.choices, counts, strict=True)]
    unit_of = np.repeat(np.arange(len(space)), [len(widths) for widths in narrower])
    if not len(unit_of):
        return []
    trials = np.repeat(counts[None, :], len(unit_of), axis=0)
    trials[np.arange(len(unit_of)), unit_of] = np.concatenate(narrower)
    enough = constraint.load(trials) <= float(constraint.load(counts)) - saving
    largest = {int(unit): trials[place].copy() for place, unit in enumerate(unit_of) if enough[place]}  # widths ascend
    return list(largest.items())


def savings(total: float, *, decay: float, iterations: int) -> list[float]:
    """Return what each step saves, ΔR₀ · decay^i (NetAdapt, section 4.1), so that together they save ``total``."""
    shares = decay ** np.arange(iterations)
    return [float(share) for share in total * shares / shares.sum()]
