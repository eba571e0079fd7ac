"""The adapter of Ultralytics' detectors: loading, images, loss, accuracy, checkpoints."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import DataError, DeviceError, ModelError, RunError
from autoprune.listener import SilentListener, hearing
from autoprune.models import open_adapter
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from autoprune.models.ultralytics.scoring import find_pairs, scoring_sum
from autoprune.report.detections import differing
from tests.contracts.adapters import check_adapter
from tests.helpers.detectors import IMAGE_SIZE, NAMES, build, write_data, write_detector, write_yaml


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector and its data set; read only."""
    folder = tmp_path_factory.mktemp("detector")
    write_data(folder)
    write_detector(folder / "tiny.pt")
    return folder


@pytest.fixture(scope="module")
def adapter(folder: Path) -> UltralyticsAdapter:
    return UltralyticsAdapter.load(folder / "tiny.pt", data=folder / "data.yaml")


def pruned(width: int = 8, **extra: object) -> nn.Module:
    """Stand in for a pruned network: the same architecture, narrower."""
    network: nn.Module = build(width, seed=1, **extra)
    return network


@pytest.mark.parametrize("extra", [{}, {"end2end": True}], ids=["v8", "end-to-end"])
def test_keeps_the_contract_of_adapters(folder: Path, tmp_path: Path, extra: dict[str, object]) -> None:
    weights = write_detector(tmp_path / "dense.pt", build(**extra))
    (tmp_path / "out").mkdir()
    check_adapter(UltralyticsAdapter.load(weights, data=folder / "data.yaml"), pruned(**extra), tmp_path / "out")


# -- loading ---------------------------------------------------------------------------------------


def test_loads_float32_eval_with_the_size_it_was_trained_at(adapter: UltralyticsAdapter) -> None:
    assert adapter.image_size.plain == IMAGE_SIZE
    assert adapter.name == "tiny"
    assert adapter.device == torch.device("cpu")
    assert not adapter.module.training
    assert {parameter.dtype for parameter in adapter.module.parameters()} == {torch.float32}
    assert "feats" in adapter.free_outputs


def test_parameters_but_the_fixed_bins_take_gradients(adapter: UltralyticsAdapter) -> None:
    frozen = [name for name, parameter in adapter.module.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.9.dfl.conv.weight"]


def test_open_adapter_gives_the_same(folder: Path) -> None:
    assert isinstance(open_adapter(folder / "tiny.pt"), UltralyticsAdapter)


@pytest.mark.parametrize(("stem", "scale", "name"), [("yolov8", "n", "yolov8n"), ("yolov5n", "n", "yolov5n")])
def test_named_after_its_architecture(tmp_path: Path, stem: str, scale: str, name: str) -> None:
    network = build()
    network.yaml.update(yaml_file=f"{stem}.yaml", scale=scale)
    assert UltralyticsAdapter.load(write_detector(tmp_path / "best.pt", network)).name == name


def test_example_is_the_same_at_every_call(adapter: UltralyticsAdapter) -> None:
    assert adapter.example(3).shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.equal(adapter.example(), adapter.example())


@pytest.mark.parametrize("size", [0, -64, 40])
def test_image_size_must_be_a_multiple_of_the_stride(folder: Path, size: int) -> None:
    with pytest.raises(ModelError, match=rf"multiple of the network's stride 16, got {size}"):
        UltralyticsAdapter.load(folder / "tiny.pt", image_size=size)


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.pt does not exist"):
        UltralyticsAdapter.load(tmp_path / "absent.pt")


def test_folder_as_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        UltralyticsAdapter.load(tmp_path)


def test_wrong_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelError, match=r"must be a \.pt file"):
        UltralyticsAdapter.load(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "truncated"])
def test_corrupt_checkpoint(folder: Path, tmp_path: Path, content: bytes | str) -> None:
    whole = (folder / "tiny.pt").read_bytes()
    (tmp_path / "bad.pt").write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="corrupt, cut short, or no checkpoint"):
        UltralyticsAdapter.load(tmp_path / "bad.pt")


def test_flipped_bits_in_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "tiny.pt").read_bytes())
    content[200:400] = bytes(200)
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.pt"):
        UltralyticsAdapter.load(tmp_path / "bad.pt")


