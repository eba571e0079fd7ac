"""Every task of Ultralytics through the adapter, the trainer and the commands, on tiny networks and drawn images."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.cli.main import main
from autoprune.errors import DataError, TrainingError
from autoprune.models.detection.comparing import difference, disagreement
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.models.ultralytics.checkpoint import write_checkpoint
from autoprune.models.ultralytics.tasks import TASKS, task_of
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from autoprune.training.extensions.distill import check_teacher
from autoprune.training.finetune import finetune
from autoprune.training.shapes import check_shapes, shapes_of
from tests.contracts.adapters import check_adapter
from tests.helpers.detectors import tiny_yaml
from tests.helpers.networks import compared, random_keep, shaken, zeroed
from tests.helpers.task_data import KEYPOINTS, NAMES, write_task_data
from tests.helpers.world import one_sentence

SIZE = 64
HEADS: dict[str, tuple[type, list[Any]]] = {
    "segment": (stock.SegmentationModel, [[8, 5], 1, "Segment", ["nc", 8, 16]]),
    "pose": (stock.PoseModel, [[8, 5], 1, "Pose", ["nc", KEYPOINTS]]),
    "obb": (stock.OBBModel, [[8, 5], 1, "OBB", ["nc", 1]]),
    "classify": (stock.ClassificationModel, [-1, 1, "Classify", ["nc"]]),
}
each_task = pytest.mark.parametrize("task", HEADS)
_DISTINCT = ("segment", "classify")
most_distinct_tasks = pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task in _DISTINCT else pytest.mark.slow) for task in HEADS]
)
"""The others differ from segmentation in their labels and their metric only."""


def build(task: str, width: int = 16) -> Any:
    """Build a network of a task with random weights, in eval mode."""
    kind, head = HEADS[task]
    description = tiny_yaml(width, kpt_shape=KEYPOINTS)
    rest = [] if task == "classify" else description["head"][:-1]
    with torch.random.fork_rng(), stock.quiet():
        torch.manual_seed(width)
        network = kind({**description, "head": [*rest, head]}, ch=3, verbose=False)
    network.names = dict(enumerate(NAMES))
    return network.eval()


def write_network(path: Path, task: str) -> Path:
    write_checkpoint(build(task), path, train_args={"imgsz": SIZE, "task": task})
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold, for every task, ``<task>.pt`` and a data set in the folder ``<task>``."""
    folder = tmp_path_factory.mktemp("tasks")
    for task in HEADS:
        write_network(folder / f"{task}.pt", task)
        write_task_data(folder / task, task)
    return folder


def data_of(world: Path, task: str) -> Path:
    return world / task if task == "classify" else world / task / "data.yaml"


def opened(world: Path, task: str) -> UltralyticsAdapter:
    return UltralyticsAdapter.load(world / f"{task}.pt", data=data_of(world, task))


@most_distinct_tasks
def test_keeps_the_contract_of_adapters(world: Path, tmp_path: Path, task: str) -> None:
    check_adapter(opened(world, task), build(task, 8), tmp_path)


@each_task
def test_each_class_has_metrics_of_its_own(world: Path, task: str) -> None:
    found = opened(world, task).validate(build(task))
    assert set(found.per_class) == set(NAMES)
    means = {name: np.mean([one[name] for one in found.per_class.values()]) for name in found}
    assert means == pytest.approx(dict(found)), "there are as many images of each class"


