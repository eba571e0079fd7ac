"""NetAdapt's proposals: scored from the present network, the best fine-tuned briefly, one kept with its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Counts
from autoprune.choices import Select
from autoprune.config import NetAdaptConfig
from autoprune.criteria.registry import make_criterion, spec_of
from autoprune.errors import TrainingError
from autoprune.evaluation.evaluator import WORST_SCORE, Evaluator
from autoprune.evaluation.pruning import evidence_of
from autoprune.evaluation.runners import Large, Shared
from autoprune.models._base import Batch
from autoprune.statistics.layers import recalibrate
from autoprune.structure.constraint import Constraint
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation, Space
from autoprune.training.shortterm import train_briefly, training_batches
from autoprune.workflows.records import recorded_allocation
from autoprune.workflows.result_writer import ResultWriter, SelectedCandidate
from autoprune.workflows.run import PruningRun


@dataclass(frozen=True)
class Base:
    """A network that an iteration starts from.

    Attributes:
        allocation: kept channels per unit of the dense network.
        pruner: prunes it further.
        score: its proxy score, 0 for the dense network.
    """

    allocation: Allocation
    pruner: Pruner
    score: float


def score_promising(
    proposals: int,
    wanted: int,
    scores: dict[int, float],
    score: Callable[[Sequence[int]], None],
    merit: Callable[[int], float],
) -> list[int]:
    """Score proposals until the best ones are known, and return their places, the best first.

    What a unit lost when it was last tried bounds what pruning it can be worth now, since the loss grows as the network
    becomes narrower (lazy evaluation; Minoux, 1978): one that this keeps off the best is not scored again.
    Those that must be scored whatever the others turn out to be are scored together.

    Args:
        proposals: how many there are.
        wanted: how many of the best are returned, all of them scored.
        scores: by place; filled in.
        score: scores the proposals at places, and fills in their scores.
        merit: of the proposal at a place, higher is better: by its score, or by the one expected before it is scored.

    Example:
        >>> scores, expected, true = {}, [0.3, 0.9, 0.5], [0.2, 0.6, 0.4]
        >>> def score(places):
        ...     scores.update({place: true[place] for place in places})
        >>> score_promising(3, 1, scores, score, lambda place: scores.get(place, expected[place])), scores
        ([1], {1: 0.6})
    """
    while True:
        best = sorted(range(proposals), key=merit, reverse=True)[:wanted]
        stale = [
            place
            for place in range(proposals)
            if place not in scores and (place in best or merit(place) == math.inf)  # nothing keeps these off the best
        ]
        if not stale:
            return best
        score(stale)


@dataclass(frozen=True)
class ShortScore:
    """What a short fine-tune made of a proposal.

    Attributes:
        score: against the network that it was pruned from; the worst if the training broke down.
        failure: why it did, or None.
    """

    score: float
    failure: str | None = None


ShortTuned: TypeAlias = Large[ShortScore, nn.Module]
"""A proposal after its short fine-tune: its score, and its network, which stays with the worker unless it is kept."""


@dataclass(frozen=True, eq=False)
class ShortTraining:
    """Fine-tunes proposals of one network briefly, here or on a worker.

    Attributes:
        evaluator: builds and scores them.
        images: as `training_batches` gives them.
        steps: of the training.
        lr_scale: learning rate as a share of the dense training's.
    """

    evaluator: Evaluator
    images: Shared[Sequence[Batch]]
    steps: int
    lr_scale: float

    def __call__(self, allocation: Allocation) -> ShortTuned:
        """Return a proposal after its short fine-tune; if that breaks down, untrained, with the worst score."""
        evaluator = self.evaluator
        module, failure = evaluator.materialise(allocation), None
        try:
            train_briefly(evaluator.adapter, module, self.images.value, steps=self.steps, lr_scale=self.lr_scale)
            score = evaluator.score(module)
        except TrainingError as error:
            score, failure = WORST_SCORE, str(error)
        if score <= WORST_SCORE:  # its weights may be no numbers any more
            module = evaluator.materialise(allocation)
        return Large.of(ShortScore(score, failure), module)


class NetAdaptSteps:
    """Tries an iteration's proposals and keeps the best.

    Attributes:
        dense: where the first iteration starts.
        evaluations: proposals scored so far, in every process of the run.
        fine_tunes: proposals fine-tuned briefly so far, in every process of the run.
    """

    def __init__(self, run: PruningRun, config: NetAdaptConfig) -> None:
        self._run, self._config = run, config
        self._budget = config.lowest
        self._training = Shared[Sequence[Batch]](())
        if config.short_term_steps:
            held = training_batches(
                run.network.adapter,
                scoring=config.images,
                steps=config.short_term_steps,
                batch=config.batch,
                seed=config.seed,
            )
            self._training = Shared(held)
        self.dense = Base(run.dense_allocation, run.network.pruner, 0.0)
        self.evaluations = self.fine_tunes = 0
        self._changes: dict[int, float] = {}  # of the score, by unit, when pruning it was last tried

    @cached_property
    def calibration(self) -> Sequence[torch.Tensor]:
        """Images that recalibrate batch norm of what ships."""
        config = self._config
        return self._run.network.adapter.calibration(images=config.images, batch=config.batch, seed=config.seed)

    @cached_property
    def _dense(self) -> Evaluator:
        return self._run.evaluator()

    def copy_of(self, base: Base) -> nn.Module:
        """Return a base's network, free to be changed."""
        return copy.deepcopy(base.pruner.module)

    def choose(
        self, base: Base, proposals: Sequence[tuple[int, Counts]], constraint: Constraint, *, iteration: int
    ) -> Base:
        """Score proposals, fine-tune the most promising ones, keep the best, and make it durable.

        Args:
            base: the network that they prune.
            proposals: (unit, counts), each pruning that one unit.
            constraint: tells what each saves.
            iteration: from 1.
        """
        path = self._run.network.adapter.checkpoint(self._run.folder.path / "iterations", f"{iteration:03}")
        done = self._run.folder.journal.lookup("iteration", iteration)
        if done is None:
            chosen, score, counted = self._best(base, proposals, constraint, iteration)
            self._run.network.adapter.save(chosen[1], path, notes={"netadapt_iteration": iteration})
            self._save_policy(chosen[0], score, iteration)
            changes = [[unit, change] for unit, change in self._changes.items()]
            done = {"allocation": list(chosen[0]), "score": score, "changes": changes, **counted}
            self._run.folder.journal.append("iteration", iteration, done)
        self._changes = {int(unit): float(change) for unit, change in done["changes"]}
        self.evaluations += int(done["evaluations"])
        self.fine_tunes += int(done["fine_tunes"])
        # Read back even what was just written: a run that goes on after a kill must not differ by a rounding.
        journal, space = self._run.folder.journal, self._run.network.space
        allocation = recorded_allocation(done["allocation"], space, journal, "iteration")
        return self._reopened(base, allocation, float(done["score"]), path)

    # -- scoring -----------------------------------------------------------------------------------

    def _best(
        self, base: Base, proposals: Sequence[tuple[int, Counts]], constraint: Constraint, iteration: int
    ) -> tuple[tuple[Allocation, nn.Module], float, dict[str, int]]:
        """Return the best proposal's allocation and network, its score, and what it took to find it."""
        config = self._config
        evaluator = self._evaluator(base, f"netadapt {iteration}")
        allocations = [constraint.space.allocation(counts) for _, counts in proposals]
        scores, shortlist = self._scored(base, proposals, constraint, evaluator, iteration)
        counted = {"evaluations": len(scores), "fine_tunes": 0}
        if not config.short_term_steps:
            best = shortlist[0]
            return (allocations[best], evaluator.materialise(allocations[best])), scores[best], counted
        counted["fine_tunes"] = len(shortlist)
        kept: tuple[float, int, float, ShortTuned] | None = None
        for place, tuned in zip(
            shortlist, self._tuned(evaluator, [allocations[one] for one in shortlist]), strict=True
        ):
            if tuned.summary.failure is not None:
                self._run.listener.warn(f"A proposal drops out: {tuned.summary.failure}.")
            failed = tuned.summary.score <= WORST_SCORE
            score = WORST_SCORE if failed else self._absolute(tuned.summary.score, evaluator)
            merit = self._merit(base, score, proposals[place][1], constraint)
            if kept is None or merit > kept[0]:
                kept = (merit, place, score, tuned)
        assert kept is not None
        _, place, score, tuned = kept
        return (allocations[place], tuned.fetch()), score, counted

    def _scored(
        self,
        base: Base,
        proposals: Sequence[tuple[int, Counts]],
        constraint: Constraint,
        evaluator: Evaluator,
        iteration: int,
    ) -> tuple[dict[int, float], list[int]]:
        """Return scores by the place of a proposal, of those that were scored, and the places of the best ones."""
        config = self._config
        wanted = (config.shortlist if config.short_term_steps else 1) if config.shortlist else len(proposals)
        expected = [base.score + self._changes.get(unit, np.inf) for unit, _ in proposals]
        with self._run.listener.progress(f"Step {iteration}", len(proposals)) as advance:

            def score(places: Sequence[int]) -> None:
                found = evaluator.each([constraint.space.allocation(proposals[place][1]) for place in places])
                for place, evaluation in zip(places, found, strict=True):
                    scores[place] = self._absolute(evaluation.score, evaluator)
                    self._changes[proposals[place][0]] = scores[place] - base.score
                    advance(len(scores))

            def merit(place: int) -> float:
                return self._merit(base, scores.get(place, expected[place]), proposals[place][1], constraint)

            scores: dict[int, float] = {}
            best = score_promising(len(proposals), wanted, scores, score, merit)
        return scores, best

    def _tuned(self, evaluator: Evaluator, allocations: Sequence[Allocation]) -> Iterable[ShortTuned]:
        """Give proposals after their short fine-tune, each as soon as it and those before it are trained."""
        config = self._config
        return evaluator.computed(
            lambda: ShortTraining(evaluator, self._training, config.short_term_steps, config.lr_scale), allocations
        )

    def _merit(self, base: Base, score: float, counts: Counts, constraint: Constraint) -> float:
        """Return what the proposals are compared by, higher is better."""
        if self._config.select is Select.ACCURACY:
            return score
        saved = float(constraint.utilization(np.array(base.allocation)) - constraint.utilization(counts))
        return (score - base.score) / max(saved, 1e-12)

    def _evaluator(self, base: Base, kind: str) -> Evaluator:
        """Return what scores networks pruned from a base."""
        evaluator = self._run.evaluator(kind, base.pruner)
        evaluator.rebase(base.allocation)
        return evaluator

    def _absolute(self, score: float, evaluator: Evaluator) -> float:
        """Return a score against the dense network; the evaluator's is against the iteration's base."""
        return max(1 - (1 - score) * evaluator.dense_loss / self._dense.dense_loss, WORST_SCORE)

    # -- between iterations ------------------------------------------------------------------------

    def _reopened(self, base: Base, allocation: Allocation, score: float, path: Path) -> Base:
        adapter = self._run.network.adapter
        module = adapter.reopen(path)
        if self._config.compensate or spec_of(self._config.criterion).needs_images:
            recalibrate(module, self.calibration)  # what the next step looks at is that of a network that works
        graph = base.pruner.graph_of(allocation)
        scorer = make_criterion(self._config.criterion, partial(evidence_of, adapter))
        order = scorer.order(module, graph)
        return Base(allocation, Pruner(module, Space(graph, round_to=1, min_keep=1e-6), order), score)

    def _save_policy(self, allocation: Allocation, score: float, iteration: int) -> None:
        deployment = ResultWriter(self._run, self._budget, path=self._run.folder.path / "iterations")
        deployment.save_policy(
            SelectedCandidate(allocation, score, {}),
            strategy="netadapt",
            evaluations=self.evaluations,
            name=f"{iteration:03}.json",
        )
