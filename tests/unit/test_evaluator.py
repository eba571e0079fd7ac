"""The evaluator: a score is one loss divided by another, whatever the order, the batches, and what was known before."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.criteria.registry import make_criterion
from autoprune.errors import DeviceError, ModelError
from autoprune.evaluation.evaluator import WORST_SCORE, Evaluator, has_fast_bf16
from autoprune.evaluation.runners import RUNNERS, Runner, RunnerOptions, RunnerSpec, SerialRunner, Usage
from autoprune.journal import Journal
from autoprune.statistics.moments import collect_moments
from autoprune.structure.graph import ChannelGraph, LayerKind
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation, Space
from autoprune.structure.validation import analyse
from tests.contracts.runners import check_runner
from tests.helpers.own_network import KINDS, SHAPE, Net, adapter, loss, trained

IMAGES = 10


class Plain(nn.Module):
    """A network without batch norm: what it gives for an image does not depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(SHAPE[0], 8, 3, 2, 1)
        self.second = nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Linear(16, len(KINDS))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(image)))).mean((2, 3)))
        return logits


class Twice(Plain):
    """Runs a layer on two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(16, 16, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(image))))
        levels = (torch.tanh(self.shared(level)).mean((2, 3)) for level in (x, 2 * nn.functional.max_pool2d(x, 2)))
        logits: torch.Tensor = self.head(sum(levels))
        return logits


class DropsByFunction(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.3, self.training)


class Dropping(Net):
    """Leaves out values at random while it trains, by modules and by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.left.append(nn.Dropout2d(0.5))
        self.left.append(DropsByFunction())


@cache
def network(kind: type[nn.Module]) -> tuple[nn.Module, ChannelGraph]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = trained(kind())
    return module, analyse(module, torch.zeros(2, *SHAPE))


Evaluators = Callable[..., Evaluator]


@pytest.fixture
def evaluators(tmp_path: Path) -> Iterator[Evaluators]:
    """Make evaluators, each with a journal of its own unless it is named."""
    journals: list[Journal] = []

    def make(kind: type[nn.Module] = Net, *, path: Path | None = None, loss: Any = loss, **options: Any) -> Evaluator:
        module, graph = network(kind)
        world = adapter(module, loss=loss)
        world.autocasts = options.pop("autocasts", True)
        world.concurrent = options.pop("concurrent", False)
        path = path or tmp_path / f"{len(journals)}.jsonl"
        journals.append(Journal.open(path) if path.exists() else Journal.create(path, {}))
        pruner = Pruner(world.module, Space(graph, round_to=1), make_criterion("l1").order(world.module, graph))
        return Evaluator(world, pruner, **{"images": IMAGES, "batch": 4, "seed": 0, "journal": journals[-1], **options})

    yield make
    for journal in journals:
        journal.close()


def dense_of(evaluator: Evaluator) -> Allocation:
    return evaluator.pruner.space.allocation(evaluator.pruner.space.dense)