@most_distinct_tasks
def test_pruned_equals_zeroed(world: Path, task: str) -> None:
    adapter = opened(world, task)
    graph = analyse(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    module, space = shaken(deepcopy(adapter.module)), Space(graph, round_to=1, min_keep=1e-6)
    keep, images = random_keep(space, 0), adapter.example(2).double()
    with torch.no_grad():
        pruned = compared(Slicer(module, graph).materialise(keep).eval()(images))
        expected = compared(zeroed(module, graph, keep).eval()(images))
    for one, other in zip(pruned, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert len(space) > 5


@pytest.mark.slow  # two to five seconds each
@each_task
def test_a_fine_tune_keeps_the_network_and_measures_its_task(world: Path, tmp_path: Path, task: str) -> None:
    adapter, pruned, told = opened(world, task), build(task, 8), []
    before = sorted(path for path in (world / task).rglob("*"))
    result = finetune(adapter, pruned, epochs=1, out=tmp_path / "out", batch=2, workers=0, on_epoch=told.append)
    check_shapes(shapes_of(result.module), shapes_of(pruned), tmp_path)
    assert told[0].accuracy is not None
    assert sorted(path for path in (world / task).rglob("*")) == before, "nothing is written into the user's data"


@pytest.mark.slow  # its network is large: half a minute
def test_an_rt_detr_is_analysed_as_far_as_its_convolutions_allow(world: Path) -> None:
    adapter = UltralyticsAdapter.untrained("yolov8n-rtdetr.yaml", data=world / "obb" / "data.yaml", image_size=SIZE)
    graph = analyse(adapter.module, adapter.example(2))
    assert {unit.name.split(".")[1] for unit in graph.units} >= {"0", "4", "8"}, "layers are found under their names"
    (batch,) = adapter.batches("train", images=2, batch=2, seed=0)
    with torch.no_grad():
        assert torch.isfinite(adapter.loss(adapter.module.train(), batch))


# -- classifiers -------------------------------------------------------------------------------------


def test_a_class_is_the_folder_that_an_image_lies_in(world: Path) -> None:
    adapter = opened(world, "classify")
    (batch,) = adapter.batches("val", images=4, batch=4, seed=0)
    assert [NAMES[index] for index in batch["cls"].tolist()] == [Path(file).parent.name for file in batch["im_file"]]


def test_a_classifier_takes_images_of_any_size(world: Path) -> None:
    adapter = UltralyticsAdapter.load(world / "classify.pt", data=world / "classify", image_size=50)
    assert adapter.metric_names == ("top-1", "top-5")
    found = adapter.validate(adapter.module)
    assert found["top-5"] == 1.0, "of two classes both are among the first five"


def test_an_image_that_cannot_be_read_is_skipped(world: Path, tmp_path: Path) -> None:
    data = write_task_data(tmp_path / "data", "classify")
    (data / "val" / NAMES[0] / "0.png").write_bytes(b"nothing")
    adapter = UltralyticsAdapter.load(world / "classify.pt", data=data)
    adapter.validate(adapter.module)
    assert len(adapter.skipped) == 1


# -- what does not fit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "data", "said"),
    [
        ("classify", "segment/data.yaml", "a classifier's data set is a folder with train/<class>/ and val/<class>/"),
        ("segment", "classify", "is a folder; give the YAML file"),
        ("pose", "segment/data.yaml", r"finds keypoints of the shape \[4, 3\], but .* has kpt_shape None"),
    ],
)
def test_data_of_another_task_is_refused(world: Path, task: str, data: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        UltralyticsAdapter.load(world / f"{task}.pt", data=world / data)


def test_a_classifier_teaches_a_classifier_and_no_detector() -> None:
    images = torch.zeros(2, 3, SIZE, SIZE)
    check_teacher(build("classify"), build("classify"), images)
    with pytest.raises(TrainingError, match=r"an output of the same shape .* `distill`"):
        check_teacher(build("classify"), build("segment"), images)


def test_the_trainer_of_the_task_is_named_where_stock_training_would_lose_the_network(world: Path) -> None:
    description = opened(world, "segment").description
    assert description is not None
    assert "PrunedSegmentationTrainer" in description.lost
    assert "--stock-yaml" not in description.lost, "no stock YAML is written for masks"
    assert all(hasattr(__import__("autoprune.training").training, task.trainer) for task in TASKS.values())


# -- how predictions are compared --------------------------------------------------------------------


@each_task
def test_predictions_are_compared_by_what_their_numbers_mean(task: str) -> None:
    module = build(task)
    head = module.model[-1]
    head.export = True
    with torch.no_grad():
        whole = module(torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    layout = task_of(module).layout(module, SIZE)
    assert difference(whole, whole, layout=layout).scores == difference(whole, whole, layout=layout).boxes == 0
    assert disagreement(whole, whole, layout=layout) == pytest.approx(0, abs=1e-6)
    first = whole[0] if isinstance(whole, tuple) else whole
    moved = first.clone()
    moved[:, -3 if task == "pose" else -1] += 0.25  # x of the last keypoint; else the last number
    found = difference(first, moved, layout=layout)
    expected = (0.25, 0.0) if task == "pose" else (0.0, 0.25)
    assert (found.boxes, found.scores) == pytest.approx(expected, abs=1e-4)


# -- the commands ------------------------------------------------------------------------------------


@pytest.mark.slow  # about 20 seconds each
@each_task
def test_a_network_is_pruned_trained_and_exported(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    dense = ["--model", str(world / f"{task}.pt"), "--data", str(data_of(world, task)), "--imgsz", str(SIZE)]
    own = ["--device", "cpu", "--threads", "1"]
    search = [
        *("search", *dense, *own, "--images", "4", "--batch", "2", "--budget", "flops=80%", "--episodes", "3"),
        *("--finetune-epochs", "1", "--out", str(tmp_path / "search")),
    ]
    assert main(search) == 0
    found = json.loads((tmp_path / "search" / "summary.json").read_text())
    assert found["budget"][0]["satisfied"]
    assert found["metric_names"][0] in capsys.readouterr().out
    export = ["--model", str(tmp_path / "search" / "model.pt"), "--data", str(data_of(world, task)), "--format", "onnx"]
    assert main(["export", *export, *own, "--out", str(tmp_path / "export")]) == 0
    exported = json.loads((tmp_path / "export" / "export.json").read_text())
    assert exported["parity"]["passed"]
    assert np.isfinite(exported["stages"]["onnx"]["details"]["score_difference"])


@pytest.mark.slow
def test_a_stock_yaml_of_a_classifier_is_refused_before_the_search(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(world / "classify.pt"), "--data", str(world / "classify"), "--imgsz", str(SIZE)]
    assert main(["search", *words, "--budget", "flops=80%", "--stock-yaml", "--out", str(tmp_path / "run")]) == 2
    assert "Classif" in one_sentence(capsys.readouterr().err)
