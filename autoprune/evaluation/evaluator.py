"""Evaluate allocations: slice, compensate, recalibrate, score and cost each, with cache and journal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property, partial, reduce
from operator import add
from typing import Any

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.evaluation.compensation import compensate
from autoprune.evaluation.halving import HalvingBatches
from autoprune.evaluation.prefix import PREFIX_BYTES, Prefix, first_stages
from autoprune.evaluation.pruning import Calibration, prune
from autoprune.evaluation.runners import Runner, SerialRunner, Shared
from autoprune.evaluation.slopes import Slopes, measure_slopes
from autoprune.evaluation.threads import in_threads
from autoprune.journal import Journal
from autoprune.listener import step_bar
from autoprune.models._base import Adapter, Batch, LossSum
from autoprune.results import Metrics
from autoprune.statistics.layers import no_dropout, train_mode
from autoprune.statistics.moments import Moments, collect_moments
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation

WORST_SCORE = -10.0
"""Score of a candidate whose loss is not a number: far below any network that still computes."""


_SHARED = ("adapter", "_batches", "_augmented", "_moments")
"""What a worker is sent once, however many of an evaluator's methods it computes."""


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether scoring in bfloat16 pays on a device: on CPUs with AMX or AVX-512 for it, see ``Evaluator``."""
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.11 does not say
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def _silent(note: str) -> None:
    """Notify nobody."""


def _of(allocation: Allocation, scores: Iterator[tuple[Allocation, Any]]) -> Any:
    """Return what an allocation scored; those before it became known in another way meanwhile."""
    return next(score for one, score in scores if one == allocation)


@dataclass(frozen=True)
class Evaluation:
    """A scored candidate.

    Attributes:
        allocation: kept channels per unit.
        score: ``1 - loss / dense loss``: 0 for the dense network, lower is worse.
        seconds: wall time that the score took when it was computed.
    """

    allocation: Allocation
    score: float
    seconds: float


@dataclass
class EvaluationCounts:
    """Count the candidates that were evaluated.

    Attributes:
        evaluations: scores returned, from the cache or not.
        cache_hits: of these, how many were known already.
        seconds: wall time of those that were computed.
    """

    evaluations: int = 0
    cache_hits: int = 0
    seconds: float = 0.0


@dataclass
class Evaluator(HalvingBatches):
    """Scores allocations on held images of the training split.

    One pass does both: in train mode every batch is normalised with its own statistics, which is what recalibrated
    batch norm converges to, and the detection loss of that pass is the score. (Measured against recalibrating first
    and scoring after: within 1%, the same ranking; half the cost.)

    In bfloat16 a candidate takes 0.6 to 0.7 of the time on a CPU with AMX and 0.8 on one with AVX-512 for it; scores
    differ by 0.01 at most (three detectors, 320 px, 60 images, one thread; Spearman over 30 allocations at flops=50%,
    30% and 20% at least 0.998; ``python -m tests.benchmarks.bf16``).

    A loss in train mode depends on the batch, and so does the dense loss that it is divided by: both are always of the
    same one. When memory runs out, all evaluators of the run go on with half of it, and with a dense loss of its own;
    what is scored already stays, for the search has gone by it, and a resumed run goes by the same.

    It can be pickled, for the workers of stable-baselines3's ``SubprocVecEnv``: each gets the network, the images and
    the scores known so far, and computes the same scores; what it computes is not journalled, and it notifies nobody.
    Memory that runs out there is an error, for scores must not depend on the worker: only the run halves the batch.

    Attributes:
        adapter: the dense network with its data and loss.
        pruner: makes the candidates.
        images: how many scoring images; fewer if there are not half as many with labels.
        batch: images per batch; halved, for all evaluators of the journal, when the device runs out of memory.
        seed: chooses the images.
        journal: where every evaluation is durable before it is returned.
        kind: the journal's name for these evaluations; others, e.g. on fewer images, have their own.
        notify: called with a sentence that users should read, each once.
        compensate: add to the weights of all candidates what best predicts the removed channels from the kept ones.
        reconstruct: if candidates are compensated, solve the layers of what ships for what the dense network gives.
        criterion: what ranked the channels, see `pruning.prune`.
        bf16: score in bfloat16 if that pays; a journal that was begun stays with what it was begun in.
        prefix_bytes: how much may be held of what a base network computes, see `rebase`.
        runner: computes the candidates of a batch; its workers share the adapter and the images of all evaluators.
        like: another evaluator of the same adapter, images and seed: its images are not read again, and what it
            notified of is not said again.
    """

    adapter: Adapter
    pruner: Pruner
    images: int
    batch: int
    seed: int
    journal: Journal
    kind: str = "evaluation"
    notify: Callable[[str], None] = _silent
    compensate: bool = False
    reconstruct: bool = False
    criterion: str = "l1"
    bf16: bool = False
    prefix_bytes: int = PREFIX_BYTES
    runner: Runner = field(default_factory=SerialRunner)
    like: InitVar[Evaluator | None] = None
    counts: EvaluationCounts = field(default_factory=EvaluationCounts)

    def __post_init__(self, like: Evaluator | None) -> None:
        self._known: dict[Allocation, Evaluation] = {}
        self._begin(like)
        self._in_bf16 = self._begun_in_bf16()
        _ = self._dense  # refuses a network without a loss

    def __getstate__(self) -> dict[str, Any]:
        usage = self.runner.usage
        workers = {"_base": None} if usage is None else {"prefix_bytes": self.prefix_bytes // usage.workers}
        shared = {name: Shared(self.__dict__[name]) for name in _SHARED if name in self.__dict__}
        here = {"notify": _silent, "runner": SerialRunner(), "_prefix": None, "_copied": True}
        return {**self.__dict__, **here, **shared, **workers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: one.value if isinstance(one, Shared) else one for name, one in state.items()})

    # -- scores --------------------------------------------------------------------------------

    def __call__(self, allocations: Sequence[Allocation]) -> list[Evaluation]:
        """Return the evaluations of the allocations, in order; the runner computes those that are new."""
        return list(self.each(allocations))

    def each(self, allocations: Sequence[Allocation]) -> Iterator[Evaluation]:
        """Give the evaluations of the allocations one by one; each is journalled as soon as the runner gives it."""
        new = {allocation: None for allocation in allocations if allocation not in self._known}
        missing = [one for one in new if self.journal.lookup(self.kind, list(one)) is None]
        scores = zip(missing, self.computed(lambda: self._work(self._scored, "_dense"), missing), strict=True)
        for allocation in allocations:
            self.counts.evaluations += 1
            if allocation in self._known:
                self.counts.cache_hits += 1
            else:
                found = self.journal.once(self.kind, list(allocation), partial(_of, allocation, scores))
                self._known[allocation] = Evaluation(allocation, float(found["score"]), float(found["seconds"]))
                self.counts.seconds += self._known[allocation].seconds
            yield self._known[allocation]

    def rebase(self, allocation: Allocation) -> None:
        """Expect candidates that differ from this one in few units: what their first layers share is computed once.

        Scores stay what they are, on several threads but for rounding: layers are then computed in another order. One
        pass of the base network is recorded when the next candidate is computed; its seconds count as that candidate's.
        """
        if allocation != self._base:
            self._base, self._prefix = allocation, None

    def score(self, module: nn.Module) -> float:
        """Return the score of a network that is no candidate of the pruner's, e.g. a fine-tuned one; not journalled."""
        return self._retrying(lambda: self._relative(lambda: module))

    def _scored(self, allocation: Allocation) -> dict[str, float]:
        start = time.perf_counter()
        score = self._score(allocation)
        return {"score": score, "seconds": time.perf_counter() - start}

    def _score(self, allocation: Allocation) -> float:
        return self._relative(lambda: self._shortened(allocation))

    def _relative(self, made: Callable[[], nn.Module]) -> float:
        dense = self.dense_loss  # first: computing it may halve the batch
        loss = self._loss(made())
        return max(1.0 - loss / dense, WORST_SCORE) if math.isfinite(loss) else WORST_SCORE

    def _shortened(self, allocation: Allocation) -> nn.Module:
        """Return the candidate for one scoring: it starts where it differs from the base network, if there is one."""
        if self._base is not None and self._prefix is None:
            self._prefix = self._recorded(self._base)
        module = self.materialise(allocation)
        return module if self._prefix is None else self._prefix.shorten(module, allocation)

    def _recorded(self, base: Allocation) -> Prefix | None:
        stages = self.adapter.stages(self.pruner.module)
        if not stages:
            return None
        module = train_mode(self.materialise(base))
        return Prefix.record(
            module,
            [partial(self._loss_sum, module, batch) for batch in self._batches],
            base=base,
            stages=stages,
            starts=first_stages(self.pruner.space.graph, self.pruner.module, stages),
            limit=self.prefix_bytes,
        )

    def _loss(self, module: nn.Module) -> float:
        """Return the loss in train mode, over all scoring images."""
        return self._sums(module).mean()

    def _sums(self, module: nn.Module) -> LossSum:
        train_mode(module)
        at_once = self.adapter.concurrent and self._prefix is None  # what a prefix recorded is read batch by batch
        return reduce(add, in_threads(partial(self._loss_sum, module), self._batches, at_once=at_once))

    def _loss_sum(self, module: nn.Module, batch: Batch) -> LossSum:
        with torch.autocast(self.adapter.device.type, torch.bfloat16, enabled=self._in_bf16), no_dropout():
            return self.adapter.loss_sum(module, batch)

    @property
    def dense_loss(self) -> float:
        """The dense network's loss with the run's present batch."""
        self._load()
        return float(self._dense["loss"])

    @cached_property
    def _dense(self) -> Mapping[str, Any]:
        """The dense network's ``loss``, and the ``weights`` that it is a mean by; journalled by batch."""
        found = self.journal.lookup(f"{self.kind} dense", self.batch)
        if found is None:
            dense = tuple(unit.width for unit in self.pruner.space.units)
            with step_bar("Scoring the dense network", 1) as advance:
                sums = self._retrying(lambda: self._sums(self.materialise(dense)))
                advance(1)
            found = {"loss": sums.mean(), "weights": sums.weights.tolist()}
            self.journal.append(f"{self.kind} dense", self.batch, found)
        loss = float(found["loss"])
        if not math.isfinite(loss) or loss <= 0:
            raise ModelError(
                f"The dense network's loss on its training images must be a positive number, got {loss}; "
                "check that the weights and the labels belong together"
            )
        return dict(found)

    # -- first order ---------------------------------------------------------------------------

    def gains(self, allocation: Allocation, widths: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return what each unit's widening alone would add to the score of a candidate, to first order; journalled.

        Up to a common factor, for what the loss is divided by is taken from the dense network.

        Args:
            allocation: the candidate.
            widths: per unit, the wider counts to predict.
        """

        def computed() -> list[list[float]]:
            slopes = self._retrying(lambda: self._slopes(allocation))

            def gain(unit: int, count: int) -> float:
                wider = (*allocation[:unit], count, *allocation[unit + 1 :])
                found = -slopes.change(self.pruner.kept(wider)) / self.dense_loss
                return found if math.isfinite(found) else 0.0  # a candidate that does not compute says nothing

            return [[gain(unit, count) for count in wider] for unit, wider in enumerate(widths)]

        key: list[Any] = [list(allocation), [list(wider) for wider in widths]]
        return [list(map(float, gains)) for gains in self.journal.once("gains", key, computed)]

    def _slopes(self, allocation: Allocation) -> Slopes:
        weights = torch.tensor(self._dense["weights"], device=self.adapter.device)

        def loss(batch: Batch) -> Callable[[nn.Module], torch.Tensor]:
            return lambda module: (self._loss_sum(module, batch).totals / weights).sum()

        return measure_slopes(
            self.pruner.module,
            self.pruner.space.graph,
            self.pruner.kept(allocation),
            self._moments if self.compensate else None,
            [loss(batch) for batch in self._batches],
        )

    # -- networks ------------------------------------------------------------------------------

    def materialise(self, allocation: Allocation) -> nn.Module:
        """Return the candidate as a new network, compensated if requested, batch norm not yet recalibrated."""
        module, pruner = self.pruner.materialise(allocation), self.pruner
        if self.compensate:
            compensate(module, pruner.module, pruner.space.graph, pruner.kept(allocation), self._moments)
        if self.adapter.device.type == "cpu":
            module = module.to(memory_format=torch.channels_last)
        return module

    def repaired(self, allocation: Allocation) -> nn.Module:
        """Return the candidate in eval mode, as it ships before training: see `pruning.prune`."""
        return self._retrying(
            lambda: prune(
                self.pruner,
                allocation,
                criterion=self.criterion,
                example=self.adapter.example(1),
                calibration=self._calibration,
                moments=self._moments if self.compensate else None,
                reconstructed=self.reconstruct,
            )
        )

    def accuracies(self, allocations: Sequence[Allocation]) -> Iterator[Metrics]:
        """Give the recalibrated candidates' accuracies on the scoring images, computed by the runner; journalled."""
        missing = [one for one in allocations if self.journal.lookup("accuracy", list(one)) is None]
        found = self.computed(lambda: self._work(self._accuracy, "_augmented"), missing)
        for allocation in allocations:
            yield Metrics.from_json(self.journal.once("accuracy", list(allocation), partial(next, found)))

    def _accuracy(self, allocation: Allocation) -> dict[str, Any]:
        return self.adapter.accuracy(self.repaired(allocation), self._batches).to_json()

    @property
    def _calibration(self) -> Calibration:
        """What `pruning.calibration_of` gives; the plain images are those that score, and are held already."""
        return Calibration(self._plain, self._augmented)

    @property
    def _plain(self) -> Sequence[torch.Tensor]:
        return [self.adapter.inputs(batch) for batch in self._batches] if self.compensate else []

    @cached_property
    def _moments(self) -> Moments:
        """What compensation knows of the dense network. (From other images than it is scored on, mAP is the same.)."""
        return collect_moments(self.pruner.module, self.pruner.space.graph, self._plain, notify=self._say)

    def _begun_in_bf16(self) -> bool:
        """Return what scores are computed in; a run that is resumed on another machine goes on in the same."""

        def chosen() -> str:
            fast = self.bf16 and self.adapter.autocasts and has_fast_bf16(self.adapter.device)
            return "bf16" if fast else "fp32"

        return bool(self.journal.once("scored in", "", chosen) == "bf16")

    def _work(self, method: Callable[[Allocation], Any], needed: str) -> _Work:
        """Return a method for the runner; what it needs is made here, once for all workers."""
        for name in (needed, "_moments") if self.compensate else (needed,):
            getattr(self, name)
        return _Work(method, self.batch, self._base)


@dataclass(frozen=True)
class _Work:
    """A method of an evaluator for its runner, which takes it anew if the batch or the base network is another."""

    method: Callable[[Allocation], Any]
    batch: int
    base: Allocation | None

    def __call__(self, allocation: Allocation) -> Any:
        return self.method(allocation)
