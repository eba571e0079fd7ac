"""The covariance criterion: what the other channels can stand in for goes first."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.criteria._base import CalibrationData
from autoprune.criteria.covariance import CovarianceImportance, _inner, _Reading
from autoprune.criteria.registry import make_criterion
from autoprune.errors import ModelError
from autoprune.evaluation.evaluator import Evaluator
from autoprune.evaluation.pruning import evidence_of
from autoprune.journal import Journal
from autoprune.listener import SilentListener, hearing
from autoprune.models import open_adapter
from autoprune.statistics.moments import Moments, collect_moments
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers.world import analysed
from tests.unit.test_compensation import Reader
from tests.unit.test_folding import randomised

IMAGES = torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(3))
EVIDENCE = CalibrationData([IMAGES], lambda batch: batch, lambda net, batch: net(batch).square().mean())


def lost(covariance: npt.NDArray[np.float64], products: npt.NDArray[np.float64], removed: list[int]) -> float:
    """Return what a layer loses with a set of channels, the others' weights solved for it."""
    kept = [index for index in range(len(covariance)) if index not in removed]
    cross = covariance[np.ix_(kept, removed)]
    left = covariance[np.ix_(removed, removed)] - cross.T @ np.linalg.solve(covariance[np.ix_(kept, kept)], cross)
    return float((products[np.ix_(removed, removed)] * left).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([1, 2, 3]))
def test_losses_are_those_of_the_least_squares_solution(seed: int, times: int) -> None:
    """One channel after another, each read one time or several, some of what the layer reads of other groups."""
    rng, channels = np.random.default_rng(seed), 4
    size = channels * times + 3
    factors = rng.normal(size=(2, size, size + 2))
    covariance, products = (factor @ factor.T for factor in factors)
    places = rng.permutation(size)[: channels * times].reshape(channels, times)
    reading = _Reading(places, np.linalg.inv(covariance), products)
    removed: list[int] = []
    left = list(range(channels))
    while left:
        before = lost(covariance, products, removed) if removed else 0.0
        expected = [lost(covariance, products, [*removed, *places[channel]]) - before for channel in left]
        np.testing.assert_allclose(reading.losses(), expected, rtol=1e-6)
        gone = int(rng.integers(len(left)))
        removed.extend(places[left.pop(gone)])
        reading.remove(gone)


def ranked(module: nn.Module, group: str) -> list[int]:
    """Return a group's channels, the first to go last."""
    graph = analyse(module, torch.zeros(2, 3, 12, 12))
    order = CovarianceImportance(EVIDENCE).order(module, graph)
    return list(order[[one.name for one in graph.groups].index(group)])


@pytest.fixture
def reader() -> Any:
    torch.manual_seed(0)
    module: Any = randomised(Reader(), 0).float()
    with torch.no_grad():  # no channel is dead, and all weigh alike
        module.bn.weight.fill_(1.0)
        module.bn.bias.fill_(1.0)
        module.plain.weight /= module.plain.weight.norm(dim=0, keepdim=True)
    return module


def test_of_two_equal_channels_one_goes_first_and_the_other_does_not_follow(reader: Any) -> None:
    with torch.no_grad():
        for tensor in (reader.make.weight, *reader.bn.state_dict().values()):
            if tensor.ndim:
                tensor[5] = tensor[2]
    order = ranked(reader, "make")
    assert order[-1] in (2, 5)
    assert {2, 5} - {order[-1]} == {order[0]}, "the one that is left stands for both"


def test_a_constant_channel_goes_first(reader: Any) -> None:
    with torch.no_grad():
        reader.bn.weight[4], reader.bn.bias[4] = 0.0, 1.5
    assert ranked(reader, "make")[-1] == 4


def test_a_channel_that_the_loss_does_not_depend_on_goes_first(reader: Any) -> None:
    with torch.no_grad():
        reader.head.weight[:, 3] = 0.0
        reader.up.weight[:, 3] *= 10.0
    assert ranked(reader, "up")[-1] == 3


class Warnings(SilentListener):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def warn(self, text: str) -> None:
        self.heard.append(text)


def test_a_group_that_no_layer_compensates_is_in_the_order_of_l1(reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = analyse(reader, torch.zeros(2, 3, 12, 12))
    expected = make_criterion("l1").order(reader, graph)
    whole = CovarianceImportance(EVIDENCE).order(reader, graph)
    monkeypatch.setattr("autoprune.criteria.covariance.collect_moments", partial(collect_moments, limit=8 * 6 * 6))
    with hearing(listener := Warnings()):
        found = CovarianceImportance(EVIDENCE).order(reader, graph)
    names = [group.name for group in graph.groups]
    for group in ("make", "plain"):
        assert found[names.index(group)].tolist() == expected[names.index(group)].tolist() != list(range(8))
    assert found[names.index("up")].tolist() == whole[names.index("up")].tolist()
    assert listener.heard == [
        "The criterion covariance leaves out 2 of 3 layers (plain, up): all channel covariances would take 0.0 GB, "
        "more than the limit of 0.0 GB.",
        "The criterion covariance says nothing of 2 channel groups (make, plain), which are ranked by l1.",
    ]


def test_all_is_said_that_is_left_out_and_nothing_else(reader: Any) -> None:
    with hearing(listener := Warnings()):
        CovarianceImportance(EVIDENCE).order(reader, analyse(reader, torch.zeros(2, 3, 12, 12)))
    assert listener.heard == []


def test_the_rounding_of_constants_is_no_information(reader: Any) -> None:
    """Of channels that are constant, the covariance is what float32 leaves of their squares, of any sign."""
    noise = 1e-9 * torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = torch.full((8,), 1e3, dtype=torch.float64)
    moments = Moments({"plain": mean}, {"plain": noise + noise.T}, {})
    precision, _ = _inner(reader, "plain", moments, torch.ones(8))
    assert (np.linalg.eigvalsh(precision) > 0).all()


def test_numbers_that_are_not_finite_advise_another_criterion(reader: Any) -> None:
    evidence = CalibrationData([IMAGES * torch.nan], EVIDENCE.inputs, EVIDENCE.loss)
    with pytest.raises(ModelError, match=r"are not finite.*or take another `criterion`$"):
        CovarianceImportance(evidence).order(reader, analyse(reader, torch.zeros(2, 3, 12, 12)))


@pytest.mark.slow
@pytest.mark.shared
def test_a_uniformly_pruned_detector_is_left_better_than_by_l1(shared: Path, tmp_path: Path) -> None:
    adapter = open_adapter(
        shared / "models" / "bccd-yolov8n-320.pt", data=shared / "data" / "bccd" / "bccd.yaml", image_size=96
    )
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    space = Space(graph)
    allocation = space.allocation(space.round_down(np.full(len(space), 0.35)))
    scores = []
    for name in ("covariance", "l1"):
        order = make_criterion(name, lambda: evidence_of(adapter)).order(adapter.module, graph)
        evaluator = Evaluator(
            adapter,
            Pruner(adapter.module, space, order),
            images=16,
            batch=8,
            seed=0,
            journal=Journal.create(tmp_path / f"{name}.jsonl", {}),
            compensate=True,
        )
        scores.append(evaluator([allocation])[0].score)
    assert scores[0] > scores[1] + 0.02
