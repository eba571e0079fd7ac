"""Every extension in every trainer: a detector of Ultralytics, one of Darknet, and a network of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.arrays import Mask
from autoprune.choices import PenaltyName
from autoprune.errors import TrainingError
from autoprune.models._base import Adapter
from autoprune.models.darknet import DarknetAdapter
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.training.extensions._base import Event, Training, TrainingExtension
from autoprune.training.extensions.distill import Distillation, FrozenTeacher
from autoprune.training.extensions.distillation_losses import box_term, branches, class_term, output_term
from autoprune.training.extensions.fake_quantization import FakeQuantization
from autoprune.training.extensions.gradual_zeroing import GradualZeroing, doomed
from autoprune.training.extensions.masking import Masking, check_masks, convolution_weights, largest_of_layer
from autoprune.training.extensions.penalties import make_penalty
from autoprune.training.extensions.sparsity import Schedule, SparsityTraining
from autoprune.training.extensions.sparsity_record import SparsityRecord
from autoprune.training.finetune import finetune
from autoprune.training.registry import TRAINERS, trainer_of
from autoprune.training.results import FinetuneResult
from tests.helpers.darknet_detector import write_detector
from tests.helpers.detectors import write_data
from tests.helpers.own_network import Net, loss
from tests.helpers.own_network import adapter as own_adapter
from tests.helpers.training import Stop, stop, write_training
from tests.helpers.world import analysed

EPOCHS = 3
SEEDS = (0, 1, 2)
FAMILIES = ("ultralytics", "darknet", "own")


@dataclass(frozen=True)
class Case:
    """A dense network with data, and its channel groups."""

    adapter: Adapter
    graph: ChannelGraph

    @property
    def keep(self) -> Mask:
        space = Space(self.graph, round_to=1)
        counts = [max(1, unit.width // 2) for unit in space.units]
        return space.kept_channels(counts, [np.arange(group.size) for group in self.graph.groups])

    def pruned(self) -> nn.Module:
        return Slicer(self.adapter.module, self.graph).materialise(self.keep)

    def tune(self, module: nn.Module, out: Path, *extensions: TrainingExtension, **options: Any) -> FinetuneResult:
        settings: dict[str, Any] = {"epochs": EPOCHS, "batch": 3, "workers": 0, **options}
        return finetune(self.adapter, module, out=out, extensions=extensions, **settings)


def _adapter(family: str, folder: Path) -> Adapter:
    if family == "ultralytics":
        return write_training(folder)
    if family == "darknet":
        return DarknetAdapter.load(write_detector(folder), data=write_data(folder / "data"))
    torch.manual_seed(0)
    return own_adapter(Net(8))


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "ultralytics")) for name in FAMILIES]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    adapter = _adapter(request.param, tmp_path_factory.mktemp(request.param))
    return Case(adapter, analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(tensor, twin) for tensor, twin in pairs)


def plain(network: nn.Module) -> bool:
    return not any(layer._forward_hooks or "forward" in vars(layer) for layer in network.modules())


def sparsity(case: Case, folder: Path, strength: float = 0.5) -> SparsityTraining:
    penalty = make_penalty(PenaltyName.L1, case.adapter.module, case.graph)
    scales = penalty.scales(dict(case.adapter.module.named_parameters(remove_duplicate=False)))
    file = folder / "sparsity.json"
    watched = next(iter(penalty.spans))
    record = SparsityRecord.load(file) if file.exists() else SparsityRecord.start(scales, penalty="l1", watched=watched)
    return SparsityTraining(penalty, Schedule(strength), record, file=file, events=folder / "events")


def masking(case: Case) -> Masking:
    return Masking(largest_of_layer(convolution_weights(case.adapter.module), 0.5))


EXTENSIONS: dict[str, Callable[[Case, Path], TrainingExtension]] = {
    "distillation": lambda case, _: Distillation(case.adapter.module),
    "gradual zeroing": lambda case, _: GradualZeroing(case.graph, case.keep),
    "sparsity": sparsity,
    "masking": lambda case, _: masking(case),
    "fake quantization": lambda *_: FakeQuantization(),
}


def trained(case: Case, name: str) -> nn.Module:
    return case.pruned() if name == "distillation" else case.adapter.module


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_interrupted_training_ends_as_one_that_was_not(case: Case, tmp_path: Path, name: str) -> None:
    def tuned(folder: Path, **options: Any) -> FinetuneResult:
        folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            extension = EXTENSIONS[name](case, folder)
            if isinstance(extension, SparsityTraining):
                stack.enter_context(closing(extension))
            changes = {"optimizer": "SGD", "lr0": 0.01} if name == "sparsity" else {}
            return case.tune(trained(case, name), folder / "out", extension, changes=changes, **options)

    whole = tuned(tmp_path / "whole")
    with pytest.raises(Stop):
        tuned(tmp_path / "stopped", on_epoch=stop)
    resumed = tuned(tmp_path / "stopped", resume=True)
    assert same(resumed.module, whole.module)
    assert resumed.losses == whole.losses
    assert plain(whole.module), "nothing of an extension stays behind"
    usual = case.tune(trained(case, name), tmp_path / "usual").module
    assert not same(whole.module, usual), "an extension changes what is learnt"


def test_with_a_teacher_networks_end_nearer_to_it_than_without(case: Case, tmp_path: Path) -> None:
    """Summed over three seeds: the tiny detector begins near its untrained teacher, and one seed tells little."""
    (batch,) = case.adapter.batches("train", images=6, batch=6, seed=0)
    images = case.adapter.inputs(batch)

    def apart(module: nn.Module) -> float:
        given, wanted = (FrozenTeacher(one, images.device)(images) for one in (module, case.adapter.module))
        if isinstance(given, dict):
            pairs = list(zip(branches(given), branches(wanted), strict=True))
            return float(sum(class_term(one["scores"], other["scores"]) + box_term(one, other) for one, other in pairs))
        return float(output_term(given, wanted))

    distances = {"alone": 0.0, "taught": 0.0}
    for seed in SEEDS:
        for name in distances:
            extensions = [Distillation(case.adapter.module, weight=20.0)] if name == "taught" else []
            result = case.tune(case.pruned(), tmp_path / f"{name}{seed}", *extensions, epochs=6, seed=seed)
            distances[name] += apart(result.module)
            assert any(one.startswith("distill_") for one in result.losses) == (name == "taught")
    assert distances["taught"] < distances["alone"]


def test_zeroed_channels_end_at_zero(case: Case, tmp_path: Path) -> None:
    module = case.tune(case.adapter.module, tmp_path, GradualZeroing(case.graph, case.keep)).module
    parts = doomed(module, case.graph, case.keep)
    assert parts
    assert all((part.rows[part.positions] == 0).all() for part in parts)
    before = doomed(case.adapter.module, case.graph, case.keep)
    assert any(part.rows[part.positions].abs().max() > 0.1 for part in before), "the dense network is as it was"


def test_masked_weights_stay_zero(case: Case, tmp_path: Path) -> None:
    masks = largest_of_layer(convolution_weights(case.adapter.module), 0.5)
    module = case.tune(case.adapter.module, tmp_path, Masking(masks)).module
    check_masks(module, masks)
    name, kept = next(iter(masks.items()))
    before, after = (one.get_parameter(name) for one in (case.adapter.module, module))
    assert not torch.equal(before[kept], after[kept]), "what stays is trained"


def test_a_penalty_makes_scales_small(case: Case, tmp_path: Path) -> None:
    medians = []
    for strength in (1e-9, 20.0):
        folder = tmp_path / f"{strength}"
        folder.mkdir()
        with closing(sparsity(case, folder, strength)) as extension:
            changes = {"optimizer": "SGD", "lr0": 0.001}
            module = case.tune(case.adapter.module, folder / "out", extension, changes=changes).module
        penalty = make_penalty(PenaltyName.L1, module, case.graph)
        medians.append(np.median(penalty.scales(dict(module.named_parameters(remove_duplicate=False)))))
        assert [seen.epoch for seen in SparsityRecord.load(folder / "sparsity.json").epochs] == [0, 1, 2, 3]
    assert medians[1] < 0.98 * medians[0]


class Watch(TrainingExtension):
    """Notes which events come, and what the training says of itself."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.batches = 0

    def attach(self, training: Training) -> None:
        for event in Event:
            training.listen(event, lambda running, event=event: self._look(running, event))

    def _look(self, training: Training, event: Event) -> None:
        self.seen.append(event)
        self.batches = training.batches
        assert training.epochs == EPOCHS
        assert next(training.model.parameters()).device.type == training.device.type
        assert training.optimizer.param_groups


