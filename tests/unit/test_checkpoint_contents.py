"""What stands in a checkpoint is checked before it is used: one sentence says what is wrong, or it opens."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.cli.main import main
from autoprune.errors import ModelError
from autoprune.models import open_adapter
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from tests.helpers.detectors import IMAGE_SIZE, build
from tests.helpers.world import one_sentence


def content(**changes: Any) -> dict[str, Any]:
    return {"model": build().half(), "train_args": {"imgsz": IMAGE_SIZE}, "epoch": -1, **changes}


def saved(path: Path, what: Any, **options: Any) -> Path:
    torch.save(what, path, **options)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "best.pt"


# -- what the file is ------------------------------------------------------------------------------


def test_a_network_that_ran_on_several_gpus_is_unwrapped(file: Path) -> None:
    network = build()
    saved(file, content(model=nn.DataParallel(network)))
    found = open_adapter(file).module
    assert type(found) is type(network)
    assert torch.equal(found.state_dict()["model.0.conv.weight"], network.state_dict()["model.0.conv.weight"])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: build(), "is a bare network, saved without the dictionary that makes it a checkpoint; save it as"),
        (lambda: build().state_dict(), "is a state dict, which has a network's weights and not the network"),
        (lambda: {"model": build().state_dict()}, "is a state dict, which has a network's weights and not the network"),
        (lambda: {}, "holds no network, neither a model nor an ema; give the .pt file"),
        (lambda: {"model": 5}, "holds no network, only 5 as its model"),
        (lambda: [build()], "holds a list, not an Ultralytics checkpoint"),
        (lambda: torch.zeros(2), "holds a Tensor, not an Ultralytics checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(file: Path, what: Any, said: str) -> None:
    saved(file, what())
    with pytest.raises(ModelError) as caught:
        open_adapter(file)
    assert said in str(caught.value)


def test_a_bare_network_opens_once_saved_as_the_message_says(file: Path) -> None:
    saved(file, {"model": build(), "train_args": {"imgsz": 640}})
    assert open_adapter(file).image_size == (640, 640)


def test_an_old_format_is_told_from_a_damaged_file(file: Path) -> None:
    saved(file, content(), _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"format that torch wrote before version 1\.6.*`trust_checkpoint`"):
        open_adapter(file)
    assert open_adapter(file, trust=True).image_size.plain == IMAGE_SIZE


def test_a_checkpoint_of_the_yolov5_repository_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.helpers.yolov7_style import yolo

    monkeypatch.setattr(yolo.Model, "__module__", "models.yolo")
    module = type(os)("models.yolo")
    monkeypatch.setattr(module, "Model", yolo.Model, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "models", type(os)("models"))
    monkeypatch.setitem(__import__("sys").modules, "models.yolo", module)
    saved(file, {"model": yolo.Model.__new__(yolo.Model)})
    with pytest.raises(ModelError, match=r"of the YOLOv5 or YOLOv7 repository.*load_pickled"):
        open_adapter(file)


@pytest.mark.parametrize("name", ["best.pt", "best.cfg"])
def test_a_pipe_is_no_file_and_nothing_waits_for_it(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match="is no regular file"):
        open_adapter(tmp_path / name)


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: File name too long"):
        open_adapter(tmp_path / f"{'x' * 5000}.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_short(file: Path, share: float) -> None:
    whole = saved(file, content()).read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match="corrupt, cut short, or no checkpoint"):
        open_adapter(file)


def test_an_archive_that_claims_more_than_it_has(file: Path) -> None:
    """Torch compresses nothing: a small file that unpacks to a large one is not its own."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("best/data.pkl", bytes(10**7))
    with pytest.raises(ModelError, match="corrupt, cut short, or no checkpoint"):
        open_adapter(file)


@pytest.mark.parametrize("size", [10**12, 10**9])
def test_a_tensor_that_is_larger_than_its_memory(file: Path, size: int) -> None:
    network = build()
    network.model[0].conv.register_buffer("huge", torch.zeros(1, dtype=torch.half).expand(size))
    saved(file, content(model=network))
    with pytest.raises(ModelError, match="is damaged: it does not hold all numbers of a Conv2d's huge"):
        open_adapter(file)


