"""Sparsity training: what the penalties pull at, how strongly when, and what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.choices import PenaltyName
from autoprune.errors import ModelError, RunError
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.validation import analyse
from autoprune.training.extensions.penalties import Penalty, make_penalty
from autoprune.training.extensions.sparsity import Schedule, SparsityTraining, dead_units
from autoprune.training.extensions.sparsity_record import SHARES, SparsityRecord
from autoprune.training.finetune import EpochReport, finetune
from tests.helpers.detectors import build, write_data, write_detector
from tests.helpers.world import analysed
from tests.unit.test_importance import Net, network

EACH = pytest.mark.parametrize("name", list(PenaltyName))
SEEDS = st.integers(0, 2**16)


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters())


def shaken(seed: int) -> tuple[Net, ChannelGraph]:
    """Return the network with arbitrary weights of either sign, and no gradient yet."""
    module, graph = network()
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(generator=generator)
        parameter.grad = torch.zeros_like(parameter)
    return module, graph


# -- penalties -------------------------------------------------------------------------------------


@EACH
@settings(max_examples=20)
@given(seed=SEEDS, strength=st.floats(1e-4, 10.0), rate=st.floats(1e-3, 0.1))
def test_a_plain_step_takes_rate_times_strength_off_every_scale(
    name: PenaltyName, seed: int, strength: float, rate: float
) -> None:
    module, graph = shaken(seed)
    penalty, parameters = make_penalty(name, module, graph), parameters_of(module)
    before = penalty.scales(parameters)
    penalty.pull(parameters, strength)
    with torch.no_grad():
        for parameter in parameters.values():
            assert parameter.grad is not None
            parameter -= rate * parameter.grad
    expected = np.abs(before - rate * strength)  # what is nearer to 0 than the step goes beyond it
    np.testing.assert_allclose(penalty.scales(parameters), expected, atol=1e-5)


def test_l1_adds_the_sign_of_every_prunable_scale_and_touches_nothing_else() -> None:
    module, graph = shaken(0)
    make_penalty(PenaltyName.L1, module, graph).pull(parameters_of(module), 0.3)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        pulled = name.endswith("bn.weight")
        expected = 0.3 * parameter.detach().sign() if pulled else torch.zeros_like(parameter)
        torch.testing.assert_close(parameter.grad, expected)


def test_group_lasso_is_the_gradient_of_norms_of_whole_channels() -> None:
    """The residual stream: two blocks make it and a depthwise one passes it on; what reads it has no part."""
    module, graph = shaken(1)
    make_penalty(PenaltyName.GROUP_LASSO, module, graph).pull(parameters_of(module), 0.3)
    groups = [("inner",), ("stem", "outer", "depthwise")]
    total = torch.zeros(())
    for blocks in groups:
        tensors = [
            tensor for block in blocks for tensor in module.get_submodule(block).parameters() if tensor.shape[0] == 6
        ]
        rows = torch.cat([tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors], dim=1)
        total = total + rows.shape[1] ** 0.5 * rows.norm(dim=1).sum()
    for name, parameter in module.named_parameters():
        gradient = torch.autograd.grad(total, parameter, retain_graph=True, allow_unused=True)[0]
        expected = torch.zeros_like(parameter) if gradient is None else 0.3 * gradient
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, msg=name)


@EACH
def test_what_is_zero_is_not_pulled(name: PenaltyName) -> None:
    module, graph = shaken(2)
    for parameter in module.parameters():
        parameter.data.zero_()
    make_penalty(name, module, graph).pull(parameters_of(module), 1.0)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in module.parameters())


@EACH
def test_a_frozen_parameter_is_left_out(name: PenaltyName) -> None:
    module, graph = shaken(3)
    module.stem.bn.weight.grad = None
    make_penalty(name, module, graph).pull(parameters_of(module), 1.0)
    assert module.stem.bn.weight.grad is None


@EACH
def test_every_scale_is_of_a_prunable_channel_and_lies_in_one_span(name: PenaltyName) -> None:
    module, graph = shaken(4)
    penalty = make_penalty(name, module, graph)
    places = np.concatenate([np.arange(len(penalty.channels))[span] for span in penalty.spans.values()])
    np.testing.assert_array_equal(places, np.arange(len(penalty.scales(parameters_of(module)))))
    assert set(penalty.channels) == set(np.flatnonzero(graph.prunable))


def test_without_batch_norm_l1_says_what_to_use_instead() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))
    graph = analyse(module, torch.rand(2, 3, 8, 8))
    with pytest.raises(ModelError, match=r"no batch norm .* use `penalty` group-lasso"):
        make_penalty(PenaltyName.L1, module, graph)
    found = make_penalty(PenaltyName.GROUP_LASSO, module, graph).scales(parameters_of(module))
    rows = torch.cat([module[0].weight.flatten(1), module[0].bias[:, None]], dim=1)  # type: ignore[operator,index]
    np.testing.assert_allclose(found, rows.square().mean(1).sqrt().detach(), rtol=1e-5)


@EACH
def test_a_network_of_which_nothing_can_be_pruned_is_refused(name: PenaltyName) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ModelError, match="No channel of this network can be pruned"):
        make_penalty(name, module, analyse(module, torch.rand(2, 3, 8, 8)))


# -- schedule --------------------------------------------------------------------------------------


@given(st.floats(1e-6, 100.0), st.floats(0, 1, exclude_max=True), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_strength_rises_and_then_falls(strength: float, warmup: float, decay: float, a: float, b: float) -> None:
    schedule, (early, late) = Schedule(strength, warmup, decay), sorted((a, b))
    for progress in (early, late):
        assert 0 <= schedule.at(progress) <= strength * (1 + 1e-9)
    if late < warmup:
        assert schedule.at(early) <= schedule.at(late)
    if early >= warmup:
        assert schedule.at(late) <= schedule.at(early) * (1 + 1e-9)
        assert schedule.at(late) >= strength * decay * (1 - 1e-9)


def test_the_ends_of_the_schedule() -> None:
    schedule = Schedule(0.01, warmup=0.25, decay=0.2)
    assert [schedule.at(progress) for progress in (0, 0.125, 0.25, 1)] == pytest.approx([0, 0.005, 0.01, 0.002])
    assert Schedule(0.01).at(0) == Schedule(0.01).at(1) == 0.01


# -- record ----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_a_record_counts_every_scale_and_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, first: list[float], later: list[float]
) -> None:
    record = SparsityRecord.start(np.array(first), penalty="l1", watched="bn")
    record.add_epoch(1, np.array(later))
    record.add_iteration(1, 0, np.array(later))
    for seen, scales in zip(record.epochs, (first, later), strict=True):
        assert sum(seen.counts) == len(scales)
        assert list(seen.quintiles) == sorted(seen.quintiles)
        assert seen.quintiles[-1] == pytest.approx(max(scales), rel=1e-3)
    path = tmp_path_factory.mktemp("record") / "sparsity.json"
    record.save(path)
    assert SparsityRecord.load(path) == record


def test_what_is_trained_again_is_forgotten() -> None:
    record = SparsityRecord.start(np.ones(3), penalty="l1", watched="bn")
    for epoch in (1, 2, 3):
        record.add_iteration(epoch, 2 * epoch, np.ones(1))
        record.add_epoch(epoch, np.ones(3))
    record.cut(1)
    assert [seen.epoch for seen in record.epochs] == [0, 1]
    assert [seen.iteration for seen in record.iterations] == [2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("[]", "must be an object in braces"),
        ("{}", "lacks the entry 'schema_version'"),
        ('{"penalty": "l1", "watched": "a", "edges": [1.0]}', "lacks the entry 'schema_version'"),
        ('{"schema_version": 2, "penalty": "l1"}', "schema_version is 2, this autoprune reads 1"),
        ('{"schema_version": 1, "penalty": "l1", "watched": "a", "edges": 3}', "edges must be a list in brackets"),
        ("\x00", "not valid JSON"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "sparsity.json"
    path.write_text(text)
    with pytest.raises(RunError, match=rf"sparsity\.json is no record .*{said}.* remove it"):
        SparsityRecord.load(path)


@EACH
def test_a_unit_is_dead_when_all_of_its_scales_are(name: PenaltyName) -> None:
    module, graph = network()
    penalty = make_penalty(name, module, graph)
    for parameter in module.inner.parameters():
        parameter.data *= 1e-6
    module.stem.bn.weight.data[0] = 0  # one channel in one layer is no dead unit
    assert dead_units(penalty, graph, penalty.scales(parameters_of(module)), 1e-3) == ("inner",)


# -- training --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    folder = tmp_path_factory.mktemp("sparsity")
    data = write_data(folder)
    return UltralyticsAdapter.load(write_detector(folder / "tiny.pt", build()), data=data)


Build = Callable[[PenaltyName, float], tuple[Penalty, SparsityTraining, SparsityRecord]]


@pytest.fixture
def extension(adapter: UltralyticsAdapter, tmp_path: Path) -> Build:
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)

    def make(name: PenaltyName, strength: float) -> tuple[Penalty, SparsityTraining, SparsityRecord]:
        penalty, file = make_penalty(name, adapter.module, graph), tmp_path / "sparsity.json"
        record = (
            SparsityRecord.load(file)
            if file.exists()
            else SparsityRecord.start(
                penalty.scales(parameters_of(adapter.module)), penalty=name.value, watched=next(iter(penalty.spans))
            )
        )
        schedule = Schedule(strength)
        return penalty, SparsityTraining(penalty, schedule, record, file=file, events=tmp_path / "events"), record

    return make


def train(adapter: UltralyticsAdapter, out: Path, listener: SparsityTraining, **options: Any) -> nn.Module:
    changes = {"optimizer": "SGD", "lr0": 0.001}
    return finetune(adapter, adapter.module, batch=3, out=out, changes=changes, extensions=[listener], **options).module


@EACH
def test_trained_channels_become_smaller_by_what_the_strength_says(
    name: PenaltyName, adapter: UltralyticsAdapter, extension: Build, tmp_path: Path
) -> None:
    scales = []
    for strength in (1e-9, 50.0):
        penalty, listener, record = extension(name, strength)
        module = train(adapter, tmp_path / f"{strength}", listener, epochs=2)
        listener.close()
        (tmp_path / "sparsity.json").unlink()
        scales.append(penalty.scales(parameters_of(module)))
        assert [seen.epoch for seen in record.epochs] == [0, 1, 2]
        assert [seen.iteration for seen in record.iterations] == [0, 1, 2, 3]
        assert len(record.iterations[0].scales) == len(scales[0][penalty.spans[record.watched]])
    left = scales[1] / scales[0]
    assert np.median(left) < 0.9
    assert all(
        later <= earlier + 1e-4
        for earlier, later in zip(record.epochs[0].quintiles, record.epochs[2].quintiles, strict=True)
    )
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))


class Stop(Exception):
    """Stands for a kill."""


def test_a_resumed_training_goes_on_with_its_record(
    adapter: UltralyticsAdapter, extension: Build, tmp_path: Path
) -> None:
    def stop(report: EpochReport) -> None:
        raise Stop

    _, listener, _ = extension(PenaltyName.L1, 20.0)
    with pytest.raises(Stop):
        train(adapter, tmp_path / "run", listener, epochs=3, on_epoch=stop)
    listener.close()
    stopped = json.loads((tmp_path / "sparsity.json").read_text())
    _, listener, record = extension(PenaltyName.L1, 20.0)
    record.add_epoch(2, np.ones(3))  # as if it had been killed after the record was written and before the weights
    train(adapter, tmp_path / "run", listener, epochs=3, resume=True)
    listener.close()
    whole = json.loads((tmp_path / "sparsity.json").read_text())
    assert [seen["epoch"] for seen in whole["epochs"]] == [0, 1, 2, 3]
    assert [seen["iteration"] for seen in whole["iterations"]] == list(range(6))
    assert whole["epochs"][:2] == stopped["epochs"]
    medians = [seen["quintiles"][len(SHARES) // 2] for seen in whole["epochs"]]
    assert medians == sorted(medians, reverse=True)
    assert medians[3] < medians[1]
