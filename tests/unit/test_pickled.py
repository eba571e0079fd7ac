"""Checkpoints that pickled a network of a user's own repository, as YOLOv7's training writes them."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.models.module import ModuleAdapter, load, load_pickled
from autoprune.structure.slicing import Slicer
from autoprune.structure.validation import analyse
from tests.unit.test_module_adapter import drawn

SIZE = 64


@contextmanager
def forgotten() -> Iterator[None]:
    """Let what the block imports of ``models`` be unknown after it, as in another process."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``models/yolo.py``, and a checkpoint of its network in half precision."""
    folder = tmp_path_factory.mktemp("yolov7")
    shutil.copytree(Path(__file__).parents[1] / "helpers" / "yolov7_style", folder / "models")
    with forgotten():
        sys.path.insert(0, str(folder))
        torch.manual_seed(0)
        network = importlib.import_module("models.yolo").Model()
        content = {"model": None, "ema": network.half(), "epoch": -1, "optimizer": None, "wandb_id": None}
        torch.save(content, folder / "best.pt")
        torch.save({**content, "ema": None, "model": network}, folder / "last.pt")
    return folder


@pytest.fixture(autouse=True)
def unknown_again() -> Iterator[None]:
    with forgotten():
        yield


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_the_network_opens_where_it_is_trusted(repository: Path, name: str) -> None:
    network = load_pickled(repository / name, trust=True, repository=repository)
    assert type(network).__module__ == "models.yolo"
    assert not network.training
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert str(repository) not in sys.path


def test_nothing_of_the_file_is_run_without_trust(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"runs code that the file names.*load_pickled\(\.\.\., trust=True\)"):
        load_pickled(repository / "best.pt", repository=repository)
    assert "models.yolo" not in sys.modules


def _rename(folder: Path) -> None:
    file = folder / "models" / "yolo.py"
    file.write_text(file.read_text().replace("class IDetect", "class IAuxDetect").replace("IDetect(", "IAuxDetect("))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "models"), r"needs the Python module 'models'.*repository=FOLDER"),
        (lambda folder: (folder / "models" / "yolo.py").unlink(), r"needs the Python module 'models.yolo'"),
        (_rename, r"needs a class that is not there \(.*IDetect.*models\.yolo"),
        (lambda folder: (folder / "best.pt").write_bytes(b"PK"), "is corrupt, cut short, or no checkpoint"),
        (
            lambda folder: torch.save({"model": {"weight": torch.zeros(1)}}, folder / "best.pt"),
            "no network under 'ema'",
        ),
        (lambda folder: (folder / "best.pt").unlink(), "does not exist"),
    ],
)
def test_what_is_missing_is_told(
    repository: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    shutil.rmtree(copy / "models" / "__pycache__", ignore_errors=True)
    spoil(copy)
    with pytest.raises(ModelError, match=message) as caught:
        load_pickled(copy / "best.pt", trust=True, repository=copy)
    assert len(str(caught.value).splitlines()) == 1


def test_the_repository_is_a_folder(repository: Path) -> None:
    with pytest.raises(ModelError, match="the repository must be a folder"):
        load_pickled(repository / "best.pt", trust=True, repository=repository / "best.pt")


class Pictures(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(index)), index % 2


def adapter(network: nn.Module) -> ModuleAdapter:
    return ModuleAdapter(
        network,
        example=torch.zeros(1, 3, SIZE, SIZE),
        train=Pictures(),
        val=Pictures(),
        loss=lambda module, images, _: sum(one.square().mean() for one in module(images)),
        metric=lambda predict, batches: float(predict(next(iter(batches))[0]).isfinite().float().mean()),
    )


def masked(network: nn.Module, graph: Any, keep: Any) -> nn.Module:
    """Silence what is pruned: every weight that reads a removed channel is zero."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name, axes in graph.tensors.items():
        for dimension, axis in axes:
            gone = np.flatnonzero(~keep[graph.axes[axis]])
            if dimension == 1 and tensors[name].ndim > 1 and tensors[name].shape[0] > 1:
                tensors[name].detach().movedim(dimension, 0)[torch.from_numpy(gone)] = 0
    return network


@pytest.mark.slow
def test_it_is_pruned_exactly_and_saved(repository: Path, tmp_path: Path) -> None:
    def make() -> ModuleAdapter:
        return adapter(load_pickled(repository / "best.pt", trust=True, repository=repository))

    own = make()
    graph = analyse(own.module, own.example())
    convolutions = {name for name, child in own.module.named_modules() if isinstance(child, nn.Conv2d)}
    fixed = {group.name for group in graph.groups if group.pinned} & convolutions
    assert fixed == {"model.11.m.0", "model.11.m.1"}  # the predictions alone
    keep = drawn(graph, keep=0.5, seed=3)
    double = own.opened().module.double()
    with torch.no_grad():
        smaller = Slicer(double, graph).materialise(keep)
        images = own.example().double()
        expected = masked(own.opened().module.double(), graph, keep)(images)
        torch.testing.assert_close(smaller(images), expected, rtol=0, atol=1e-10)
        pruned = Slicer(own.module, graph).materialise(keep)
        own.save(pruned, tmp_path / "model.pt")
        opened = load(tmp_path / "model.pt", make)
        assert torch.equal(opened.module(own.example()), pruned(own.example()))
    assert sum(map(torch.numel, pruned.parameters())) < 0.4 * sum(map(torch.numel, own.module.parameters()))
