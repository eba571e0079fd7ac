"""A budgeted problem whose optimum is known: a chain of layers, and a loss in closed form.

Unit i feeds layer i + 1 alone, so that the cost is bilinear in neighbouring widths, as FLOPs are. What pruning costs in
score is sum s_i p_i² + sum c_i p_i p_{i+1} with p = 1 − keep ratio, log-normal s and pairwise c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

from autoprune.arrays import Counts
from autoprune.envs.problem import PruningProblem
from autoprune.envs.pruning_env import PruningEnv, RuleFactory
from autoprune.structure.constraint import Constraint, Cost, CostLimit
from autoprune.structure.graph import ChannelGraph, Group, Layer, LayerKind, Unit
from autoprune.structure.space import Allocation, Space


class LayerFlops(Cost):
    """2 × kernel² × height × width × in × out, summed over all layers."""

    metric = "flops"
    unit = "FLOPs"

    def __init__(self, space: Space) -> None:
        self._space = space
        layers = space.graph.layers
        self._in = [layer.in_axis for layer in layers]
        self._out = [layer.out_axis for layer in layers]
        self._each = np.array(
            [2.0 * layer.kernel[0] * layer.kernel[1] * layer.out_hw[0] * layer.out_hw[1] for layer in layers]
        )

    def __call__(self, counts: Counts) -> npt.NDArray[np.float64]:
        widths = self._space.axis_widths(counts)
        return np.asarray((widths[..., self._in] * widths[..., self._out]) @ self._each)


def chain_graph(widths: Sequence[int]) -> ChannelGraph:
    """A chain of 3×3 convolutions, 3 → widths[0] → … → 8; the feature map shrinks four times along the way."""
    sizes = [3, *widths, 8]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    names = ["input", *(f"conv{index}" for index in range(len(widths))), "head"]
    last = len(sizes) - 1
    groups = tuple(
        Group(name, int(offset), size, pinned=None if 0 < index < last else "input or output")
        for index, (name, offset, size) in enumerate(zip(names, offsets, sizes, strict=False))
    )
    stage = [64 >> (4 * index // len(sizes)) for index in range(len(sizes))]
    layers = tuple(
        Layer(
            names[index],
            LayerKind.CONV,
            in_axis=index - 1,
            out_axis=index,
            kernel=(3, 3),
            stride=(stage[index - 1] // stage[index],) * 2,
            in_hw=(stage[index - 1],) * 2,
            out_hw=(stage[index],) * 2,
        )
        for index in range(1, len(sizes))
    )
    return ChannelGraph(
        groups=groups,
        units=tuple(Unit(names[index], sizes[index], (index,)) for index in range(1, last)),
        axes=tuple(np.arange(offset, offset + size) for offset, size in zip(offsets, sizes, strict=False)),
        tensors={},
        layers=layers,
        attributes=(),
    )


OPTIMA = {0: 0.12926, 1: 0.09015, 2: 0.10007, 3: 0.10408, 4: 0.0955}
"""Least loss of ``make_toy(40, seed=…)``, by seed, as ``Toy.optimum`` finds it. Uniform ratios lose 0.74 to 0.98."""


@dataclass(frozen=True)
class Toy:
    """The problem with what only the tests know.

    Attributes:
        single: damage per unit, shape (units,).
        pair: damage per pair of neighbours, shape (units − 1,).
        noise: by how much the measured log-sensitivity is off, shape (units,).
    """

    space: Space
    constraint: Constraint
    cost: Cost
    single: npt.NDArray[np.float64]
    pair: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]

    def loss(self, counts: Counts) -> npt.NDArray[np.float64]:
        """Damage of allocations, shape (units,) → () or (candidates, units) → (candidates,)."""
        pruned = 1 - self.space.ratios(counts)
        return np.asarray((pruned**2) @ self.single + (pruned[..., 1:] * pruned[..., :-1]) @ self.pair)

    def score(self, allocations: Sequence[Allocation]) -> list[float]:
        return [-float(loss) for loss in self.loss(np.array(allocations, dtype=np.int64))]

    def problem(self, *, prior: float = 0.0) -> PruningProblem:
        """The environment's problem; ``prior`` times (sensitivity − 1) is where the search starts."""
        log = np.log(self.single) + self.noise
        sensitivity = (log - log.min()) / (np.ptp(log) or 1.0)
        return PruningProblem(
            space=self.space,
            constraint=self.constraint,
            cost=self.cost,
            score=self.score,
            sensitivity=sensitivity,
            prior=prior * (sensitivity - 1),
        )

    def env(self, rule: str | RuleFactory = "projected") -> PruningEnv:
        """An environment for an agent, which has its candidates scored itself."""
        return PruningEnv(replace(self.problem(), score=None), rule=rule)

    def optimum(self) -> float:
        """The least loss that descent finds from several starts; changing any two units makes it no better."""
        rng = np.random.default_rng(0)
        targets = [0.5 * np.log(self.single), np.zeros(len(self.space))]
        targets += [0.5 * np.log(self.single) + 0.3 * rng.normal(size=len(self.space)) for _ in range(6)]
        found = [self._descend(self.constraint.project(one), self._steps) for one in targets]
        best = min(found, key=lambda counts: float(self.loss(counts)))
        return float(self.loss(self._descend(best, self._exchanges)))

    def _descend(self, counts: Counts, neighbours: Callable[[Counts], Counts]) -> Counts:
        while True:
            trials = neighbours(counts)
            losses = np.where(self.constraint.utilization(trials) <= 1, self.loss(trials), np.inf)
            if losses.min() >= float(self.loss(counts)) - 1e-12:
                return counts
            counts = trials[losses.argmin()]

    def _steps(self, counts: Counts) -> Counts:
        """One unit a step wider, alone or with another a step narrower, shape (candidates, units)."""
        space = self.space
        ups = {unit: wider for unit in range(len(space)) if (wider := space.next_up(counts, unit)) is not None}
        narrower = (
            [choice for choice in each if choice < count] for each, count in zip(space.choices, counts, strict=True)
        )
        downs = {unit: int(less[-1]) for unit, less in enumerate(narrower) if less}
        moves = [{unit: wider} for unit, wider in ups.items()]
        moves += [{a: x, b: y} for (a, x), (b, y) in product(ups.items(), downs.items()) if a != b]
        return self._moved(counts, moves)

    def _exchanges(self, counts: Counts) -> Counts:
        """Any two units at any of their choices, shape (candidates, units)."""
        choices = self.space.choices
        moves = [
            {a: int(x), b: int(y)}
            for a, b in combinations(range(len(choices)), 2)
            for x, y in product(choices[a], choices[b])
        ]
        return self._moved(counts, moves)

    def _moved(self, counts: Counts, moves: Sequence[Mapping[int, int]]) -> Counts:
        trials = np.repeat(counts[None, :], len(moves), axis=0)
        for trial, move in zip(trials, moves, strict=True):
            trial[list(move)] = list(move.values())
        return trials


def make_toy(units: int = 40, *, seed: int = 0, budget: float = 0.5, round_to: int = 8) -> Toy:
    """A toy with log-normal damages, widths from 16 to 256, at a share of the dense FLOPs."""
    rng = np.random.default_rng(seed)
    widths = [int(16 * 2 ** min(4 * index // units, 3) * rng.choice([1, 2])) for index in range(units)]
    space = Space(chain_graph(widths), round_to=round_to)
    cost = LayerFlops(space)
    single = rng.lognormal(0.0, 1.5, size=units)
    pair = 0.5 * np.sqrt(single[1:] * single[:-1]) * rng.lognormal(0.0, 0.5, size=units - 1)
    noise = 0.5 * rng.normal(size=units)
    scale = single.sum() + pair.sum()
    limit = budget * float(cost(space.dense))
    return Toy(space, Constraint(space, [CostLimit(cost, limit)]), cost, 8 * single / scale, 8 * pair / scale, noise)