# -- what stands in it -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_args": 5}, "its train_args must be a dictionary, got 5"),
        ({"train_args": ["a"]}, "its train_args must be a dictionary, got ['a']"),
        ({"train_args": {"box": "x"}}, "has train_args that Ultralytics does not take: 'box=x' is of invalid type str"),
        ({"train_args": {"box": 10**30}}, "must have plain values as its train_args, got a int for box"),
        ({"train_args": {"project": nn.ReLU()}}, "must have plain values as its train_args, got a ReLU for project"),
        ({"train_args": {"imgsz": "x"}}, "imgsz"),
        ({"train_args": {"imgsz": [[1]]}}, "imgsz"),
        ({"train_args": {"imgsz": [64, 64, 64]}}, "imgsz"),
        ({"train_args": {"imgsz": -5}}, "imgsz"),
        ({"epoch": "x"}, "its epoch must be a whole number, got 'x'"),
        ({"epoch": [1]}, "its epoch must be a whole number, got [1]"),
        ({"epoch": True}, "its epoch must be a whole number, got True"),
        ({"stopper": 5}, "its stopper must be a dictionary, got 5"),
        ({"best_fitness": "x"}, "its best_fitness must be a number, got 'x'"),
        ({"best_fitness": {}}, "its best_fitness must be a number, got {}"),
        ({"optimizer": [1]}, "its optimizer must be a dictionary, got [1]"),
        ({"updates": 1.5}, "its updates must be a whole number, got 1.5"),
        ({"modelopt": 5}, "its modelopt must be a dictionary, got 5"),
    ],
)
def test_entries_of_another_type_are_refused(file: Path, changes: dict[str, Any], said: str) -> None:
    saved(file, content(**changes))
    with pytest.raises(ModelError) as caught:
        open_adapter(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["train_args", "epoch"])
def test_entries_may_be_missing(file: Path, missing: str) -> None:
    what = content()
    del what[missing]
    assert open_adapter(saved(file, what)).image_size.plain == (640 if missing == "train_args" else IMAGE_SIZE)


@pytest.mark.parametrize(("name", "value"), [("stopper", {"best_epoch": "x"}), ("autoprune", nn.ReLU()), ("date", 5)])
def test_what_matters_little_is_left_out(file: Path, name: str, value: Any) -> None:
    assert read_checkpoint(saved(file, content(**{name: value}))).notes == {}


JUNK = (None, 5, "x", [], ["a", ["b"]], {"a": {"b": [1]}}, torch.zeros(2), nn.ReLU(), True)


@pytest.mark.parametrize("name", ["yaml", "names", "stride", "model", "args", "nc"])
@pytest.mark.parametrize("value", JUNK, ids=lambda value: type(value).__name__)
def test_attributes_of_a_network_of_another_type(file: Path, name: str, value: Any) -> None:
    network = build()
    vars(network)[name] = value
    _opens_or_says_one_sentence(saved(file, content(model=network)))


@pytest.mark.parametrize("name", ["nc", "stride", "reg_max", "cv2", "f", "kpt_shape", "anchors"])
@pytest.mark.parametrize("value", JUNK, ids=lambda value: type(value).__name__)
def test_attributes_of_a_head_of_another_type(file: Path, name: str, value: Any) -> None:
    network = build()
    vars(network.model[-1])[name] = value
    _opens_or_says_one_sentence(saved(file, content(model=network)))


@pytest.mark.parametrize("name", ["yaml", "names", "stride", "model", "args", "nc", "save", "inplace"])
def test_attributes_of_a_network_that_are_missing(file: Path, name: str) -> None:
    network = build()
    for place in (vars(network), network._modules):
        place.pop(name, None)
    _opens_or_says_one_sentence(saved(file, content(model=network)))


def _opens_or_says_one_sentence(file: Path) -> None:
    said = f"{file} YAML"
    try:
        adapter = open_adapter(file)
        adapter.deployable(adapter.module)(adapter.example(1))
    except ModelError as error:
        said = str(error)
    assert str(file) in said or "YAML" in said
    assert "\n" not in said
    assert len(said) < 500


def test_lists_that_stand_for_billions_are_no_plain_values(file: Path) -> None:
    value: list[Any] = ["x"]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(ModelError, match="must have plain values as its train_args, got a list for project"):
        open_adapter(saved(file, content(train_args={"project": value})))


# -- how much memory it takes ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [10**7, 32000])
def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_there(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    asked = ["--imgsz", str(size)] if size == 32000 else []
    saved(file, content(train_args={"imgsz": IMAGE_SIZE if asked else size}))
    assert main(["export", "--model", str(file), "--out", str(tmp_path / "run"), "--device", "cpu", *asked]) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "GB for 2 images at once" in said
    assert "the largest image size that fits is" in said
