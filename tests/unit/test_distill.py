"""Distillation: what is taught, and that nothing of the teacher stays behind."""

from __future__ import annotations

import csv
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.errors import ModelError, TrainingError
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from autoprune.training.extensions.distill import Distillation, FrozenTeacher, check_teacher
from autoprune.training.extensions.distillation_losses import (
    DetectorTerms,
    box_term,
    branches,
    class_term,
    feature_term,
)
from autoprune.training.extensions.projections import Adapters
from autoprune.training.finetune import finetune
from autoprune.training.results import EpochReport
from autoprune.training.ultralytics.session import CriterionWithTerms
from tests.helpers.detectors import build
from tests.helpers.training import PRUNED, Stop, parameters, pruned, stop, write_training

HEADS = [{}, {"reg_max": 1}, {"end2end": True}]
IDS = ["v8", "without bins", "end-to-end"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    return write_training(tmp_path_factory.mktemp("distill"))


def taught_by(teacher: nn.Module) -> FrozenTeacher:
    return FrozenTeacher(teacher, torch.device("cpu"))


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predictions(bins: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"boxes": logits(2, 4 * bins, 20, seed=seed), "scores": logits(2, 3, 20, seed=seed + 100)}


# -- terms -----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([1, 4, 16]))
def test_terms_are_zero_for_the_teacher_itself_and_positive_for_others(seed: int, bins: int) -> None:
    teacher, other = predictions(bins, seed=seed), predictions(bins, seed=seed + 1)
    maps = [logits(2, 5, 4, 4, seed=seed)]
    assert float(class_term(teacher["scores"], teacher["scores"])) == pytest.approx(0, abs=1e-5)
    assert float(box_term(teacher, teacher)) == pytest.approx(0, abs=1e-4)
    assert float(feature_term(maps, maps)) == pytest.approx(0, abs=1e-5)
    assert float(class_term(other["scores"], teacher["scores"])) > 1e-3
    assert float(box_term(other, teacher)) > 1e-3
    assert 1e-3 < float(feature_term([logits(2, 5, 4, 4, seed=seed + 1)], maps)) <= 2


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_maps_of_another_scale_and_offset_are_as_good(seed: int, scale: float, offset: float) -> None:
    maps = logits(2, 5, 4, 4, seed=seed)
    assert float(feature_term([scale * maps + offset], [maps])) == pytest.approx(0, abs=1e-4)


def test_background_does_not_count() -> None:
    teacher = predictions(16)
    teacher["scores"][:, :, 1:] = -20  # it sees something in the first anchor only
    student = {name: tensor.clone() for name, tensor in teacher.items()}
    student["boxes"][:, :, 1:] += logits(2, 64, 19, seed=7)
    student["scores"][:, :, 1:] += 3
    assert float(class_term(student["scores"], teacher["scores"])) < 1e-3
    assert float(box_term(student, teacher)) < 1e-3


def test_channels_that_are_the_same_everywhere_do_not_break_the_gradient() -> None:
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    feature_term([maps], [logits(2, 3, 4, 4)]).backward()
    assert maps.grad is not None
    assert maps.grad.abs().max() < 1e4


def test_adapters_begin_where_the_teacher_can_be_told_from_the_student() -> None:
    given, mixing = logits(2, 3, 6, 6), logits(5, 3, seed=1)
    wanted = torch.einsum("oc,bchw->bohw", mixing, given) + 7
    adapters = Adapters([(3, 5)])
    with torch.no_grad():
        assert float(feature_term(adapters([given], [wanted]), [wanted])) < 1e-4
    before = [layer.weight.clone() for layer in adapters.layers]
    adapters([logits(2, 3, 6, 6, seed=2)], [wanted])
    assert all(torch.equal(layer.weight, kept) for layer, kept in zip(adapters.layers, before, strict=True)), "once"


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", HEADS, ids=IDS)
def test_every_kind_of_head_is_taught(adapter: UltralyticsAdapter, extra: dict[str, object]) -> None:
    teacher, student = build(**extra).requires_grad_(False), pruned(**extra).train()
    (batch,) = adapter.batches("train", images=4, batch=4, seed=0)
    adapters = Adapters([(8, 16), (16, 24)])
    own = student.init_criterion()
    criterion = CriterionWithTerms(own, DetectorTerms(taught_by(teacher), adapters, weight=2.0), set())
    output = student(batch["img"])
    plain, items = own(output, batch)
    total, logged = criterion(output, batch)
    terms = torch.stack([logged[name] for name in DetectorTerms.TERMS])
    assert set(logged) - set(items) == set(DetectorTerms.TERMS)
    assert (terms > 0).all()
    torch.testing.assert_close(total.sum(), plain.sum() + 4 * terms.sum())
    total.sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in (student.model[0].conv, *adapters.layers))
    assert not teacher.training


