from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader

from autoprune.errors import AutopruneError, ConfigError, DataError, ModelError
from autoprune.formats import ExportFormat
from autoprune.models._base import ExportSettings
from autoprune.models.module import ModuleAdapter, load
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Slicer
from autoprune.structure.validation import analyse
from tests.contracts.adapters import check_adapter
from tests.helpers.own_network import SHAPE, Net, Shapes, adapter, loss, make, top1


def narrowed(module: nn.Module, example: torch.Tensor, *, keep: float = 0.5, seed: int = 0) -> nn.Module:
    """Prune channels drawn at random, in every unit a share of its width."""
    graph = analyse(module, example)
    return Slicer(module, graph).materialise(drawn(graph, keep=keep, seed=seed))


def drawn(graph: ChannelGraph, *, keep: float, seed: int) -> Any:
    rng, kept = np.random.default_rng(seed), np.ones(graph.channels, dtype=bool)
    for unit in graph.units:
        for index in unit.groups:
            group = graph.groups[index]
            gone = rng.choice(group.size, size=group.size - max(1, round(keep * group.size)), replace=False)
            kept[group.offset + gone] = False
    return kept


@pytest.fixture(scope="module")
def own() -> ModuleAdapter:
    return make()


@pytest.fixture(scope="module")
def pruned(own: ModuleAdapter) -> nn.Module:
    return narrowed(own.module, own.example())


def test_it_keeps_the_contract(own: ModuleAdapter, pruned: nn.Module, tmp_path: Path) -> None:
    check_adapter(own, copy.deepcopy(pruned), tmp_path)


def test_the_person_s_own_module_is_left_alone() -> None:
    module = Net().double().train()
    before = copy.deepcopy(module.state_dict())
    adapter(module)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


