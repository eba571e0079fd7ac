"""Prefix reuse: candidates that start where they differ from a base network compute what whole ones compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.criteria.registry import make_criterion
from autoprune.evaluation import prefix as prefix_module
from autoprune.evaluation.evaluator import Evaluator
from autoprune.evaluation.prefix import Prefix, first_stages
from autoprune.journal import Journal
from autoprune.models import open_adapter
from autoprune.models._base import Adapter, LossSum
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation, Space
from autoprune.structure.validation import analyse
from tests.helpers import networks
from tests.helpers.detectors import build, write_data, write_detector
from tests.helpers.world import analysed


def pruner_of(module: nn.Module, graph: ChannelGraph, round_to: int = 4) -> Pruner:
    return Pruner(module, Space(graph, round_to=round_to), make_criterion("l1").order(module, graph))


def dense_of(pruner: Pruner) -> Allocation:
    return pruner.space.allocation(pruner.space.dense)


def neighbours(pruner: Pruner, base: Allocation) -> Iterator[Allocation]:
    """Every network that differs from the base in one unit, which has another width than there."""
    for index, choices in enumerate(pruner.space.choices):
        others = [int(choice) for choice in choices if choice != base[index]]
        if others:
            yield (*base[:index], others[len(others) // 2], *base[index + 1 :])


# -- the evaluator on a detector -------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Pruner]:
    folder = tmp_path_factory.mktemp("world")
    write_data(folder / "data")
    adapter = open_adapter(write_detector(folder / "best.pt", build(24)), data=folder / "data" / "data.yaml")
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    return adapter, pruner_of(adapter.module, graph)


Evaluators = Callable[..., Evaluator]


@pytest.fixture
def evaluators(world: tuple[Adapter, Pruner], tmp_path: Path) -> Evaluators:
    """Make evaluators, each with a journal of its own unless told which."""
    paths = (tmp_path / f"journal-{number}.jsonl" for number in range(9))

    def make(journal: Journal | None = None, **options: Any) -> Evaluator:
        journal = journal or Journal.create(next(paths), {})
        return Evaluator(*world, **{"images": 3, "batch": 2, "seed": 0, "journal": journal, **options})

    return make


def test_the_loss_is_divided_once_over_all_images(
    world: tuple[Adapter, Pruner], evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not batch by batch, which gives one with few labels as much weight as one with many."""
    sums = iter(
        [
            LossSum(torch.tensor([6.0, 4.0]), torch.tensor([3.0, 2.0])),
            LossSum(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])),
        ]
    )
    monkeypatch.setattr(world[0], "loss_sum", lambda module, batch: next(sums))
    assert evaluators().dense_loss == pytest.approx(8 / 4 + 4 / 2)