@pytest.mark.parametrize("extra", HEADS, ids=IDS)
def test_a_student_learns_what_it_is_taught(adapter: UltralyticsAdapter, extra: dict[str, object]) -> None:
    """A few steps on the terms alone bring the student nearer to the teacher."""
    teacher, student = build(**extra).requires_grad_(False), pruned(**extra).train()
    (batch,) = adapter.batches("train", images=4, batch=4, seed=0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)

    def apart() -> torch.Tensor:
        with torch.no_grad():
            taught = branches(teacher(batch["img"]))
        pairs = zip(branches(student(batch["img"])), taught, strict=True)
        return sum(class_term(s["scores"], t["scores"]) + box_term(s, t) for s, t in pairs)  # type: ignore[return-value]

    first = float(apart().detach())
    for _ in range(8):
        optimizer.zero_grad()
        apart().backward()
        optimizer.step()
    assert float(apart().detach()) < first


def test_an_end_to_end_loss_still_shifts_its_weights(adapter: UltralyticsAdapter) -> None:
    student = pruned(end2end=True)
    own = student.init_criterion()
    before = own.o2m
    CriterionWithTerms(own, lambda *_: {}, set()).update()
    assert own.o2m < before
    CriterionWithTerms(pruned().init_criterion(), lambda *_: {}, set()).update()


# -- in a training ---------------------------------------------------------------------------------


def test_a_training_with_a_teacher_leaves_nothing_of_it(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    teacher = adapter.module
    before = deepcopy(vars(teacher.model[-1]))
    weights = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    result = finetune(
        adapter, pruned(), epochs=1, batch=3, out=tmp_path, extensions=[Distillation(teacher, weight=0.5)]
    )
    assert set(result.losses) == {"box_loss", "cls_loss", "dfl_loss", *DetectorTerms.TERMS}
    assert parameters(result.module) == PRUNED
    assert result.module.criterion is None
    kept: Any = read_checkpoint(tmp_path / "weights" / "last.pt").module  # the safe loader: stock classes only
    assert parameters(kept) == PRUNED
    assert kept.criterion is None
    with (tmp_path / "results.csv").open() as file:
        columns = set(next(csv.reader(file)))
    assert {f"train/{name}" for name in DetectorTerms.TERMS} <= columns
    assert not any(name.startswith("val/distill") for name in columns)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())
    assert vars(teacher.model[-1]).keys() == before.keys()


def test_a_resume_goes_on_with_the_adapters(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        finetune(
            adapter, pruned(), epochs=3, batch=3, out=tmp_path, on_epoch=stop, extensions=[Distillation(adapter.module)]
        )
    reports: list[EpochReport] = []
    finetune(
        adapter,
        pruned(),
        epochs=3,
        batch=3,
        out=tmp_path,
        resume=True,
        on_epoch=reports.append,
        extensions=[Distillation(adapter.module)],
    )
    assert [report.epoch for report in reports] == [2, 3]
    assert all(set(DetectorTerms.TERMS) <= set(report.losses) for report in reports)
    kept = torch.load(tmp_path / "weights" / "state.pt", weights_only=True)["extensions"]["distillation"]
    steps = {int(state["step"]) for state in kept["optimizer"]["state"].values()}
    assert steps == {3 * 2}, "three epochs of two batches, two of the epochs after the kill"


def test_adapters_that_are_not_the_trainings_are_refused(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    def tune(**options: Any) -> None:
        finetune(
            adapter, pruned(), epochs=2, batch=3, out=tmp_path, extensions=[Distillation(adapter.module)], **options
        )

    with pytest.raises(Stop):
        tune(on_epoch=stop)
    file = tmp_path / "weights" / "state.pt"
    state = torch.load(file, weights_only=True)
    state["extensions"]["distillation"]["adapters"].popitem()
    torch.save(state, file)
    with pytest.raises(ModelError, match=r"state\.pt is damaged or not of this training; remove its folder"):
        tune(resume=True)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"nc": 3}, "the same number of classes as the network that it teaches, got 3 and 2; give the dense"),
        ({"reg_max": 8}, "the same number of bins per box side .* got 8 and 16"),
        ({"end2end": True}, "the same number of head branches .* got 2 and 1"),
    ],
)
def test_a_teacher_of_something_else_is_refused(extra: dict[str, object], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        check_teacher(build(**extra), pruned(), torch.rand(1, 3, 64, 64))


def test_a_teacher_with_other_strides_is_refused() -> None:
    teacher = build()
    teacher.model[-1].stride = torch.tensor([8.0, 32.0])
    with pytest.raises(TrainingError, match=r"the same strides .* got \[8, 32\] and \[8, 16\]"):
        check_teacher(teacher, pruned(), torch.rand(1, 3, 64, 64))