class Odd(nn.Module):
    """A buffer that no state dict has, a layer used twice, a depthwise one, and numbers that repeat widths."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.slope = nn.BatchNorm2d(8), nn.PReLU(8)
        self.last = nn.Conv2d(8, 4, 1)
        self.register_buffer("table", torch.rand(4, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.second(torch.relu(self.first(x))))
        out: torch.Tensor = self.last(self.slope(self.norm(self.depthwise(x)))) * self.table
        return out


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "own": Net,
    "odd": Odd,
    "resnet18": partial(torchvision.models.resnet18, num_classes=4),
    "mobilenet_v3_small": partial(torchvision.models.mobilenet_v3_small, num_classes=4),
    "densenet121": partial(torchvision.models.densenet121, num_classes=4),
    "fcn_resnet50": partial(
        torchvision.models.segmentation.fcn_resnet50, weights=None, weights_backbone=None, num_classes=4
    ),
}
SLOW = BUILDERS.keys() - {"odd"}


def test_a_format_with_metadata_of_ultralytics_is_refused(tmp_path: Path) -> None:
    def convert(source: Path, to: Path) -> None:
        raise AssertionError(f"{source} is not to be made {to}")

    own = make()
    with pytest.raises(ConfigError, match=r"exported to `format` onnx, .*torchscript, got tensorrt"):
        own.export(own.module, tmp_path, ExportSettings(ExportFormat("tensorrt").spec), convert=convert)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in BUILDERS]
)
def test_a_saved_network_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    def build() -> ModuleAdapter:
        torch.manual_seed(0)
        channels = SHAPE[0] if name == "own" else 3
        return adapter(BUILDERS[name](), example=torch.zeros(1, channels, 64, 64))

    dense = build()
    smaller = narrowed(dense.module, dense.example(), seed=1)
    dense.save(smaller, tmp_path / "model.pt", notes={"budget": ["flops=50%"]})
    opened = load(tmp_path / "model.pt", build)
    images = dense.example(3)
    with torch.no_grad():
        expected = dense.deployable(smaller)(images)
        assert torch.equal(opened.deployable(opened.module)(images), expected)
    assert sum(map(torch.numel, opened.module.parameters())) < sum(map(torch.numel, dense.module.parameters()))


@pytest.mark.slow
def test_an_opened_network_can_be_pruned_and_saved_again(own: ModuleAdapter, pruned: nn.Module, tmp_path: Path) -> None:
    own.save(pruned, tmp_path / "once.pt")
    once = load(tmp_path / "once.pt", make)
    twice = narrowed(once.module, once.example(), seed=2)
    once.save(twice, tmp_path / "twice.pt")
    images, again = own.example(), load(tmp_path / "twice.pt", make)
    with torch.no_grad():
        assert torch.equal(once.reopen(tmp_path / "twice.pt")(images), twice(images))
        assert torch.equal(again.module(images), twice(images))


def test_nothing_in_a_checkpoint_runs_code(own: ModuleAdapter, pruned: nn.Module, tmp_path: Path) -> None:
    own.save(pruned, tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=True)


def test_another_network_s_checkpoint_is_refused(own: ModuleAdapter, pruned: nn.Module, tmp_path: Path) -> None:
    own.save(pruned, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"must belong to the network 'net'.* is only in one of the two"):
        load(tmp_path / "model.pt", lambda: adapter(Odd(), example=torch.zeros(1, 3, 8, 8)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": [1]}, r"has version \[1\] of its format"),
        ({"tensors": {"a": 5}}, "is damaged"),
        ({"tensors": {"a": torch.zeros(1).expand(10**12)}}, "is damaged"),
        ({"numbers": {"": {"forward": "x"}}}, "is damaged"),
        ({"numbers": 5}, "is damaged"),
        ({"numbers": {"": {"forward": 5}}}, "must change numbers of the network alone, and has forward"),
        ({"name": None}, "is damaged"),
    ],
)
def test_a_checkpoint_with_wrong_values_is_told(
    own: ModuleAdapter, pruned: nn.Module, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    own.save(pruned, tmp_path / "model.pt")
    torch.save({**torch.load(tmp_path / "model.pt", weights_only=True), **change}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=message):
        own.reopen(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "is corrupt"), ({"model": 1}, "must be a checkpoint that autoprune wrote")],
)
def test_no_checkpoint_is_told(own: ModuleAdapter, tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        own.reopen(path)


def test_random_augmentations_are_seeded() -> None:
    class Noisy(Shapes):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            image, kind = super().__getitem__(index)
            return image + torch.rand(SHAPE), kind

    noisy = adapter(Net(), train=Noisy(8, 0))
    state = torch.get_rng_state()
    first, second = (next(iter(noisy.epoch(batch=4, seed=3)))["images"] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, next(iter(noisy.epoch(batch=4, seed=4)))["images"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("samples", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2])])
def test_an_epoch_has_every_image_but_a_lonely_one(samples: int, sizes: list[int]) -> None:
    found = adapter(Net(), train=Shapes(samples, 0)).epoch(batch=4, seed=0)
    assert [len(batch["images"]) for batch in found] == sizes


@pytest.mark.parametrize(
    ("samples", "batch", "sizes"),
    [(9, 4, [4, 3, 2]), (10, 4, [4, 4, 2]), (3, 2, [3]), (5, 2, [2, 3]), (1, 4, [1]), (2, 1, [1, 1])],
)
def test_a_single_last_image_is_joined_by_another(samples: int, batch: int, sizes: list[int]) -> None:
    own = adapter(Net(), train=Shapes(samples, 0))
    found = own.batches("train", images=samples, batch=batch, seed=0)
    assert [len(one["images"]) for one in found] == sizes
    together = torch.cat([own.inputs(one) for one in found])
    (whole,) = own.batches("train", images=samples, batch=samples, seed=0)
    assert torch.equal(together, own.inputs(whole))


def test_the_metric_may_have_two_figures() -> None:
    two = adapter(Net(), metric=lambda *_: (0.25, 0.5), metric_names=("IoU", "pixels"))
    found = two.validate(two.module)
    assert dict(found) == {"IoU": 0.25, "pixels": 0.5}
    assert (found.primary, found.per_class) == (0.25, {})


def test_a_network_that_is_frozen_as_a_whole_is_trained_and_single_frozen_layers_stay() -> None:
    own = adapter(Net().requires_grad_(False))
    assert all(parameter.requires_grad for parameter in own.module.parameters())
    partly = Net()
    partly.stem.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in adapter(partly).module.stem.parameters())


class Broken(Shapes):
    def __getitem__(self, index: int) -> Any:
        raise FileNotFoundError("no such picture")


class Other(Shapes):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(3, 8, 8), 0


def score(own: ModuleAdapter) -> object:
    return own.loss(own.module, own.batches("train", images=2, batch=2, seed=0)[0])


def measure(own: ModuleAdapter) -> object:
    return own.validate(own.module)


@pytest.mark.parametrize(
    ("changes", "act", "message"),
    [
        ({"example": torch.zeros(3, 8, 8)}, measure, r"example must be a batch of images.*got \(3, 8, 8\)"),
        ({"example": torch.zeros(1, 3, 8, 8)}, measure, r"net must take its example.*\(1, 3, 8, 8\)"),
        ({"loss": lambda *_: torch.zeros(4)}, score, r"loss of net must be a scalar tensor.*shape \(4,\)"),
        ({"loss": lambda *_: 1.0}, score, "must be a scalar tensor.*got a float"),
        ({"metric": lambda *_: 1.5}, measure, r"one number in \[0, 1\], got 1.5"),
        ({"metric": lambda *_: float("nan")}, measure, r"one number in \[0, 1\], got nan"),
        ({"metric": lambda *_: None}, measure, r"one number in \[0, 1\], got None"),
        ({"metric": lambda *_: [0.1, "x"]}, measure, r"one number in \[0, 1\], got \[0.1, 'x'\]"),
        ({"metric": lambda *_: (0.1, 0.2)}, measure, r"one number in \[0, 1\], got \(0.1, 0.2\)"),
        ({"train": Shapes(0, 0)}, score, "train data of a module must have at least one sample"),
        ({"train": Broken(4, 0)}, score, r"sample \d of the train data cannot be read \(FileNotFoundError: no such"),
        ({"val": Other(4, 0)}, measure, r"val data must have the shape \(2, 24, 32\) of the example, got \(3, 8, 8\)"),
        ({"collate": len}, score, "must make a batch of images and targets"),
    ],
)
def test_what_is_wrong_is_told(changes: dict[str, Any], act: Callable[[ModuleAdapter], object], message: str) -> None:
    with pytest.raises(AutopruneError, match=message) as caught:
        act(adapter(Net(), **changes))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sgd": {"lr": 0.1}}, r"`sgd` must be an autoprune\.models\.module\.Sgd, got a dict"),
        ({"loss": "ce"}, "`loss` must be a function, got a str"),
        ({"train": None}, "`train` must be a map-style data set.*got a NoneType"),
        ({"val": DataLoader([1])}, "`val` must be a map-style data set.*got a DataLoader"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        adapter(Net(), **changes)
    with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module.*got the class Net"):
        adapter(Net)  # type: ignore[arg-type]


def test_images_that_a_network_changes_are_refused() -> None:
    class InPlace(Net):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image.sub_(0.5))

    with pytest.raises(ModelError, match=r"leave its images as they are.*changes them in place; compute on a copy"):
        adapter(InPlace())


def test_there_is_no_test_split(own: ModuleAdapter) -> None:
    with pytest.raises(DataError, match="splits train and val, got 'test'"):
        own.batches("test", images=1, batch=1, seed=0)


def test_differences_are_shares_of_large_outputs(own: ModuleAdapter) -> None:
    one = torch.tensor([[1.0, 100.0]])
    assert own.difference(one, one + 1).scores == pytest.approx(0.01)
    assert own.difference(one / 100, one / 100 + 0.5).scores == pytest.approx(0.5)
    assert own.disagreement(one, one) == 0
    assert own.disagreement(one, -one) == 1
    assert own.disagreement(one * 0, one * 0) == 0


def test_top1_and_loss_see_the_network(own: ModuleAdapter) -> None:
    batch = own.batches("val", images=12, batch=12, seed=0)[0]
    constant = torch.zeros(12, 3).scatter_(1, batch["targets"][:, None], 1.0)
    assert top1(lambda _: constant, [(batch["images"], batch["targets"])]) == 1
    assert torch.equal(own.loss(own.module, batch), loss(own.module, batch["images"], batch["targets"]))
