"""Compensation in commands: what ships has it, and without it a score is that of the network as it was cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.cli.main import main
from autoprune.models import open_adapter
from autoprune.models._base import LossSum
from autoprune.policy import Policy
from autoprune.structure.slicing import Slicer
from tests.helpers.world import SIZE, arguments, open_world, records

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick")]

UNIFORM = ("--budget", "flops=50%", "--strategy", "uniform", "--criterion", "l1")
WAYS = ("--no-reconstruct", "--no-compensate")
"""Compensation alone, and none."""


@pytest.fixture(scope="module")
def images(tiny: Path) -> torch.Tensor:
    """The images that the networks were compensated on."""
    adapter = open_adapter(tiny / "best.pt", data=tiny / "data" / "data.yaml", image_size=SIZE)
    return torch.cat([adapter.inputs(batch) for batch in adapter.batches("train", images=6, batch=6, seed=0)])


@pytest.fixture(scope="module")
def policy(tiny: Path, quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy of a search for the uniform ratio."""
    out = tmp_path_factory.mktemp("policy") / "run"
    assert main(arguments("search", tiny, out, *UNIFORM)) == 0
    return out / "policy.json"


def predicted(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        predictions: torch.Tensor = network(images)[0]
    return predictions


def test_slim_ships_a_network_nearer_to_the_one_it_pruned(tiny: Path, tmp_path: Path, images: torch.Tensor) -> None:
    found, kept = [], []
    for way in WAYS:
        out = tmp_path / way
        assert main(arguments("slim", tiny, out, *UNIFORM, "--sparsity-epochs", "1", way)) == 0
        sparse, model = (open_adapter(out / f"{name}.pt").module for name in ("sparse", "model"))
        found.append(float((predicted(sparse, images) - predicted(model, images)).square().mean()))
        kept.append(Policy.load(out / "policy.json").units)
    assert kept[0] == kept[1]
    assert found[0] < 0.9 * found[1]


def test_an_exported_policy_is_nearer_to_the_dense_network(
    tiny: Path, policy: Path, tmp_path: Path, images: torch.Tensor
) -> None:
    dense, found = predicted(open_adapter(tiny / "best.pt").module, images), []
    shared = ("--data", str(tiny / "data" / "data.yaml"), "--imgsz", str(SIZE), "--device", "cpu", "--no-report")
    for way in WAYS:
        applied, exported = tmp_path / way / "applied", tmp_path / way / "exported"
        words = ("--policy", str(policy), "--model", str(tiny / "best.pt"), "--out", str(applied), way)
        assert main(["apply", *words, *shared]) == 0
        words = ("--model", str(applied / "pruned.pt"), "--out", str(exported), "--format", "torchscript")
        assert main(["export", *words, *shared]) == 0
        file = torch.jit.load(exported / "model.torchscript")
        found.append(float((dense - torch.cat([file(image[None]) for image in images])).square().mean()))
    assert found[0] < 0.9 * found[1]


def test_without_compensation_a_score_is_that_of_the_network_as_it_was_cut(tiny: Path, tmp_path: Path) -> None:
    """Bit for bit: sliced, one pass in train mode, 1 − loss / dense loss."""
    out = tmp_path / "run"
    words = ("--budget", "flops=60%", "--strategy", "random", "--episodes", "6", "--criterion", "l1")
    assert main(arguments("search", tiny, out, *words, "--no-compensate", "--no-bf16")) == 0
    network = open_world(tiny)
    slicer, adapter = Slicer(network.adapter.module, network.graph), network.adapter
    batches = adapter.batches("train", images=4, batch=2, seed=0, balanced=True)

    def loss(counts: list[int]) -> float:
        keep = network.pruner.kept(network.space.allocation(counts))
        module = slicer.materialise(keep).to(memory_format=torch.channels_last).train()
        total = LossSum(torch.zeros(()), torch.zeros(()))
        with torch.no_grad():
            for batch in batches:
                total += adapter.loss_sum(module, batch)
        return total.mean()

    dense = loss([unit.width for unit in network.space.units])
    scored = records(out, "evaluation")
    assert len({tuple(record["key"]) for record in scored}) >= 6
    for record in scored:
        assert record["value"]["score"] == 1 - loss(record["key"]) / dense, record["key"]