def candidates(evaluator: Evaluator) -> list[Allocation]:
    """Return the dense network, and every network that has half of one unit's channels."""
    dense = dense_of(evaluator)
    return [dense, *((*dense[:unit], dense[unit] // 2, *dense[unit + 1 :]) for unit in range(len(dense)))]


def test_a_score_is_one_less_the_share_of_the_dense_loss(evaluators: Evaluators) -> None:
    evaluator = evaluators()
    asked = candidates(evaluator)
    found = evaluator(asked)
    batches = evaluator.adapter.batches("train", images=IMAGES, batch=4, seed=0)

    def mean_loss(allocation: Allocation) -> float:
        module = evaluator.pruner.materialise(allocation).train()
        with torch.no_grad():
            return sum(len(b["targets"]) * float(loss(module, b["images"], b["targets"])) for b in batches) / IMAGES

    assert [one.allocation for one in found] == asked
    assert evaluator.dense_loss == pytest.approx(mean_loss(asked[0]), rel=1e-5)
    assert found[0].score == pytest.approx(0, abs=1e-6)
    for one in found[1:]:
        assert one.score == pytest.approx(1 - mean_loss(one.allocation) / mean_loss(asked[0]), rel=1e-4, abs=1e-5)
        assert evaluator.score(evaluator.pruner.materialise(one.allocation)) == pytest.approx(one.score, abs=1e-6)
    assert len({one.score for one in found}) == len(found)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_scores_are_in_the_order_asked_for_and_do_not_depend_on_it(evaluators: Evaluators, data: st.DataObject) -> None:
    evaluator, other = evaluators(Plain), evaluators(Plain)
    asked = data.draw(st.permutations(candidates(evaluator)))
    asked = [*asked, *data.draw(st.lists(st.sampled_from(asked), max_size=3))]
    cut = data.draw(st.integers(0, len(asked)))
    scores = {one.allocation: one.score for one in other(candidates(evaluator))}
    found = [*evaluator(asked[:cut]), *evaluator(asked[cut:])]
    assert [(one.allocation, one.score) for one in found] == [(one, scores[one]) for one in asked]
    assert evaluator.counts.evaluations == len(asked)
    assert evaluator.counts.cache_hits == len(asked) - len(set(asked))


def test_what_is_scored_while_others_are_given_one_by_one_changes_none_of_them(evaluators: Evaluators) -> None:
    evaluator = evaluators()
    asked = candidates(evaluator)
    scores = [one.score for one in evaluators()(asked)]
    found = []
    for one in evaluator.each(asked):
        found.append(one.score)
        evaluator(asked[1:3])
    assert found == scores


@pytest.mark.parametrize("batch", [1, 3, IMAGES])
def test_scores_do_not_depend_on_how_images_fall_into_batches(evaluators: Evaluators, batch: int) -> None:
    whole, split = evaluators(Plain, batch=4), evaluators(Plain, batch=batch)
    assert split.dense_loss == pytest.approx(whole.dense_loss, rel=1e-5)
    for one, other in zip(whole(candidates(whole)), split(candidates(split)), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)


def test_compensation_changes_candidates_and_not_the_dense_network(evaluators: Evaluators) -> None:
    plain, better = evaluators(), evaluators(compensate=True)
    halves = candidates(plain)[1:]
    assert better([dense_of(better)])[0].score == pytest.approx(0, abs=1e-6)
    gained = [b.score - a.score for a, b in zip(plain(halves), better(halves), strict=True)]
    assert sum(gained) > 0.05
    assert sum(gain > 0 for gain in gained) > len(gained) / 2


# -- what the journal knows ------------------------------------------------------------------------------


def refuses(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    raise AssertionError("nothing is left to compute")


def test_what_the_journal_knows_is_not_computed(evaluators: Evaluators, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    first = evaluators(path=path)
    found = first(candidates(first))
    first.journal.close()
    again = evaluators(path=path, loss=refuses)
    assert again(candidates(again)) == found, "seconds too"
    assert again.dense_loss == first.dense_loss
    assert again.counts.cache_hits == 0, "a score from the journal counts as an evaluation, as it did then"
    assert again.counts.seconds == pytest.approx(sum(one.seconds for one in found))


def test_evaluations_of_another_kind_are_others(evaluators: Evaluators, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    first = evaluators(path=path)
    few = Evaluator(first.adapter, first.pruner, images=4, batch=4, seed=0, journal=first.journal, kind="few")
    half = candidates(first)[1]
    assert few([half])[0].score != first([half])[0].score
    assert few.dense_loss != first.dense_loss
    assert [len(first.journal.records(kind)) for kind in ("few", "evaluation")] == [1, 1]


def test_the_accuracy_is_measured_once(evaluators: Evaluators, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    first = evaluators(path=path)
    half = candidates(first)[1]
    found = next(first.accuracies([half]))
    first.journal.close()
    again = evaluators(path=path)
    again.repaired = None  # type: ignore[assignment,method-assign]
    assert next(again.accuracies([half])) == found


class UnorderedWorkers:
    """Has copies of the evaluator, as other processes hold them, compute a batch; the first answer comes last."""

    usage = Usage(workers=2)

    def __init__(self) -> None:
        self._function: Any = None
        self._workers: list[Callable[[Any], Any]] = []

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        if function != self._function:  # as runners do, which send a function once
            self._function, self._workers = function, [pickle.loads(pickle.dumps(function)) for _ in range(2)]
        workers = self._workers
        with ThreadPoolExecutor(1) as pool:  # one thread: torch's gradient mode and rounding do not change
            later = {item: pool.submit(workers[n % 2], item) for n, item in reversed(list(enumerate(items)))}
        return (later[item].result() for item in items)


def test_nothing_of_a_score_is_random(evaluators: Evaluators) -> None:
    dropping, plain = evaluators(Dropping, compensate=True), evaluators(Dropping, compensate=True)
    chosen = candidates(dropping)
    widths = [[unit.width] for unit in dropping.pruner.space.units]
    half = tuple(unit.width // 2 for unit in dropping.pruner.space.units)
    first = [one.score for one in dropping(chosen)], dropping.gains(half, widths)
    state = dropping.repaired(half).state_dict()
    torch.manual_seed(1)
    assert ([one.score for one in plain(chosen)], plain.gains(half, widths)) == first
    assert all(map(torch.equal, plain.repaired(half).state_dict().values(), state.values()))
    assert dropping.pruner.module.left[-2].p == 0.5


def test_covariances_are_collected_once_for_all_workers(
    evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = evaluators(path=tmp_path / "one.jsonl", compensate=True)
    chosen = candidates(first)
    first(chosen[:1])
    first.journal.close()
    again = evaluators(path=tmp_path / "one.jsonl", compensate=True, runner=UnorderedWorkers())
    collected: list[object] = []

    def counted(*given: Any, **options: Any) -> Any:
        collected.append(given)
        return collect_moments(*given, **options)

    monkeypatch.setattr("autoprune.evaluation.evaluator.collect_moments", counted)
    again(chosen)
    assert len(collected) == 1


@pytest.mark.parametrize("runner", [SerialRunner(), UnorderedWorkers()], ids=lambda one: type(one).__name__)
def test_a_score_does_not_depend_on_how_a_batch_is_computed(evaluators: Evaluators, runner: Runner) -> None:
    check_runner(runner, lambda one: evaluators(runner=one), candidates(evaluators()))


def test_accuracies_are_the_same_on_workers_and_read_no_image_there(
    evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blind(UnorderedWorkers):
        def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
            with monkeypatch.context() as patch:
                patch.setattr(type(here.adapter), "calibration", None)
                return iter(list(super().map(function, items)))

    here = evaluators()
    chosen = candidates(here)[:3]
    assert list(evaluators(runner=Blind()).accuracies(chosen)) == list(here.accuracies(chosen))


@pytest.mark.slow
@pytest.mark.parametrize("spec", RUNNERS, ids=lambda spec: spec.name)
def test_every_runner_keeps_the_contract(evaluators: Evaluators, spec: RunnerSpec) -> None:
    if spec.name == "ray":
        pytest.importorskip("ray", reason="pip install ray")
    with spec.open(RunnerOptions()) as runner:
        check_runner(runner, lambda one: evaluators(runner=one), candidates(evaluators()))


def test_workers_share_what_may_be_held_of_a_base(evaluators: Evaluators) -> None:
    evaluator = evaluators(runner=UnorderedWorkers(), prefix_bytes=100)
    assert pickle.loads(pickle.dumps(evaluator)).prefix_bytes == 50


def test_workers_compute_the_same_and_tell_nobody(evaluators: Evaluators) -> None:
    told: list[str] = []
    evaluator = evaluators(notify=told.append)
    asked = candidates(evaluator)
    copy = pickle.loads(pickle.dumps(evaluator))
    copy.notify("nothing")
    assert [one.score for one in copy(asked)] == [one.score for one in evaluator(asked)]
    assert told == []


# -- numbers -------------------------------------------------------------------------------------------------


def cpu_with(instructions: str, there: bool = True) -> Callable[[], dict[str, bool]]:
    return lambda: {instructions: there, "avx512_f": True}


@pytest.mark.parametrize("instructions", ["amx_bf16", "avx512_bf16"])
def test_bf16_is_fast_on_cpus_with_instructions_for_it(monkeypatch: pytest.MonkeyPatch, instructions: str) -> None:
    for there in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", cpu_with(instructions, there), raising=False)
        assert has_fast_bf16(torch.device("cpu")) is there
        assert not has_fast_bf16(torch.device("cuda"))
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_fast_bf16(torch.device("cpu")), "torch before 2.11 does not say"


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[bool]:
    """Hold whether any loss was computed in bf16, and in float32; the CPU is fast in both."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", cpu_with("amx_bf16"), raising=False)
    return set()


def watching(used: set[bool]) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]:
    def watched(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        used.add(torch.is_autocast_enabled("cpu"))
        return loss(module, images, kinds)

    return watched


@pytest.mark.parametrize(
    ("asked", "fast", "autocasts"), [(True, True, True), (False, True, True), (True, False, True), (True, True, False)]
)
def test_scores_are_computed_in_bf16_where_that_pays(
    evaluators: Evaluators, used: set[bool], monkeypatch: pytest.MonkeyPatch, asked: bool, fast: bool, autocasts: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", cpu_with("amx_bf16", fast), raising=False)
    evaluator = evaluators(Plain, loss=watching(used), bf16=asked, autocasts=autocasts)
    evaluator(candidates(evaluator)[1:2])
    assert used == {asked and fast and autocasts}


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_goes_on_in_what_it_was_begun_in(
    evaluators: Evaluators, used: set[bool], tmp_path: Path, begun: bool
) -> None:
    first = evaluators(Plain, path=tmp_path / "kept.jsonl", bf16=begun)
    first.journal.close()
    again = evaluators(Plain, path=tmp_path / "kept.jsonl", bf16=not begun, loss=watching(used))
    again(candidates(again)[1:2])
    assert used == {begun}


@pytest.mark.parametrize(("value", "score"), [(float("nan"), WORST_SCORE), (float("inf"), WORST_SCORE), (99.0, -10.0)])
def test_a_candidate_that_does_not_compute_has_the_worst_score(
    evaluators: Evaluators, value: float, score: float
) -> None:
    """Its score is also the worst where its loss is a number, but many times the dense one."""

    def broken(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        found = loss(module, images, kinds)
        return found if module.get_submodule("first").weight.shape[0] == 8 else found * value  # type: ignore[union-attr,index]

    evaluator = evaluators(Plain, loss=broken)
    first = next(index for index, unit in enumerate(evaluator.pruner.space.units) if unit.width == 8)
    assert evaluator([candidates(evaluator)[1 + first]])[0].score == score
    assert evaluator([candidates(evaluator)[2 - first]])[0].score > -1


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_dense_network_without_a_loss_is_refused(evaluators: Evaluators, value: float) -> None:
    with pytest.raises(ModelError, match=r"The dense network's loss .* must be a positive number, got "):
        evaluators(Plain, loss=lambda module, images, kinds: loss(module, images, kinds) * 0 + value)


# -- memory ----------------------------------------------------------------------------------------------------


def hungry(most: int) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the loss of a machine that holds so many images."""

    def limited(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        if len(images) > most:
            raise torch.OutOfMemoryError("no")
        return loss(module, images, kinds)

    return limited


def test_the_batch_is_halved_until_it_fits_and_stays_so(evaluators: Evaluators, tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "kept.jsonl"
    evaluator, whole = evaluators(Plain, path=path, batch=8, loss=hungry(2), notify=told.append), evaluators(Plain)
    asked = candidates(evaluator)
    found = evaluator(asked)
    assert evaluator.batch == 2
    assert [text.split("; ")[1] for text in told] == ["going on with 4.", "going on with 2."]
    for one, other in zip(found, whole(asked), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
    evaluator.journal.close()
    assert evaluators(Plain, path=path, batch=8, loss=refuses).batch == 2, "what is resumed begins with what fitted"


class Scarce:
    """The loss of a machine whose memory may get less: ``most`` is how many images it holds, after some losses 4."""

    def __init__(self) -> None:
        self.most, self.after = 8, 10**9

    def __call__(self, module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        self.after -= 1
        if self.after < 0:
            self.most = 4
        return hungry(self.most)(module, images, kinds)


def test_scores_after_halving_are_those_of_a_run_with_half_the_batch(evaluators: Evaluators) -> None:
    """Batch norm takes each batch's own statistics, so the dense loss, too, must be that of the smaller batch."""
    scarce = Scarce()
    halved, small = evaluators(batch=8, loss=scarce, compensate=True), evaluators(batch=4, compensate=True)
    asked = candidates(halved)
    before = halved(asked[1:3])
    scarce.most = 4
    assert halved([asked[0]])[0].score == pytest.approx(0, abs=1e-6)
    assert halved.dense_loss == small.dense_loss
    assert [one.score for one in halved(asked[3:])] == [one.score for one in small(asked[3:])]
    widths = [[int(width)] for width in halved.pruner.space.dense]
    assert halved.gains(asked[3], widths) == small.gains(asked[3], widths)
    for one, other in zip(halved.repaired(asked[1]).parameters(), small.repaired(asked[1]).parameters(), strict=True):
        assert torch.equal(one, other)
    assert halved(asked[1:3]) == before, "what the search has gone by stays"


def test_a_resumed_run_that_halved_ends_like_one_that_was_not_interrupted(
    evaluators: Evaluators, tmp_path: Path
) -> None:
    def begun(path: Path) -> tuple[Evaluator, Evaluator]:
        scarce = Scarce()
        run = evaluators(path=path, batch=8, loss=scarce)
        other = Evaluator(run.adapter, run.pruner, images=8, batch=8, seed=0, journal=run.journal, kind="other")
        run(asked[:3])
        scarce.most = 4
        run(asked[3:5])
        return run, other

    asked = candidates(evaluators())
    whole, others = begun(tmp_path / "whole.jsonl")
    killed, _ = begun(tmp_path / "killed.jsonl")
    killed.journal.close()
    again = evaluators(path=tmp_path / "killed.jsonl", batch=8)
    assert [one.score for one in again(asked)] == [one.score for one in whole(asked)]
    assert next(again.accuracies(asked[1:2])) == next(whole.accuracies(asked[1:2]))
    other = Evaluator(again.adapter, again.pruner, images=8, batch=8, seed=0, journal=again.journal, kind="other")
    assert others.dense_loss == other.dense_loss
    assert other(asked[1:2])[0].score == others(asked[1:2])[0].score, "all evaluators of a run halve together"


def test_memory_may_run_out_between_two_candidates(evaluators: Evaluators) -> None:
    scarce = Scarce()
    run, large, small = evaluators(batch=8, loss=scarce), evaluators(batch=8), evaluators(batch=4)
    asked = candidates(run)
    scarce.after = 2 * len(run._batches)
    expected = [*large(asked[:2]), *small(asked[2:])]
    assert [(one.allocation, one.score) for one in run(asked)] == [(one.allocation, one.score) for one in expected]


def test_only_the_run_halves_and_no_worker_alone(evaluators: Evaluators) -> None:
    scarce = Scarce()
    run, alone = evaluators(batch=8, loss=scarce, runner=UnorderedWorkers()), evaluators(batch=4)
    scarce.most = 4
    asked = candidates(run)
    assert [one.score for one in run(asked)] == [one.score for one in alone(asked)]
    assert list(run.accuracies(asked[:2])) == list(alone.accuracies(asked[:2]))
    scarce.most = 3
    copy = pickle.loads(pickle.dumps(run))
    with pytest.raises(torch.OutOfMemoryError):
        copy.score(copy.materialise(asked[0]))
    assert copy.batch == run.batch == 4


def test_finalists_halve_the_batch_too(evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch) -> None:
    run, small = evaluators(batch=8), evaluators(batch=4)
    asked = candidates(run)[:2]
    accuracy = type(run.adapter).accuracy

    def scarce(self: Any, module: nn.Module, batches: Sequence[Any]) -> Any:
        if len(self.inputs(batches[0])) > 4:
            raise RuntimeError("CUDA error: out of memory")
        return accuracy(self, module, batches)

    monkeypatch.setattr(type(run.adapter), "accuracy", scarce)
    assert list(run.accuracies(asked)) == list(small.accuracies(asked))
    assert run.batch == 4


@pytest.mark.parametrize("compensate", [False, True])
def test_what_ships_halves_the_batch_too(
    evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch, compensate: bool
) -> None:
    run, small = evaluators(batch=8, compensate=compensate), evaluators(batch=4, compensate=compensate)
    half = candidates(run)[1]
    expected = small.repaired(half).state_dict()
    forward = Net.forward

    def scarce(self: Net, image: torch.Tensor) -> torch.Tensor:
        if len(image) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return forward(self, image)

    monkeypatch.setattr(Net, "forward", scarce)
    found = run.repaired(half).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_images_are_read_once_and_notes_said_once(evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("autoprune.evaluation.evaluator.collect_moments", partial(collect_moments, limit=0))
    first = evaluators(compensate=True, notify=said.append)
    monkeypatch.setattr(type(first.adapter), "batches", None)
    second = replace(first, kind="second", like=first)
    half = candidates(first)[1:2]
    assert [one.score for one in second(half)] == [one.score for one in first(half)]
    assert [note.split()[:3] for note in said] == [["Compensation", "leaves", "out"]]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set torch's threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "each", "at_once"), [(1, 1, 1), (2, 1, 2), (7, 2, 3)])
def test_batches_that_may_be_computed_at_once_share_the_threads(
    evaluators: Evaluators, threads: Callable[[int], None], count: int, each: int, at_once: int
) -> None:
    used: set[tuple[int, int]] = set()

    def watched(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        used.add((get_ident(), torch.get_num_threads()))
        return loss(module, images, kinds)

    threads(1)
    evaluator = evaluators(loss=watched, concurrent=True)
    asked = candidates(evaluator)
    alone = [one.score for one in evaluators()(asked)]
    used.clear()
    threads(count)
    score = evaluator.score(evaluator.materialise(asked[1]))
    assert {number for _, number in used} == {each}
    assert len({thread for thread, _ in used}) <= at_once
    assert torch.get_num_threads() == count
    if each == 1:
        assert score == alone[1], "the score of one thread, bit for bit"
        assert [one.score for one in evaluator(asked)] == alone


def test_batches_of_other_networks_are_computed_one_after_another(
    evaluators: Evaluators, threads: Callable[[int], None]
) -> None:
    """A network of one's own may keep something between two passes, and a loss, too."""
    used: set[int] = set()

    def watched(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        used.add(get_ident())
        return loss(module, images, kinds)

    threads(2)
    evaluator = evaluators(loss=watched)
    evaluator(candidates(evaluator))
    assert used == {get_ident()}


def test_one_image_that_does_not_fit_is_an_error(evaluators: Evaluators) -> None:
    with pytest.raises(DeviceError, match=r"one image per batch; use a smaller `imgsz` or another `device`"):
        evaluators(Plain, loss=hungry(0))


def test_other_errors_are_not_taken_for_a_lack_of_memory(evaluators: Evaluators) -> None:
    def broken(module: nn.Module, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        evaluators(Plain, loss=broken)


# -- first order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Plain, Net, Twice])
def test_gains_are_the_slopes_of_the_score(evaluators: Evaluators, kind: type[nn.Module]) -> None:
    """Against differences: every layer that reads the added channels reads a hundredth of them."""
    evaluator = evaluators(kind)
    pruner, graph = evaluator.pruner, evaluator.pruner.space.graph
    base = tuple(int(width) // 2 for width in pruner.space.dense)
    widths = [[count + 1, int(width)] for count, width in zip(base, pruner.space.dense, strict=True)]
    gains = evaluator.gains(base, widths)
    kept = torch.from_numpy(pruner.kept(base))

    def given(part: torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor]], tuple[torch.Tensor]]:
        return lambda module, inputs: (inputs[0] * part.view(1, -1, *[1] * (inputs[0].ndim - 2)),)

    def score(share: float, added: torch.Tensor) -> float:
        """Return the score of the dense network whose layers read this share of the added channels."""
        module, read = evaluator.adapter.module, (kept + share * added).float()
        with ExitStack() as hooks:
            for name, layer in {layer.name: layer for layer in graph.layers}.items():
                if layer.kind in (LayerKind.CONV, LayerKind.LINEAR):
                    hook = given(read[graph.axes[layer.in_axis]])
                    hooks.enter_context(module.get_submodule(name).register_forward_pre_hook(hook))
            return evaluator.score(module)

    for unit, wider in enumerate(widths):
        for gain, count in zip(gains[unit], wider, strict=True):
            added = torch.from_numpy(pruner.kept((*base[:unit], count, *base[unit + 1 :]))) & ~kept
            slope = (score(1e-2, added) - score(-1e-2, added)) / 2e-2
            assert gain == pytest.approx(slope, rel=0.05, abs=2e-4)
    assert max(abs(gain) for several in gains for gain in several) > 0.01


def test_gains_of_what_does_not_compute_are_zero(evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluators(Plain)
    monkeypatch.setattr("autoprune.evaluation.slopes.Slopes.change", lambda *_: float("nan"))
    base = tuple(unit.width // 2 for unit in evaluator.pruner.space.units)
    widths = [[unit.width] for unit in evaluator.pruner.space.units]
    assert evaluator.gains(base, widths) == [[0.0]] * len(base)


def test_gains_are_measured_once(evaluators: Evaluators, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    first = evaluators(Plain, path=path)
    base = candidates(first)[1]
    widths = [
        [int(width)] if count < width else [] for count, width in zip(base, first.pruner.space.dense, strict=True)
    ]
    gains = first.gains(base, widths)
    assert [len(several) for several in gains] == [len(several) for several in widths]
    first.journal.close()
    assert evaluators(Plain, path=path, loss=refuses).gains(base, widths) == gains