def test_weights_without_a_network(tmp_path: Path) -> None:
    for content in ({"model": build().state_dict()}, build().state_dict()):
        torch.save(content, tmp_path / "state.pt")
        with pytest.raises(ModelError, match=r"is a state dict, which has .* weights and not the network"):
            UltralyticsAdapter.load(tmp_path / "state.pt")


def test_bare_tensor_as_checkpoint(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ModelError, match=r"tensor\.pt"):
        UltralyticsAdapter.load(tmp_path / "tensor.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_export_as_checkpoint(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Conv2d(3, 3, 1)), str(tmp_path / "export.pt"))
    with pytest.raises(ModelError, match="TorchScript export"):
        UltralyticsAdapter.load(tmp_path / "export.pt")


def test_a_network_of_a_task_that_is_not_supported(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import SemanticSegmentationModel

    network = SemanticSegmentationModel("yolo26-sem.yaml", nc=2, verbose=False)
    write_detector(tmp_path / "sem.pt", network)
    with pytest.raises(ModelError, match="holds a SemanticSegmentationModel, and only networks of"):
        UltralyticsAdapter.load(tmp_path / "sem.pt")


class Foreign(nn.Module):
    """A class that Ultralytics' safe loader does not know."""


def test_foreign_class_needs_trust(tmp_path: Path) -> None:
    network = build()
    network.extra = Foreign()
    write_detector(tmp_path / "foreign.pt", network)
    with pytest.raises(
        ModelError, match=r"uses the class tests\.unit\.test_ultralytics_adapter\.Foreign .*`trust_checkpoint`"
    ):
        UltralyticsAdapter.load(tmp_path / "foreign.pt")
    assert isinstance(UltralyticsAdapter.load(tmp_path / "foreign.pt", trust=True).module.extra, Foreign)


def test_nothing_is_installed_for_a_foreign_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(*_: object, **__: object) -> None:
        raise AssertionError("a package was to be installed")

    monkeypatch.setattr(subprocess, "check_output", install)
    module = tmp_path / "made_up_package.py"
    module.write_text("from torch import nn\nclass Block(nn.Module): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import made_up_package

    network = build()
    network.extra = made_up_package.Block()
    write_detector(tmp_path / "foreign.pt", network)
    monkeypatch.delitem(sys.modules, "made_up_package")
    module.unlink()
    for trust in (False, True):
        with pytest.raises(ModelError, match="made_up_package"):
            UltralyticsAdapter.load(tmp_path / "foreign.pt", trust=trust)


@pytest.mark.parametrize("device", ["abacus", "meta", ""])
def test_unknown_device(folder: Path, device: str) -> None:
    with pytest.raises(DeviceError, match="`device` must be cpu, cuda"):
        UltralyticsAdapter.load(folder / "tiny.pt", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "0"])
def test_absent_device(folder: Path, device: str) -> None:
    with pytest.raises(DeviceError, match="sees no CUDA device"):
        UltralyticsAdapter.load(folder / "tiny.pt", device=device)


# -- the data set ----------------------------------------------------------------------------------


def test_no_data_set(folder: Path) -> None:
    adapter = UltralyticsAdapter.load(folder / "tiny.pt")
    with pytest.raises(DataError, match=r"without a data set.*`data`"):
        adapter.batches("train", images=2, batch=2, seed=0)
    with pytest.raises(DataError, match="without a data set"):
        adapter.validate(adapter.module)


def test_missing_data_file(folder: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.yaml does not exist"):
        UltralyticsAdapter.load(folder / "tiny.pt", data=folder / "absent.yaml")


@pytest.mark.parametrize(
    ("names", "told"), [(NAMES, False), (["0", "1"], False), (["Green", "red"], False), (["circle", "square"], True)]
)
def test_a_data_set_of_other_classes_is_told(folder: Path, tmp_path: Path, names: list[str], told: bool) -> None:
    heard: list[str] = []
    listener = SilentListener()
    listener.warn = heard.append  # type: ignore[method-assign]
    file = write_yaml(tmp_path / "data.yaml", {"path": str(folder), "train": "images/train", "names": names})
    with hearing(listener):
        UltralyticsAdapter.load(folder / "tiny.pt", data=file)
    assert [
        re.search(r"names the classes .*circle.*, and .*tiny\.pt .*: are they", one) is not None for one in heard
    ] == ([True] * told)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": NAMES}, "names no 'train' and no 'val' split"),
        ({"train": "images/train"}, "neither 'names' nor 'nc'"),
        ({"train": "images/train", "names": NAMES, "nc": 3}, "contradicts itself"),
        ({"train": "images/train", "names": {1: "a", 2: "b"}}, "numbered 0 to 1"),
        ({"train": "images/train", "nc": "many"}, "must be a whole number from 1"),
        ({"train": 3, "names": NAMES}, "path or a list of paths"),
        ({"train": "images/train", "names": ["a", "b", "c"]}, "tells 2 classes apart, but .* names 3"),
        ({"train": "images/train", "names": ["blue", "green"]}, "in another order"),
    ],
)
def test_data_file_that_does_not_fit(folder: Path, tmp_path: Path, content: dict[str, object], message: str) -> None:
    file = write_yaml(tmp_path / "data.yaml", content)
    with pytest.raises(DataError, match=message):
        UltralyticsAdapter.load(folder / "tiny.pt", data=file)


@pytest.mark.parametrize("text", ["- a list\n", "train: [unclosed\n"])
def test_data_file_that_is_no_mapping(folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"is not readable YAML|must map names"):
        UltralyticsAdapter.load(folder / "tiny.pt", data=tmp_path / "data.yaml")


@pytest.mark.parametrize(
    ("split", "place", "message"),
    [
        ("test", None, "names no 'test' split"),
        ("everything", None, "a split is one of train, val, test"),
        (
            "test",
            "images/absent",
            r"the 'test' split does not exist: .*; say where it is in .*other\.yaml, whose paths",
        ),
        ("test", "empty", "holds no image"),
    ],
)
def test_split_that_is_not_there(folder: Path, split: str, place: str | None, message: str) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    content = {"path": str(folder), "train": "images/train", "names": NAMES, **({"test": place} if place else {})}
    file = write_yaml(folder / "other.yaml", content)
    adapter = UltralyticsAdapter.load(folder / "tiny.pt", data=file)
    with pytest.raises(DataError, match=message):
        adapter.batches(split, images=2, batch=2, seed=0)


def test_splits_may_be_relative_absolute_lists_or_text_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(str(folder / f"images/train/{i}.png") for i in (0, 2)))
    file = write_yaml(
        tmp_path / "data.yaml",
        {"train": [str(folder / "images/train"), str(folder / "images/val")], "val": "list.txt", "names": NAMES},
    )
    data = UltralyticsAdapter.load(folder / "tiny.pt", data=file).data
    assert data is not None
    assert len(data.files("train")) == 12
    assert [Path(found).name for found in data.files("val")] == ["0.png", "2.png"]