def bases(pruner: Pruner) -> list[Allocation]:
    """The dense network, and two that are narrower in different places."""
    choices = pruner.space.choices
    return [
        dense_of(pruner),
        tuple(int(choice[len(choice) // 2]) for choice in choices),
        tuple(int(choice[-1 if index % 2 else 0]) for index, choice in enumerate(choices)),
    ]


@pytest.mark.parametrize("compensate", [False, True])
def test_scores_are_those_of_whole_candidates(evaluators: Evaluators, compensate: bool) -> None:
    plain, reusing = evaluators(compensate=compensate), evaluators(compensate=compensate)
    for base in bases(plain.pruner):
        reusing.rebase(base)
        candidates = [base, *neighbours(plain.pruner, base), dense_of(plain.pruner)]
        assert len(candidates) > 10
        for candidate in candidates:
            assert reusing._score(candidate) == pytest.approx(plain._score(candidate), rel=1e-5, abs=1e-6)
        assert reusing._prefix is not None
        assert reusing._prefix.base == base
        assert len(reusing._prefix.cuts) >= 5
        assert {reusing._prefix.cut(candidate) for candidate in candidates} == {0, *reusing._prefix.cuts}


def test_stages_before_the_cut_do_not_run(evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluators()
    dense = dense_of(evaluator.pruner)
    evaluator.rebase(dense)
    last = list(neighbours(evaluator.pruner, dense))[-1]
    module = evaluator._shortened(last)
    assert evaluator._prefix is not None
    cut = evaluator._prefix.cut(last)
    stages = [module.get_submodule(stage) for stage in evaluator.adapter.stages(module)]
    assert [not list(stage.parameters()) and stage.i == index for index, stage in enumerate(stages[:cut])] == [
        True
    ] * cut
    assert {type(stage) for stage in stages[cut:]}.isdisjoint({type(stage) for stage in stages[:cut]})


def test_nobody_else_notices(evaluators: Evaluators) -> None:
    evaluator = evaluators()
    dense = dense_of(evaluator.pruner)
    module = evaluator.pruner.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    described = repr(module)
    evaluator.rebase(dense)
    evaluator(list(neighbours(evaluator.pruner, dense)))
    assert repr(module) == described
    assert not module.training
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert repr(evaluator.materialise(dense)) == described
    assert not any("Recorded" in repr(evaluator.materialise(other)) for other in neighbours(evaluator.pruner, dense))


def test_the_journal_does_not_tell(evaluators: Evaluators) -> None:
    plain, reusing = evaluators(), evaluators()
    candidates = list(neighbours(plain.pruner, dense_of(plain.pruner)))
    reusing.rebase(dense_of(plain.pruner))
    for evaluator in (plain, reusing):
        evaluator(candidates)
    one, other = ([(record.kind, record.key) for record in _records(each)] for each in (plain, reusing))
    assert one == other


def _records(evaluator: Evaluator) -> Sequence[Any]:
    return [*evaluator.journal.records("evaluation"), *evaluator.journal.records("batch")]


def test_nothing_is_recorded_for_what_the_journal_knows(evaluators: Evaluators) -> None:
    first = evaluators()
    dense = dense_of(first.pruner)
    candidates = list(neighbours(first.pruner, dense))
    found = first(candidates)
    again = evaluators(journal=first.journal)
    again.rebase(dense)
    assert again(candidates) == found
    assert again._prefix is None


def test_a_network_without_stages_is_scored_whole(evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, reusing = evaluators(), evaluators()
    monkeypatch.setattr(reusing.adapter, "stages", lambda module: ())
    dense = dense_of(plain.pruner)
    reusing.rebase(dense)
    for candidate in list(neighbours(plain.pruner, dense))[::4]:
        assert reusing._score(candidate) == plain._score(candidate)
    assert reusing._prefix is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.8])
def test_what_is_held_is_bounded(evaluators: Evaluators, share: float) -> None:
    plain, unbounded = evaluators(), evaluators()
    base = bases(plain.pruner)[1]
    candidates = list(neighbours(plain.pruner, base))
    unbounded.rebase(base)
    unbounded._score(candidates[0])
    assert unbounded._prefix is not None
    bounded = evaluators(prefix_bytes=int(share * unbounded._prefix.size))
    bounded.rebase(base)
    for candidate in candidates:
        assert bounded._score(candidate) == pytest.approx(plain._score(candidate), rel=1e-5, abs=1e-6)
    assert bounded._prefix is not None
    assert bounded._prefix.size <= bounded.prefix_bytes
    assert set(bounded._prefix.cuts) < set(unbounded._prefix.cuts)
    assert bool(bounded._prefix.cuts) == (share > 0)


def test_out_of_memory_while_recording(evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    plain, reusing = evaluators(), evaluators(notify=told.append)
    dense = dense_of(plain.pruner)
    candidate = next(neighbours(plain.pruner, dense))

    def fail(*arguments: object, **named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Prefix, "record", fail)
    reusing.rebase(dense)
    assert reusing([candidate])[0].score == plain._score(candidate)
    assert reusing.batch == plain.batch
    assert not reusing.journal.records("batch")
    assert len(told) == 1


def test_memory_is_saved_at_the_prefix_before_the_batch(
    evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, reusing = evaluators(batch=1), evaluators()
    dense = dense_of(plain.pruner)
    candidates = list(neighbours(plain.pruner, dense))
    reusing.rebase(dense)
    reusing._score(candidates[0])
    loss, failures = Evaluator._loss, iter([True, True])

    def failing(self: Evaluator, module: nn.Module) -> float:
        if self is reusing and next(failures, False):
            raise MemoryError
        return loss(self, module)

    monkeypatch.setattr(Evaluator, "_loss", failing)
    assert reusing([candidates[-1]])[0].score == plain._score(candidates[-1])
    assert [record.value for record in reusing.journal.records("batch")] == [1]
    assert reusing._prefix is None


def test_another_evaluator_of_the_run_may_halve_the_batch(evaluators: Evaluators) -> None:
    small, reusing = evaluators(batch=1), evaluators()
    dense = dense_of(small.pruner)
    candidates = list(neighbours(small.pruner, dense))
    for one in (small, reusing):
        one.rebase(dense)
        one._score(candidates[0])
    reusing.journal.append("batch", 0, 1)
    assert reusing(candidates[-1:])[0].score == small(candidates[-1:])[0].score


# -- any network -----------------------------------------------------------------------------------


class Joined(nn.Module):
    """Convolves several inputs as one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.relu(self.conv(torch.cat(inputs, 1)))


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs))


class Skipping(nn.Module):
    """With an addition between stages, a stage that works in place, long skips, and the input once more at the end."""

    stages = ("stem", "left", "gate", "right", "same", "join", "again")

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = block(3, 16), block(16, 16), block(16, 12)
        self.gate, self.same = nn.ReLU(inplace=True), nn.Identity()
        self.join, self.again = Joined(28, 12), Joined(15, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = self.stem(images)
        gated = self.gate(self.left(stem) + stem)
        join = self.join([self.same(self.right(gated)), stem])
        out: torch.Tensor = self.head(self.again([join, images]).mean((2, 3)))
        return out


class Increment(nn.Module):
    """Changes its input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.add_(1)


@lru_cache(maxsize=1)
def skipping() -> tuple[Pruner, tuple[int, ...]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Skipping().double().eval()
    graph = analyse(module, batches()[0])
    return pruner_of(module, graph, round_to=1), first_stages(graph, module, Skipping.stages)


def batches(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(size, 3, 12, 12, dtype=dtype, generator=generator) for size in (3, 3, 1)]


def record(
    module: nn.Module, stages: Sequence[str], starts: Sequence[int], base: Allocation, **options: Any
) -> tuple[Prefix, list[torch.Tensor]]:
    outputs: list[torch.Tensor] = []
    passes = [
        lambda images=images: outputs.append(module(images)) for images in batches(next(module.parameters()).dtype)
    ]
    return Prefix.record(module.train(), passes, base=base, stages=stages, starts=starts, **options), outputs


def run(module: nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        return [module.train()(images) for images in batches(next(module.parameters()).dtype)]


def test_the_first_stage_of_a_unit_makes_its_channels() -> None:
    pruner, starts = skipping()
    found = {unit.name: Skipping.stages[start] for unit, start in zip(pruner.space.units, starts, strict=True)}
    assert found == {"stem.0": "stem", "right.0": "right", "join": "join", "again": "again"}


@settings(max_examples=30)
@given(st.data())
def test_any_neighbour_within_any_bound(data: st.DataObject) -> None:
    pruner, starts = skipping()
    networks = st.tuples(*(st.sampled_from(choices.tolist()) for choices in pruner.space.choices))
    base = data.draw(networks)
    changed = data.draw(st.integers(0, len(base)))
    candidate = (*base[:changed], *data.draw(networks)[changed:])
    limit = data.draw(st.integers(0, 200_000))
    prefix, _ = record(pruner.materialise(base), Skipping.stages, starts, base, limit=limit)
    assert prefix.size <= limit
    for _ in range(2):  # nor does one candidate spoil the next
        shortened = run(prefix.shorten(pruner.materialise(candidate), candidate))
        for one, other in zip(shortened, run(pruner.materialise(candidate)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_everything_is_reused_where_it_fits() -> None:
    pruner, starts = skipping()
    dense = dense_of(pruner)
    prefix, outputs = record(pruner.materialise(dense), Skipping.stages, starts, dense)
    assert prefix.cuts == (3, 5, 6)
    module = prefix.shorten(pruner.materialise(dense), dense)
    assert not any(list(module.get_submodule(stage).parameters()) for stage in Skipping.stages[:6])
    for one, other in zip(run(module), outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_a_later_stage_overwrites_is_not_reused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), Increment(), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1))
    prefix, outputs = record(module, "0123", (0, 1, 2, 3), (1, 1, 1, 1))
    assert prefix.cuts == (2, 3)
    for one, other in zip(run(prefix.shorten(module, (1, 1, 0, 1))), outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("stages", ["10", "012", "02"], ids=["out of order", "run twice", "nested"])
def test_stages_that_are_none_are_not_reused(stages: str) -> None:
    shared = nn.Conv2d(3, 3, 1)
    module = nn.Sequential(nn.Sequential(shared), nn.ReLU(), shared)
    paths = {"10": ("1", "0"), "012": ("0", "1", "0.0"), "02": ("0", "0.0")}[stages]
    prefix, _ = record(module, paths, (0, 1), (1, 1))
    assert prefix.cuts == ()
    assert prefix.size == 0


def test_a_shared_tensor_counts_where_it_is_used_first() -> None:
    first, second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
    second.weight = first.weight
    module = nn.Sequential(first, nn.BatchNorm2d(3), second)
    pruner, _ = skipping()
    graph = pruner.space.graph
    listed = {"2.weight": ((0, graph.tensors["right.0.weight"][0][1]),)}
    starts = first_stages(type(graph)(**{**vars(graph), "tensors": listed}), module, "012")
    assert dict(zip((unit.name for unit in graph.units), starts, strict=True))["right.0"] == 0


@pytest.mark.parametrize("seconds", [[1.0, 1.0, 10.0, 0.0], [10.0, 0.0, 0.0, 0.0]], ids=["late", "early"])
def test_the_cut_that_saves_most_is_kept(seconds: list[float]) -> None:
    needs = {cut: frozenset({cut - 1}) for cut in (1, 2, 3)}
    kept = prefix_module._affordable(
        needs, starts=(1, 2, 3), seconds=seconds, size=lambda stages: 10 * len(list(stages)), limit=10
    )
    assert list(kept) == ([3] if seconds[0] == 1 else [1])


# -- stock architectures ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("yolo11n", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("yolov5n", "yolov9t", "yolo26n", "resnet18")),
    ],
)
def test_one_unit_per_stage_of_stock_networks(name: str) -> None:
    module = networks.build(name)
    graph = analyse(module, networks.example(), free_outputs=networks.FREE_OUTPUTS)
    pruner = pruner_of(module, graph, round_to=8)
    stages = [path for path, _ in module.named_children()]
    if name.startswith("yolo"):
        stages = [f"model.{index}" for index in range(len(module.model) - 1)]  # type: ignore[arg-type]
    starts = first_stages(graph, module, stages)
    dense = dense_of(pruner)
    base = pruner.materialise(dense)
    images = [networks.example(64), networks.example(64).flip(-1)]
    passes = [partial(base.train(), batch) for batch in images]
    prefix = Prefix.record(base, passes, base=dense, stages=stages, starts=starts)
    candidates = {prefix.cut(candidate): candidate for candidate in neighbours(pruner, dense)}
    assert set(candidates) == {0, *prefix.cuts}
    assert len(candidates) >= 4
    for candidate in candidates.values():
        shortened = prefix.shorten(pruner.materialise(candidate).train(), candidate)
        whole = pruner.materialise(candidate).train()
        with torch.no_grad():
            for batch in images:
                for one, other in zip(
                    networks.compared(shortened(batch)), networks.compared(whole(batch)), strict=True
                ):
                    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
