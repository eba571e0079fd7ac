"""What an allocation becomes: surgery, compensation, least squares or batch norm."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.criteria.registry import make_criterion
from autoprune.evaluation import pruning
from autoprune.evaluation.pruning import Calibration, prune
from autoprune.evaluation.reconstruction import reconstruct
from autoprune.listener import hearing
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation, Space
from autoprune.structure.validation import analyse
from tests.unit.test_compensation import IMAGES, Reader
from tests.unit.test_covariance import Warnings
from tests.unit.test_folding import randomised

PLAIN, AUGMENTED = [IMAGES[:8], IMAGES[8:12]], [IMAGES[12:]]


@pytest.fixture(scope="module")
def pruner() -> Pruner:
    torch.manual_seed(1)
    module = randomised(Reader(), 1).float()
    graph = analyse(module, torch.zeros(2, 3, 12, 12))
    return Pruner(module, Space(graph, round_to=1), make_criterion("l1").order(module, graph))


@pytest.fixture(scope="module")
def half(pruner: Pruner) -> Allocation:
    return pruner.space.allocation(pruner.space.round_down(np.full(len(pruner.space), 0.5)))


def made(pruner: Pruner, allocation: Allocation, **options: object) -> nn.Module:
    return prune(pruner, allocation, criterion="l1", example=IMAGES[:1], **options)  # type: ignore[arg-type]


def error(module: nn.Module, pruner: Pruner) -> float:
    with torch.no_grad():
        return float((module(IMAGES) - pruner.module.eval()(IMAGES)).square().mean())


def test_every_step_brings_it_nearer_to_the_dense_network(pruner: Pruner, half: Allocation) -> None:
    everything = Calibration(PLAIN, AUGMENTED)
    errors = [
        error(made(pruner, half, calibration=Calibration()), pruner),
        error(made(pruner, half, calibration=Calibration((), AUGMENTED)), pruner),
        error(made(pruner, half, calibration=Calibration(PLAIN), reconstructed=False), pruner),
        error(made(pruner, half, calibration=everything), pruner),
    ]
    assert errors[2] < 0.7 * min(errors[:2])
    assert errors[3] < 0.7 * errors[2]


def test_constants_are_folded_where_nothing_is_compensated(pruner: Pruner, half: Allocation) -> None:
    weights = [
        prune(pruner, half, criterion=criterion, example=IMAGES[:1], calibration=calibration).state_dict()
        for criterion in ("l1", "bn")
        for calibration in (Calibration(), Calibration(PLAIN))
    ]
    assert not torch.equal(weights[0]["head.bias"], weights[2]["head.bias"])
    assert torch.equal(weights[1]["head.bias"], weights[3]["head.bias"])


def test_what_is_solved_has_the_means_of_the_dense_network(pruner: Pruner, half: Allocation) -> None:
    """Of a layer without a bias they are in the batch norm behind it; here nothing was compensated before."""
    solved, means = pruner.materialise(half), []
    reconstruct(solved, pruner.module, pruner.space.graph, pruner.kept(half), torch.cat(PLAIN))
    for module in (solved, pruner.module.eval()):
        seen: list[torch.Tensor] = []
        hook = module.get_submodule("plain_bn").register_forward_hook(lambda *_, seen=seen: seen.append(_[2]))
        with hook, torch.no_grad():
            module(torch.cat(PLAIN))
        means.append(seen[0].mean((0, 2, 3)))
    (group,) = (group for group in pruner.space.graph.groups if group.name == "plain")
    kept = torch.from_numpy(pruner.kept(half)[group.offset : group.offset + group.size])
    torch.testing.assert_close(means[0], means[1][kept], rtol=0, atol=2e-3)


def test_what_is_solved_keeps_its_batch_norm(pruner: Pruner, half: Allocation) -> None:
    """Its mean moves, but its variance stays: what was solved was solved for that."""
    found = made(pruner, half, calibration=Calibration(PLAIN, AUGMENTED)).state_dict()
    dense = pruner.module.state_dict()
    assert torch.isin(found["plain_bn.running_var"], dense["plain_bn.running_var"]).all()
    recalibrated = made(pruner, half, calibration=Calibration(PLAIN, AUGMENTED), reconstructed=False).state_dict()
    assert not torch.isin(recalibrated["plain_bn.running_var"], dense["plain_bn.running_var"]).any()


def test_without_images_the_weights_stay(pruner: Pruner, half: Allocation) -> None:
    found, surgery = made(pruner, half, calibration=Calibration()), pruner.materialise(half)
    for name, tensor in surgery.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def test_as_many_images_are_solved_for_as_memory_holds(
    pruner: Pruner, half: Allocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = error(made(pruner, half, calibration=Calibration(PLAIN), reconstructed=False), pruner)
    monkeypatch.setattr(pruning, "RECONSTRUCTION_BYTES", 1.0)
    with hearing(listener := Warnings()):
        assert error(made(pruner, half, calibration=Calibration(PLAIN, AUGMENTED)), pruner) < 1.1 * closed
        (told,) = listener.heard
        assert len(pruning._at_once(pruner.module, PLAIN)) == 1
        monkeypatch.setattr(pruning, "RECONSTRUCTION_BYTES", 2**30)
        assert len(pruning._at_once(pruner.module, PLAIN)) == 12
    assert listener.heard == [told, told]
    assert re.match(r"Layers are solved .* on 1 of 12 images: all of them would take .* GB, more than the limit", told)


def test_a_frozen_layer_is_not_solved(pruner: Pruner, half: Allocation) -> None:
    """DFL's weights are constants of Ultralytics; a network that was loaded to predict says that of all layers."""
    frozen = Reader()
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    found = made(pruner, half, calibration=Calibration(PLAIN, AUGMENTED), trained=frozen).state_dict()
    closed = made(pruner, half, calibration=Calibration(PLAIN, AUGMENTED), reconstructed=False).state_dict()
    assert torch.equal(found["plain.weight"], closed["plain.weight"])