def test_paths_do_not_depend_on_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = UltralyticsAdapter.load(folder / "tiny.pt", data=folder / "data.yaml").data
    assert data is not None
    assert len(data.files("train")) == 6


# -- batches ---------------------------------------------------------------------------------------


def test_batches_hold_the_images_asked_for(adapter: UltralyticsAdapter) -> None:
    batches = adapter.batches("train", images=5, batch=2, seed=0)
    assert [len(adapter.inputs(batch)) for batch in batches] == [2, 2, 1]
    images = torch.cat([adapter.inputs(batch) for batch in batches])
    assert images.shape == (5, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) < 0.3 < 0.9 < float(images.max()) <= 1
    assert len({file for batch in batches for file in batch["im_file"]}) == 5


def test_fewer_images_where_there_are_no_more(adapter: UltralyticsAdapter) -> None:
    assert sum(len(adapter.inputs(batch)) for batch in adapter.batches("train", images=100, batch=4, seed=0)) == 6


def test_the_choice_is_a_function_of_the_seed(adapter: UltralyticsAdapter) -> None:
    def chosen(seed: int) -> list[str]:
        return [file for batch in adapter.batches("train", images=3, batch=2, seed=seed) for file in batch["im_file"]]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_reading_leaves_random_numbers_and_the_data_alone(adapter: UltralyticsAdapter, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    adapter.batches("val", images=4, batch=2, seed=0)
    adapter.validate(adapter.module)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert sorted(folder.rglob("*")) == before


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint and a data set of JPEGs, for tests that break some of them."""
    return folder / "tiny.pt", write_data(tmp_path, suffix=".jpg")


def test_unreadable_images_are_named_and_skipped(spoilt: tuple[Path, Path]) -> None:
    weights, data = spoilt
    images = data.parent / "images" / "train"
    cut = (images / "0.jpg").read_bytes()[:-20]
    (images / "0.jpg").write_bytes(cut)
    (images / "1.jpg").write_bytes(b"no image at all")
    (images / "2.jpg").write_bytes(b"")
    (data.parent / "labels" / "train" / "3.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    adapter = UltralyticsAdapter.load(weights, data=data)
    batches = adapter.batches("train", images=6, batch=6, seed=0)
    assert sorted(Path(file).name for file in batches[0]["im_file"]) == ["4.jpg", "5.jpg"]
    told = {Path(entry.partition(": ")[0]).name: entry.partition(": ")[2] for entry in adapter.skipped}
    assert set(told) == {"0.jpg", "1.jpg", "2.jpg", "3.jpg"}
    assert "cut short" in told["0.jpg"]
    assert "cannot identify image" in told["1.jpg"]
    assert "class 7" in told["3.jpg"]
    assert (images / "0.jpg").read_bytes() == cut  # stock Ultralytics would have overwritten it


def test_all_images_unreadable(spoilt: tuple[Path, Path]) -> None:
    weights, data = spoilt
    for split in ("train", "val"):
        for image in (data.parent / "images" / split).iterdir():
            image.write_bytes(b"no image at all")
    adapter = UltralyticsAdapter.load(weights, data=data)
    with pytest.raises(
        DataError, match=r"no image of the 'train' split .* can be read, e\.g\. .*\.jpg: cannot identify"
    ):
        adapter.batches("train", images=4, batch=2, seed=0)
    with pytest.raises(DataError, match="no image of the 'val' split"):
        adapter.validate(adapter.module)


def test_no_labels(spoilt: tuple[Path, Path]) -> None:
    weights, data = spoilt
    for label in (data.parent / "labels").rglob("*.txt"):
        label.unlink()
    adapter = UltralyticsAdapter.load(weights, data=data)
    with pytest.raises(DataError, match=r"no image of the 'train' split .* has a label; .*labels/train/\d\.txt"):
        adapter.batches("train", images=4, batch=2, seed=0)
    with pytest.raises(DataError, match="has a label"):
        adapter.validate(adapter.module)


# -- loss ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"end2end": True}], ids=["v8", "end-to-end"])
def test_loss_is_ultralytics_own_per_image(
    adapter: UltralyticsAdapter, tmp_path: Path, extra: dict[str, object]
) -> None:
    weights = write_detector(tmp_path / "model.pt", build(**extra))
    adapter = UltralyticsAdapter.load(weights, data=adapter.data.file if adapter.data else None)
    (batch,) = adapter.batches("train", images=6, batch=6, seed=0)
    network: Any = pruned(**extra).train()
    found = adapter.loss(network, batch)
    assert network.criterion is None if hasattr(network, "criterion") else True
    expected = network.loss(batch)[0].sum() / 6
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def relabelled(batch: Any, rows: list[list[float]]) -> Any:
    """Replace the labels of a batch by rows of image, class, box (centre, width, height)."""
    labels = torch.tensor(rows).reshape(-1, 6)
    return {**batch, "batch_idx": labels[:, 0], "cls": labels[:, 1:2], "bboxes": labels[:, 2:]}


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[1, 0, 0.5, 0.5, 0.9, 0.9]],
        [[0, 0, 0.5, 0.5, 0.4, 0.4], [0, 1, 0.5, 0.5, 0.4, 0.4], [0, 1, 0.55, 0.5, 0.4, 0.5]],  # two in one place
        [[0, 0, 0.3, 0.3, 0.01, 0.01], [1, 1, 0.99, 0.99, 0.02, 0.02]],  # smaller than a stride
    ],
    ids=["none", "one", "overlapping", "tiny"],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scoring_sum_is_the_stock_loss_before_it_is_divided(
    adapter: UltralyticsAdapter, rows: list[list[float]], seed: int
) -> None:
    (batch,) = adapter.batches("train", images=2, batch=2, seed=0)
    batch = relabelled(batch, rows)
    network = build(8, seed=seed).train()
    criterion = stock.v8DetectionLoss(network)
    with torch.no_grad():
        predictions = network(adapter.inputs(batch))
        predictions["scores"] += torch.randn(predictions["scores"].shape, generator=torch.Generator().manual_seed(seed))
        expected = criterion(predictions, batch)[0].sum() / 2
    found = scoring_sum(criterion, predictions, find_pairs(criterion, batch))
    torch.testing.assert_close(found.totals.sum() / found.weights.clamp(min=1).sum(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extra", [{}, {"end2end": True}], ids=["v8", "end-to-end"])
def test_a_plain_detector_scores_several_batches_at_once(
    adapter: UltralyticsAdapter, tmp_path: Path, extra: dict[str, object]
) -> None:
    weights = write_detector(tmp_path / "model.pt", build(**extra))
    adapter = UltralyticsAdapter.load(weights, data=adapter.data.file if adapter.data else None)
    assert adapter.concurrent == (not extra)
    batches, network = (
        adapter.batches("train", images=6, batch=1, seed=0),
        pruned(**extra).train().requires_grad_(False),
    )
    expected = [adapter.loss_sum(network, batch).mean() for batch in batches]
    assert len(set(expected)) == len(expected)
    if adapter.concurrent:
        with ThreadPoolExecutor(len(batches)) as threads:
            for _ in range(3):
                found = threads.map(lambda batch: adapter.loss_sum(network, batch).mean(), batches)
                assert list(found) == expected


def test_loss_gives_gradients(adapter: UltralyticsAdapter) -> None:
    (batch,) = adapter.batches("train", images=4, batch=4, seed=0)
    network = pruned().train()
    adapter.loss(network, batch).backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if p.requires_grad and ".dfl." not in n)


# -- accuracy --------------------------------------------------------------------------------------


class Oracle(nn.Module):
    """Detects exactly what the labels of its batches say, and one thing more."""

    names = NAMES
    end2end = False

    def __init__(self, batches: Any) -> None:
        super().__init__()
        self.batches = list(batches)

    def fuse(self, verbose: bool = True) -> Oracle:
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batch = self.batches.pop(0)
        found = torch.zeros(len(images), 4 + len(NAMES), 8)
        for position, (image, box, kind) in enumerate(
            zip(batch["batch_idx"], batch["bboxes"], batch["cls"], strict=True)
        ):
            found[int(image), :4, position % 7] = box * IMAGE_SIZE
            found[int(image), 4 + int(kind), position % 7] = 0.9
        return found


def test_perfect_detections_score_one(adapter: UltralyticsAdapter) -> None:
    batches = adapter.batches("val", images=6, batch=3, seed=0)
    found = adapter.accuracy(Oracle(batches), batches)
    assert found["mAP50"] == pytest.approx(0.995, abs=1e-3)  # Ultralytics' interpolation never quite reaches 1
    assert found.primary == pytest.approx(0.995, abs=1e-3)
    assert set(found.per_class) == set(NAMES.values())
    assert all(one == pytest.approx(found, abs=1e-3) for one in found.per_class.values())


def test_what_a_file_predicts_are_its_detections(adapter: UltralyticsAdapter) -> None:
    (batch,) = adapter.batches("val", images=3, batch=3, seed=0)
    found = adapter.detections(adapter.module, batch, predict=Oracle([batch]))
    assert found is not None
    for ours, labelled in zip(found, adapter.objects(batch), strict=True):
        assert differing(ours, labelled) == pytest.approx(0.1 * len(labelled)), "0.9 sure of every label"
    assert adapter.detections(adapter.module, batch) == [[], [], []], "an untrained network"


def test_a_class_that_is_not_found_scores_zero_alone(adapter: UltralyticsAdapter) -> None:
    batches = adapter.batches("val", images=6, batch=3, seed=0)
    blind = [{**batch, "cls": torch.zeros_like(batch["cls"])} for batch in batches]  # calls everything the first class
    found = adapter.accuracy(Oracle(blind), batches)
    assert [found.per_class[NAMES[kind]]["mAP50"] > 0.1 for kind in sorted(NAMES)] == [True, False]
    assert found.primary == pytest.approx(np.mean([one["mAP50-95"] for one in found.per_class.values()]))


def test_untrained_network_scores_near_zero(adapter: UltralyticsAdapter) -> None:
    batches = adapter.batches("val", images=6, batch=3, seed=0)
    assert adapter.accuracy(pruned(), batches)["mAP50"] < 0.2
    assert adapter.validate(pruned())["mAP50"] < 0.2


# -- what is shipped -------------------------------------------------------------------------------


def test_deployable_is_a_fused_copy(adapter: UltralyticsAdapter) -> None:
    network: Any = pruned()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fused: Any = adapter.deployable(network.train())
    assert fused.is_fused()
    assert not network.is_fused()
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    with torch.no_grad():
        images = adapter.example()
        predictions = fused(images)
        assert isinstance(predictions, torch.Tensor), "what is exported returns predictions alone"
        torch.testing.assert_close(predictions, network.eval()(images)[0], rtol=1e-3, atol=1e-3)


def test_checkpoint_size_is_that_of_the_file_whatever_its_name(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    network = pruned()
    sizes = set()
    for name in ("a.pt", "a-much-longer-name.pt"):
        adapter.save(network, tmp_path / name)
        sizes.add((tmp_path / name).stat().st_size)
    assert sizes == {adapter.checkpoint_size(network)}
    assert adapter.checkpoint_size(network) < adapter.checkpoint_size(adapter.module)
    network(torch.zeros(1, 3, 128, 128))  # the head remembers the grid of its last image
    assert sizes == {adapter.checkpoint_size(network)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-much-longer-name.pt", "a.pt"]


def test_saving_leaves_the_network_alone_and_adds_no_path(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    network: Any = pruned()
    network.pt_path = str(tmp_path / "secret-folder" / "best.pt")
    adapter.save(network.train(), tmp_path / "model.pt")
    assert network.training
    assert next(network.parameters()).dtype == torch.float32
    assert next(network.parameters()).requires_grad
    assert b"secret-folder" not in (tmp_path / "model.pt").read_bytes()


def test_notes_travel_as_plain_values(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    adapter.save(pruned(), tmp_path / "model.pt", notes={"keep": {"model.2.cv1": 8}, "budget": ("flops=50%",)})
    assert read_checkpoint(tmp_path / "model.pt").notes == {"keep": {"model.2.cv1": 8}, "budget": ["flops=50%"]}


def test_saving_where_it_cannot(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"absent/model\.pt cannot be written"):
        adapter.save(pruned(), tmp_path / "absent" / "model.pt")


def test_saved_network_loads_again(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    network = pruned()
    adapter.save(network, tmp_path / "model.pt")
    again = UltralyticsAdapter.load(tmp_path / "model.pt")
    assert again.image_size == adapter.image_size
    images = adapter.example()
    with torch.no_grad():
        torch.testing.assert_close(again.module(images)[0], network(images)[0], rtol=0.05, atol=0.5)


def isolated(code: str, *, cwd: Path, **environment: str) -> str:
    """Run code in a Python that cannot import autoprune; return what it prints."""
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", *environment}}
    blocked = "import sys; sys.modules['autoprune'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + textwrap.dedent(code)],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stock_ultralytics_opens_it_without_autoprune(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    """The safe loader opens it, and predict, val and export run and see the same network."""
    adapter.save(pruned(), tmp_path / "model.pt", notes={"budget": ["flops=50%"]})
    again = UltralyticsAdapter.load(tmp_path / "model.pt", data=adapter.data.file if adapter.data else None)
    with torch.no_grad():
        expected = float(again.module(torch.full((1, 3, 64, 64), 0.5))[0].abs().sum())
    assert adapter.data is not None
    printed = isolated(
        f"""
        import json, numpy, torch
        from ultralytics import YOLO
        model = YOLO("model.pt")
        with torch.no_grad():
            total = float(model.model(torch.full((1, 3, 64, 64), 0.5))[0].abs().sum())
        model.predict(numpy.zeros((48, 64, 3), numpy.uint8), verbose=False)
        metrics = model.val(data={str(adapter.data.file)!r}, imgsz=64, plots=False, verbose=False, project="v")
        script = YOLO("model.pt").export(format="torchscript", imgsz=64, verbose=False)
        print("\\n" + json.dumps([total, float(metrics.box.map50), str(script)]))
        """,
        cwd=tmp_path,
        ULTRALYTICS_SAFE_LOAD="1",
    )
    total, map50, script = json.loads(printed.splitlines()[-1])
    assert total == pytest.approx(expected, rel=1e-4)
    assert map50 == pytest.approx(again.validate(again.module)["mAP50"], abs=0.002)
    assert (tmp_path / script).is_file()
    for cache in (adapter.data.file.parent / "labels").glob("*.cache"):
        cache.unlink()  # stock val's


# -- quiet -----------------------------------------------------------------------------------------


def test_importing_ultralytics_through_autoprune_leaves_no_trace(root: Path, tmp_path: Path) -> None:
    """No network, no output, no settings file, no changed global state."""
    code = """
        import os, socket, sys, warnings
        def refuse(*_, **__): raise AssertionError("the network was asked")
        socket.getaddrinfo = refuse
        import PIL.Image, cv2, numpy, torch
        def state():
            return (dict(os.environ), list(warnings.filters), torch.save, PIL.Image.open, cv2.getNumThreads(),
                    numpy.get_printoptions(), dict(vars(torch._tensor_str.PRINT_OPTS)), torch.get_num_threads())
        before = state()
        import autoprune.models.ultralytics
        assert "ultralytics" in sys.modules
        for old, new in zip(before, state()):
            assert old == new, (old, new)
        from ultralytics.utils import ONLINE, AUTOINSTALL, SETTINGS, USER_CONFIG_DIR
        assert not ONLINE and not AUTOINSTALL and not SETTINGS["sync"] and not SETTINGS["mlflow"]
        assert SETTINGS["datasets_dir"] == "/somewhere/else"
    """
    settings = tmp_path / "config" / "Ultralytics" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"datasets_dir": "/somewhere/else", "sync": true, "mlflow": true}')
    hidden = {"YOLO_CONFIG_DIR", "YOLO_OFFLINE", "YOLO_AUTOINSTALL", "OMP_NUM_THREADS"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment.update(XDG_CONFIG_HOME=str(tmp_path / "config"), HOME=str(tmp_path), PYTHONPATH=str(root))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert settings.read_text() == '{"datasets_dir": "/somewhere/else", "sync": true, "mlflow": true}'
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["settings.json"]


def test_importing_models_is_light(root: Path) -> None:
    code = "import sys, autoprune.models; assert not {'torch', 'ultralytics'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_working_prints_nothing(adapter: UltralyticsAdapter, capfd: pytest.CaptureFixture[str]) -> None:
    adapter.batches("train", images=2, batch=2, seed=0)
    adapter.validate(adapter.module)
    adapter.deployable(adapter.module)
    assert capfd.readouterr() == ("", "")


# -- real detectors --------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "map50", "map50_95"),
    [pytest.param("bccd-yolov5nu-320", 0.7427, 0.4897, marks=pytest.mark.slow), ("bccd-yolov8n-320", 0.8626, 0.5543)],
)
def test_validate_agrees_with_stock_val(shared: Path, name: str, map50: float, map50_95: float) -> None:
    """The figures are those that Ultralytics' own ``val`` gave at 320 px, kept in the checkpoints."""
    adapter = UltralyticsAdapter.load(shared / "models" / f"{name}.pt", data=shared / "data/bccd/bccd.yaml")
    assert adapter.image_size == (320, 320)
    found = adapter.validate(adapter.module)
    assert found["mAP50"] == pytest.approx(map50, abs=0.002)
    assert found.primary == pytest.approx(map50_95, abs=0.002)
    network: Any = adapter.module
    assert set(found.per_class) == set(network.names.values())
    assert found.primary == pytest.approx(np.mean([one["mAP50-95"] for one in found.per_class.values()]))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bccd-yolov5nu-320", "bccd-yolov8n-320"])
def test_loss_of_real_detectors_is_ultralytics_own(shared: Path, name: str) -> None:
    adapter = UltralyticsAdapter.load(shared / "models" / f"{name}.pt", data=shared / "data/bccd/bccd.yaml")
    (batch,) = adapter.batches("train", images=8, batch=8, seed=0)
    network: Any = adapter.module.train()
    with torch.no_grad():
        found = adapter.loss_sum(network, batch).mean()
        expected = stock.v8DetectionLoss(network)(network(batch["img"]), batch)[0].sum() / 8
    assert found == pytest.approx(float(expected), rel=1e-4)