def test_both_trainers_serve_the_same_events_in_the_same_order(case: Case, tmp_path: Path) -> None:
    watch = Watch()
    case.tune(case.adapter.module, tmp_path, watch)
    batch = [Event.BATCH_START, Event.GRADIENTS, Event.STEPPED, Event.BATCH_END]
    epoch = [Event.EPOCH_START, *batch * watch.batches, Event.EPOCH_END]
    assert watch.seen == [Event.START, *epoch * EPOCHS, Event.END]


def test_every_family_has_the_trainer_of_its_record(case: Case) -> None:
    spec = next(spec for spec in TRAINERS if spec.trains(case.adapter))
    assert type(trainer_of(case.adapter)).__name__ == spec.factory.rpartition(":")[2]


def test_a_loss_that_leaves_the_network_out_cannot_be_distilled(tmp_path: Path) -> None:
    def around(module: Any, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        class Inner(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return module.forward(x)  # type: ignore[no-any-return]

        return loss(Inner(), images, kinds)

    own = own_adapter(Net(8), loss=around)
    with pytest.raises(TrainingError, match="needs a loss that calls the network it is given"):
        finetune(own, own.module, epochs=1, out=tmp_path, extensions=[Distillation(own.module)])


def test_extensions_take_part_in_the_order_given(case: Case, tmp_path: Path) -> None:
    both: Sequence[TrainingExtension] = [masking(case), Distillation(case.adapter.module)]
    result = case.tune(case.adapter.module, tmp_path, *both, epochs=1)
    check_masks(result.module, largest_of_layer(convolution_weights(case.adapter.module), 0.5))
